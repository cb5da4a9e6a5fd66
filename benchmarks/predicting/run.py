"""How soon does a finished run answer? By its graph, in torch, and beside a plain timm network.

`python benchmarks/predicting/run.py` makes images and a run of each size first, then times whole
processes, imports included, from files to a table: `recame predict` on the run's folder, the same
without its graph, and a short script that loads the same backbone from timm and runs it in eager
torch. They take turns, so that a machine's drift falls on all of them. In brackets are seconds of
the processor, all threads together, which other programs disturb less. Nothing else should run.
`--out DIR` also writes `results.json` there, with the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from recame.config import height_width

SIZES, COUNTS = ("128", "224", "96x320"), (1, 30, 300, 2000)
BACKBONE = "tf_efficientnet_lite0"
SETTINGS = {
    "model.backbone": BACKBONE,
    "data.val_fraction": 0.05,
    "data.test_fraction": 0.05,
    "probe.enabled": False,
    "finetune.batch_size": 16,
    "finetune.epochs": 1,
    "finetune.epoch_size": 32,
    "evaluation.bootstrap": 50,
}

#: As short as people write it: decode, resize, one batch after the other.
PLAIN = """
import csv, sys
import numpy as np, timm, torch
from PIL import Image
from pathlib import Path
height, width, classes = int(sys.argv[3]), int(sys.argv[4]), 2
model = timm.create_model(sys.argv[5], pretrained=False, num_classes=classes).eval()
files = sorted(Path(sys.argv[1]).glob("*.png"))
with open(sys.argv[2], "w", newline="") as out, torch.inference_mode():
    table = csv.writer(out)
    for start in range(0, len(files), 64):
        part = files[start : start + 64]
        pixels = [np.asarray(Image.open(f).convert("RGB").resize((width, height))) for f in part]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div(255)
        for file, row in zip(part, model((batch - 0.5) / 0.5).softmax(1)):
            table.writerow([file, *row.tolist()])
"""
VERB = "from recame.cli import main; main()"


def prepare(folder: Path, size: str, views: int, networks: int) -> None:
    """Images in two classes, folders of some of them, and the run with and without its graph."""
    import recame

    rng = np.random.default_rng(0)
    height, width = height_width(size)
    pictures = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(50)]
    for name, level in (("ok", 0), ("spot", 90)):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(60):
            image = pictures[number % 50].copy()
            image[: height // 4, : width // 4] //= 2
            image[: height // 4, : width // 4] += np.uint8(level)
            Image.fromarray(image).save(folder / "train" / name / f"{number}.png")
    for count in COUNTS:
        (folder / f"{count}").mkdir()
        for number in range(count):
            shifted = np.roll(pictures[number % 50], number, 0)
            Image.fromarray(shifted).save(folder / f"{count}" / f"{number:05d}.png")
    changes = {"data.size": size, "evaluation.views": views, "model.num_experts": networks}
    run = recame.train(
        folder / "train", recame.Config().updated(SETTINGS | changes), out=folder / "run"
    ).path
    assert (run / "graph" / "model.onnx").exists()
    shutil.copytree(run, folder / "without", ignore=shutil.ignore_patterns("graph"))


def seconds(folder: Path, way: str, count: int, size: str) -> tuple[float, float]:
    """Of a whole process, from its start to the table on the disk; and those of its processor."""
    images, out = folder / f"{count}", folder / "out.csv"
    out.unlink(missing_ok=True)
    if way == "timm":
        command = [sys.executable, "-c", PLAIN, images, out, *height_width(size), BACKBONE]
    else:
        run = folder / {"graph": "run", "torch": "without"}[way]
        command = [sys.executable, "-c", VERB, "predict", run, images, "--out", out, "--fresh"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    took, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert out.exists()
    return took, used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--rounds", type=int, default=3, help="turns; of 300 images and more one")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--networks", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a folder for results.json")
    asked = parser.parse_args()
    ways, rows = ("graph", "torch", "timm"), []
    print(
        "| px | images | run, graph, s | run, torch, s | timm, torch, s | torch / graph | ", end=""
    )
    print("timm / graph |\n| --: | --: | --: | --: | --: | --: | --: |", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ |= {"RECAME_CACHE": f"{temporary}/cache", "GOMP_SPINCOUNT": "5000"}
        for size in asked.sizes:
            folder = Path(temporary) / size
            prepare(folder, size, asked.views, asked.networks)
            for count in asked.counts:
                took: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
                for turn in range(1 if count >= 300 else asked.rounds):
                    for way in ways[:: -1 if turn % 2 else 1]:
                        took[way].append(seconds(folder, way, count, size))
                rows.append({"size": size, "images": count, "seconds": took})
                told = {
                    way: [statistics.median(each) for each in zip(*took[way], strict=True)]
                    for way in ways
                }
                cells = [f"{wall:.2f} ({used:.2f})" for wall, used in told.values()]
                cells += [
                    f"{told[way][0] / told['graph'][0]:.1f} ({told[way][1] / told['graph'][1]:.1f})"
                    for way in ways[1:]
                ]
                print("|", " | ".join((size, f"{count:,}", *cells)), "|", flush=True)
    if asked.out is not None:
        from recame.machine import environment

        asked.out.mkdir(parents=True, exist_ok=True)
        told = {"views": asked.views, "networks": asked.networks, "environment": environment()}
        text = json.dumps({**told, "rows": rows}, indent=2)
        (asked.out / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
