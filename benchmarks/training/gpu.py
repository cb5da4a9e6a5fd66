"""Images a second of `recame train` on a GPU beside a straightforward loop; is it device-bound?

    python benchmarks/training/gpu.py [--batch-sizes 16 128] [--rounds 2] [--compile] [--kernels]

Two ResNet-101 experts with regional attention, 224 px, the whole published objective, 31 classes.
The loop: float32 as torch comes (TF32 in convolutions), the network and its losses called as they
read, Python loops over image pairs and experts (`benchmarks/objective/loops.py`), images in memory,
SGD. `recame train` does the same through its real trainer, from its cache of decoded images, with
flips, turns and a history; timed is the epoch after the first. All in one process, in turn.
"Busy" is the share of samples in which the driver saw the GPU at work.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from PIL import Image

import recame
from recame.contracts import PreprocessSpec
from recame.machine import environment
from recame.models import Architecture, MultiExpertClassifier

sys.path.append(str(Path(__file__).parents[1] / "objective"))
from loops import loop_objective

CLASSES, IMAGES = 31, 256
NETWORK = {"backbone": "resnet101", "num_experts": 2, "attention": "regional"}
OBJECTIVE = {
    "objective.hard_weight": 1,
    "objective.distillation_weight": 0.6,
    "objective.hard_distillation_weight": 0.6,
    "objective.contrastive_weight": 0.05,
    "objective.intra_weight": 0.000625,
    "objective.margin": 20,
    "objective.normalise_features": False,
}
WAYS: dict[str, dict[str, object]] = {
    "recame, run.cuda_graph=false": {"run.cuda_graph": False},
    "recame": {},
    "recame, run.compile": {"run.compile": True},
}
LOOP = "straightforward loop, fp32"
#: (batch size, way) -> (images/s, busy) of each round.
Rows = dict[tuple[int, str], list[tuple[float, float]]]
#: Steps of one measurement: of a loop and of an epoch.
LOOP_STEPS, EPOCH_STEPS = {16: 10, 128: 2}, {16: 40, 128: 10}


class Busy:
    """Share of the time in which the GPU did something, sampled beside the work."""

    def __enter__(self) -> Self:
        """Start sampling."""
        self._over, self._seen = threading.Event(), list[tuple[float, int]]()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._seen.append((time.time(), torch.cuda.utilization()))

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def share(self, begins: float, ends: float) -> float:
        """Mean between two `time.time()`; the driver's figure is of up to a second before."""
        found = [busy for at, busy in self._seen if begins + 0.2 * (ends - begins) <= at <= ends]
        return statistics.mean(found) / 100 if found else float("nan")


