"""When does a sample say that large images shall be seen in tiles? Rules side by side.

    python benchmarks/tiles/evidence.py DIR [--draws 40] [--json FILE]

Sets of another seed than those that runs are judged on, generated in DIR: boards of 1024 x 1024
and 512 x 4096 with defects of 8 to 24 pixels, where tiles bring 60 points (`run.py`), and small
boards enlarged ten times to 640 x 640, whose defects a shrunk image shows as well. Of so many
images of each (its training and validation images, as `recame train` samples them) some are drawn
again and again, and each rule decides by these alone. Half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from recame.config import Config
from recame.data.at_sizes import decode_at_sizes
from recame.data.manifest import read_manifest
from recame.data.proposal import native_size
from recame.datasets.generated import SyntheticSpec, generate
from recame.datasets.public.ic_defect_synth import prepare_large
from recame.inference.separability import Judged, accuracy_gain, gain, judge
from recame.machine import environment
from recame.training.phases.image_tiles import NUM_TILES, TILE_SIDE
from recame.training.phases.size_trial import Sample, Trial

SEED = 7
#: Files of a set that are looked at, and how many of them a draw holds.
MOST, NUMBERS = 330, (60, 110, 160, 240)
RULES: dict[str, Callable[[Judged, Judged], bool]] = {
    "loss by 1.5": lambda a, b: _beyond(gain(a, b), 1.5),
    "loss by 3": lambda a, b: _beyond(gain(a, b), 3.0),
    "accuracy by 2": lambda a, b: _beyond(accuracy_gain(a, b), 2.0),
    "accuracy by 3": lambda a, b: _beyond(accuracy_gain(a, b), 3.0),
    "loss by 1.5 or accuracy by 2": lambda a, b: (
        _beyond(gain(a, b), 1.5) or _beyond(accuracy_gain(a, b), 2.0)
    ),
    "loss by 1.5 or accuracy by 3": lambda a, b: (
        _beyond(gain(a, b), 1.5) or _beyond(accuracy_gain(a, b), 3.0)
    ),
}


def _beyond(found: tuple[float, float], errors: float) -> bool:
    return found[0] > errors * found[1]


def made(name: str, folder: Path) -> Path:
    """The table of a set, generated where it is not there yet."""
    manifest = folder / name / "manifest.csv"
    if manifest.exists():
        return manifest
    if name == "enlarged":
        spec = SyntheticSpec(num_images=500, num_classes=6, num_products=3, imbalance=50, seed=SEED)
        pixels, table = generate(spec)
        (folder / name).mkdir(parents=True)
        names = [f"{number:04d}.png" for number in range(len(pixels))]
        for image, file in zip(pixels, names, strict=True):
            large = cv2.resize(image, (640, 640), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / name / file), large)
        rows = pd.DataFrame({"image": names, "label": table["label"], "split": table["split"]})
        rows.to_csv(manifest, index=False)
        return manifest
    canvas = {"large": (1024, 1024), "line": (512, 4096)}[name]
    return prepare_large(folder / name, canvas=canvas, seed=SEED)


def features(manifest: Path) -> tuple[Sample, list[np.ndarray]]:
    """A sample, and what the pretrained network has of it, whole and in tiles: (N, P) each."""
    config = Config()
    table = read_manifest(manifest)
    sample = Sample.draw(table, config)
    sample = replace(
        sample,
        paths=sample.paths[:MOST],
        target=sample.target[:MOST],
        of_val=sample.of_val[:MOST],
    )
    native = native_size(sample.paths, context=config.data.context)
    ratio = max(native) / min(native)
    size = (64, 320) if ratio > 2 else (128, 128)
    device = torch.device("cpu")
    found = []
    plain = sample.proposed(config, size)
    tiled = sample.proposed(config, (TILE_SIDE, TILE_SIDE), tiles=NUM_TILES)
    for spec in (plain, tiled):
        images = decode_at_sizes(
            sample.paths,
            spec,
            [(spec.height, spec.width)],
            max_pixels=config.data.max_pixels,
        )
        trial = Trial(config, device, sample, native, spec)
        found.append(trial.features((spec.height, spec.width), images.images[0]))
    return sample, found


def main() -> None:
    """Decide again and again, and print how often each rule takes tiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).parent / "results/evidence.json"
    )
    options = parser.parse_args()
    told: dict[str, dict[str, dict[str, float]]] = {}
    rng = np.random.default_rng(0)
    for name in ("large", "line", "enlarged"):
        sample, kinds = features(made(name, options.folder))
        told[name] = {}
        for number in NUMBERS:
            taken = dict.fromkeys(RULES, 0)
            scores = []
            for _ in range(options.draws):
                rows = np.sort(rng.permutation(len(sample.paths))[:number])
                target, of_val = sample.target[rows], sample.of_val[rows]
                both = [
                    judge(
                        kind[rows][~of_val],
                        target[~of_val],
                        kind[rows][of_val],
                        target[of_val],
                        sample.classes.num_classes,
                        enough=20,
                    )
                    for kind in kinds
                ]
                scores.append([one.accuracy for one in both])
                for rule, takes in RULES.items():
                    taken[rule] += takes(*both)
            whole, tiles = np.mean(scores, 0)
            told[name][str(number)] = {
                "whole": round(float(whole), 3),
                "tiles": round(float(tiles), 3),
                **{rule: round(count / options.draws, 3) for rule, count in taken.items()},
            }
            print(name, number, told[name][str(number)], flush=True)
    options.json.write_text(json.dumps({"sets": told, "machine": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
