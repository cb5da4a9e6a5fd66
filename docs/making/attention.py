"""Draw what opens and closes gates of a trained network: docs/images/concepts/attention-*.png.

    recame bench benchmarks/plans/parts_pilot.yaml --method attention_open --seed 100 --out pilot
    python docs/making/attention.py pilot/runs/generated/attention_open/seed100

Of the layer whose gates vary most over balanced test images, and of each of its four regions, the
images that open and that close the gate that varies most.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import wrap

import matplotlib as mpl
import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figures import LOOKS, OUT, ROOT, Look
from recame.contracts import Array
from recame.data.sampling import balanced_sample
from recame.datasets.generated import SyntheticSpec, generate
from recame.inference.gates import GateLayer, gate_layers
from recame.models import load_checkpoint

PLAN = ROOT / "benchmarks" / "plans" / "parts_pilot.yaml"
IMAGES, SHOWN = 512, 5
REGIONS = ("top left", "top right", "bottom left", "bottom right")


def test_images(seed: int, side: int) -> tuple[Array, Array]:
    """(N, side, side) images in [0, 255] of the plan's test split, and their labels."""
    options = yaml.safe_load(PLAN.read_text(encoding="utf-8"))["data"]["generated"]["options"]
    fields = set(SyntheticSpec.__dataclass_fields__)
    assert set(options) <= fields, set(options) - fields
    pixels, table = generate(SyntheticSpec(**options, seed=seed))
    test = np.flatnonzero(table["split"] == "test")
    assert pixels.shape[1] == side
    return pixels[test], table["label"].to_numpy()[test].astype(str)


def draw(layer: GateLayer, pixels: Array, labels: Array, look: Look) -> Figure:
    """A row a region: what opens its gate, and what closes it."""
    figure = Figure(figsize=(9.0, 4.4), facecolor="none")
    side = pixels.shape[1] / 2
    grid = figure.subplots(
        4,
        2 * SHOWN + 1,
        gridspec_kw={"width_ratios": [*[1] * SHOWN, 0.35, *[1] * SHOWN]},
    )
    figure.subplots_adjust(left=0.11, right=0.995, top=0.9, bottom=0.005, wspace=0.05, hspace=0.42)
    for place, (row, column) in enumerate(np.ndindex(2, 2)):
        gates = layer.channel_gates[:, row, column]
        order = np.argsort(-gates, kind="stable")
        shown = [*order[:SHOWN], None, *order[::-1][:SHOWN]]
        for axes, index in zip(grid[place], shown, strict=True):
            axes.set_axis_off()
            if index is None:
                continue
            axes.imshow(pixels[index], cmap="gray", vmin=0, vmax=255)
            frame = (column * side - 0.5, row * side - 0.5)
            axes.add_patch(Rectangle(frame, side, side, fill=False, ec=look.orange, lw=1.8))
            axes.set_title(
                "\n".join(wrap(f"{labels[index].replace('_', ' ')} {gates[index]:.2f}", 15)),
                fontsize=6.5, color=look.ink, pad=2, linespacing=1.15,
            )  # fmt: skip
        middle = grid[place][0].get_position()
        figure.text(
            0.005, (middle.y0 + middle.y1) / 2, REGIONS[place], fontsize=9, color=look.ink,
            va="center",
        )  # fmt: skip
    for first, text in ((0, "open the gate most"), (SHOWN + 1, "close it most")):
        left = grid[0][first].get_position().x0
        figure.text(left, 0.965, text, fontsize=10.5, fontweight="bold", color=look.ink)
    return figure


def main() -> None:
    """Read the run, choose the layer, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    loaded = load_checkpoint(run)
    spec, names = loaded.spec, list(loaded.label_space.names)
    seed = int(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["run"]["seed"])
    pixels, labels = test_images(seed, spec.height)
    target = np.array([names.index(label) for label in labels])
    chosen = np.sort(balanced_sample(target, IMAGES, 0))
    pixels, labels, target = pixels[chosen], labels[chosen], target[chosen]
    shown = torch.from_numpy(pixels.astype(np.float32) / 255)[:, None]
    layers = gate_layers(loaded.model, shown, target, len(names))
    layer = max(layers, key=lambda each: float(each.channel_gates.std(0).mean()))
    print(f"{layer.name}: {float(layer.answering.max()):.0%} of a region's gates vary")
    for style, look in LOOKS.items():
        with mpl.rc_context({"font.family": "DejaVu Sans"}):
            path = OUT / f"attention-{style}.png"
            draw(layer, pixels, labels, look).savefig(
                path, dpi=110, transparent=True, metadata={"Software": None}
            )
            print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
