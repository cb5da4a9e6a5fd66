"""Images a second of `recame train` beside a bare timm loop, and the price of a second expert.

    python benchmarks/training/run.py [--device cpu|gpu] [--sizes 64 128 96x320] [--batch 64]
        [--steps 40] [--rounds 3]

Everything is measured in one process, the variants in turn, round by round; the table gives
medians. The bare loop has its images as tensors in memory, draws no augmentation, keeps no moving
average and writes nothing; `recame train` does all of that, through the real trainer. `--steps` is
of 64 x 64 pixels; larger images take as much fewer as they are larger, and eight at least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image

import recame
from recame.config import height_width
from recame.machine import environment

BACKBONE = "tf_efficientnet_lite0"
CLASSES = 7
LEAST_STEPS = 8
ONE = "recame, 1 expert, two stages frozen"

#: Name -> settings of `recame train`.
VARIANTS: dict[str, dict[str, object]] = {
    ONE: {"model.num_experts": 1, "model.shared_stages": 0, "finetune.frozen_stages": 2},
    "recame, 1 expert, every stage learns": {"model.num_experts": 1, "model.shared_stages": 0},
    "recame, 2 experts, all but the last stage shared, two frozen": {
        "model.num_experts": 2,
        "model.shared_stages": 6,
        "finetune.frozen_stages": 2,
    },
}


def write_images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Noise images with labels, all in the training split."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        name = f"{number:05d}.png"
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
        rows.append({"image": name, "label": f"c{number % CLASSES}", "split": "train"})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def bare_loop(
    size: tuple[int, int], batch: int, steps: int, device: torch.device, *, autocast: bool
) -> float:
    """Images a second of forward, backward and AdamW on tensors in memory."""
    torch.manual_seed(0)
    model = timm.create_model(BACKBONE, num_classes=CLASSES, in_chans=1)
    model = model.to(device, memory_format=torch.channels_last).train()
    images = torch.rand(steps * batch, 1, *size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (steps * batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    for warm in range(-3, steps):
        if warm == 0:
            _wait(device)
            began = time.perf_counter()
        at = slice(max(warm, 0) * batch, (max(warm, 0) + 1) * batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = torch.nn.functional.cross_entropy(model(images[at]).float(), target[at])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    _wait(device)
    return steps * batch / (time.perf_counter() - began)


def recame_train(
    manifest: Path, settings: dict[str, object], device: str, batch: int, steps: int
) -> float:
    """Images a second of the second epoch on, from history.csv of a real run."""
    config = recame.Config().updated(
        {
            "data.val_fraction": 0.0,
            "data.test_fraction": 0.0,
            "model.backbone": BACKBONE,
            "model.attention": "none",
            "probe.enabled": False,
            "finetune.epochs": 3,
            "finetune.epoch_size": steps * batch,
            "finetune.batch_size": batch,
            "run.accelerator": device,
            **settings,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run = recame.train(manifest, config, out=Path(folder) / "run")
        seconds = pd.read_csv(run.history_path)["seconds"].to_numpy()[1:]
    return float(steps * batch / np.median(seconds))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(size: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of each variant, a number a round."""
    height_px, width_px = height_width(size)
    device = torch.device("cuda" if options.device == "gpu" else "cpu")
    steps = max(LEAST_STEPS, round(options.steps * 64 * 64 / (height_px * width_px)))
    # A CPU's bfloat16 is ten times as slow as its float32 here.
    kinds = {"bare timm loop, fp32": False} | (
        {"bare timm loop, bf16": True} if options.device == "gpu" else {}
    )
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shape = (height_px, width_px)
        manifest = write_images(Path(folder), steps * options.batch, shape)
        for _ in range(options.rounds):
            for name, autocast in kinds.items():
                rate = bare_loop(shape, options.batch, steps, device, autocast=autocast)
                rates.setdefault(name, []).append(rate)
            for name, settings in VARIANTS.items():
                changes = {"data.size": size, **settings}
                rate = recame_train(manifest, changes, options.device, options.batch, steps)
                rates.setdefault(name, []).append(rate)
    return rates


def main() -> None:
    """Measure in turn, print and save medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--sizes", nargs="+", default=["64"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rates: dict[str, dict[str, list[float]]] = {}
    lines = [
        "| px | what | images/s | of the faster bare loop | cost of one expert |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for size in options.sizes:
        rates[size] = measure(size, options)
        median = {name: statistics.median(values) for name, values in rates[size].items()}
        fastest_bare = max(rate for name, rate in median.items() if name.startswith("bare"))
        for name, rate in median.items():
            cost = f"{median[ONE] / rate:.2f}" if name.startswith("recame") else ""
            lines.append(f"| {size} | {name} | {rate:.0f} | {rate / fastest_bare:.2f} | {cost} |")
    text = "\n".join(lines)
    print(text)
    options.out.mkdir(exist_ok=True)
    result = {
        "command": f"python benchmarks/training/run.py --device {options.device} --sizes "
        f"{' '.join(options.sizes)} --batch {options.batch} --steps {options.steps} "
        f"--rounds {options.rounds}",
        "images_per_second": {
            size: {name: [round(rate, 1) for rate in found] for name, found in each.items()}
            for size, each in rates.items()
        },
        "environment": environment(),
    }
    (options.out / f"{options.device}.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / f"{options.device}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