def write_images(folder: Path, side: int) -> Path:
    """Noise images with labels, all in the training split."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        name = f"{number:05d}.png"
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, compress_level=0)
        rows.append({"image": name, "label": f"c{number % CLASSES:02d}", "split": "train"})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def straightforward(batch: int, side: int) -> tuple[float, float]:
    """Images a second, and how busy the GPU was."""
    torch.manual_seed(0)
    spec = PreprocessSpec(side, side, 3, 8, 255.0, (0.5,) * 3, (0.25,) * 3)
    model = MultiExpertClassifier(Architecture(standardise=False, **NETWORK), CLASSES, spec)
    model = model.cuda().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=2e-4)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    target = torch.arange(batch) % CLASSES
    log_counts = torch.full((CLASSES,), float(IMAGES / CLASSES)).log().cuda()
    steps = LOOP_STEPS[batch]
    with Busy() as busy:
        for step in range(-1, steps):
            if step == 0:
                torch.cuda.synchronize()
                began = time.time()
            output = model(images.cuda().float() / 255)
            loss = loop_objective(output.logits, output.features, target.cuda(), log_counts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        ended = time.time()
    return steps * batch / (ended - began), busy.share(began, ended)


def trained(
    manifest: Path, batch: int, side: int, changes: dict[str, object]
) -> tuple[float, float]:
    """The same of a real run."""
    settings: dict[str, object] = {
        "data.size": side,
        "data.channels": 3,
        "data.val_fraction": 0.0,
        "data.test_fraction": 0.0,
        **{f"model.{name}": value for name, value in NETWORK.items()},
        "model.shared_stages": 0,
        "model.pooled_stages": 1,
        "model.pretrained": False,
        "model.standardise": False,
        "augment.symmetry": "square",
        **OBJECTIVE,
        "probe.enabled": False,
        "finetune.optimizer": "sgd",
        "finetune.lr": 0.001,
        "finetune.head_lr": 0.001,
        "finetune.ema_decay": 0,
        "finetune.clip_norm": 0,
        "finetune.epochs": 2,
        "finetune.epoch_size": EPOCH_STEPS[batch] * batch,
        "finetune.batch_size": batch,
        "evaluation.views": 1,
        "run.accelerator": "gpu",
        **changes,
    }
    config = recame.Config().updated(settings)
    with tempfile.TemporaryDirectory() as folder, Busy() as busy:
        run = recame.train(manifest, config, out=Path(folder) / "run")
        taken = float(pd.read_csv(run.history_path)["seconds"].iloc[-1])
        ended = run.history_path.stat().st_mtime  # written as the epoch ends
    return EPOCH_STEPS[batch] * batch / taken, busy.share(ended - taken, ended)


def show_kernels(manifest: Path, batch: int, side: int) -> None:
    """Where the GPU's time goes in ordinary steps of `recame train`."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        trained(manifest, batch, side, {"run.cuda_graph": False})
    print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=25))


def table(rows: Rows) -> str:
    """Medians over the rounds so far, as Markdown."""
    lines = [
        "| batch | what | images/s | times the loop | GPU busy |",
        "| --: | --- | --: | --: | --: |",
    ]
    for (batch, name), found in rows.items():
        rate, busy = (statistics.median(values) for values in zip(*found, strict=True))
        slow = statistics.median(rate for rate, _ in rows[batch, LOOP])
        lines.append(f"| {batch} | {name} | {rate:.0f} | {rate / slow:.1f} | {busy:.0%} |")
    return "\n".join(lines)


def save(rows: Rows, options: argparse.Namespace) -> None:
    """Write what is known so far: a lent GPU may be gone before the end."""
    options.out.mkdir(exist_ok=True, parents=True)
    sizes = " ".join(map(str, options.batch_sizes))
    result = {
        "command": f"python benchmarks/training/gpu.py --batch-sizes {sizes} --size {options.size} "
        f"--rounds {options.rounds}{' --compile' * options.compile}",
        "rounds": "images/s, busy",
        "rows": [
            {"batch": batch, "what": name, "rounds": [[round(v, 3) for v in f] for f in found]}
            for (batch, name), found in rows.items()
        ],
        "environment": environment(),
    }
    (options.out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "gpu.md").write_text(table(rows) + "\n")


def main() -> None:
    """Measure in turn, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="run.compile too: minutes")
    parser.add_argument(
        "--kernels", action="store_true", help="only say what the GPU's time goes to"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_images(Path(folder), options.size)
        if options.kernels:
            for batch in options.batch_sizes:
                show_kernels(manifest, batch, options.size)
            return
        ways: dict[str, Callable[[int], tuple[float, float]]] = {
            LOOP: lambda batch: straightforward(batch, options.size)
        }
        for name, changes in WAYS.items():
            if options.compile or "compile" not in name:
                ways[name] = lambda batch, changes=changes: trained(
                    manifest, batch, options.size, changes
                )
        for _ in range(options.rounds):
            for batch in options.batch_sizes:
                for name, way in ways.items():
                    rate, busy = way(batch)
                    rows.setdefault((batch, name), []).append((rate, busy))
                    save(rows, options)
                    gc.collect()
                    torch.cuda.empty_cache()
                    print(
                        f"  B = {batch}, {name}: {rate:.0f} images/s, busy {busy:.0%}", flush=True
                    )
    print(table(rows))


if __name__ == "__main__":
    main()
