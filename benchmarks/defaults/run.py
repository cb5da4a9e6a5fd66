"""The default of `recame train` beside plain recipes, on small sets of several kinds.

    python benchmarks/defaults/run.py --deeppcb MANIFEST.csv --cifar cifar10_lt100.zip
        [--whole NAME=MANIFEST.csv ...] [--time-budget 90s] [--seeds 0 1] [--runs DIR]
        [--sets NAME ...] [--methods NAME ...] [--out DIR]

`--whole` adds a set as it is, with the splits of its table.

Every method gets the same time on the same images and is judged on images that neither training
nor selection saw. A resumable queue: what is finished is not run again. Run nothing beside it:
time is what is being shared out. On two cores two may run side by side, a seed each, with
OMP_NUM_THREADS=1; a last call with both seeds then writes the table of all. With PYTHONPATH at
another checkout of recame (and --runs and --out elsewhere) that one is measured.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

import recame
from recame.datasets.generated import SyntheticSpec, generate
from recame.durations import parse_duration
from recame.machine import environment

HERE = Path(__file__).parent

PLAIN: dict[str, object] = {
    "model.num_experts": 1,
    "model.attention": "none",
    "model.pooled_stages": 1,
    "model.classifier": "linear",
    "model.standardise": False,
    "objective.tau": 1,
    "objective.hard_weight": 0,
    "objective.contrastive_weight": 0,
    "objective.intra_weight": 0,
    "finetune.sampler": "instance",
    "finetune.freeze_batch_norm": False,
    "finetune.frozen_stages": 0,
    "evaluation.least_images_per_s": None,
    "augment.mixup": 0.4,
}
#: Method -> settings. The plain recipes flip but do not turn, and average four views at test time.
METHODS: dict[str, dict[str, object]] = {
    "default": {},
    "probe: MLP, balanced softmax": {
        **PLAIN,
        "model.hidden": 256,
        "model.pooled_stages": 4,
        "model.dropout": 0.3,
        "model.standardise": True,
        "finetune.enabled": False,
        "augment.symmetry": "flips",
    },
    "fine-tuning, balanced softmax, mixup, lr 2e-3": {
        **PLAIN,
        "probe.enabled": False,
        "finetune.lr": 2e-3,
        "augment.symmetry": "flips",
    },
    "fine-tuning, balanced softmax, no mixup, lr 2e-3": {
        **PLAIN,
        "augment.mixup": 0,
        "probe.enabled": False,
        "finetune.lr": 2e-3,
        "augment.symmetry": "flips",
    },
    "fine-tuning, balanced softmax, no mixup, lr 5e-4": {
        **PLAIN,
        "augment.mixup": 0,
        "probe.enabled": False,
        "finetune.lr": 5e-4,
        "augment.symmetry": "flips",
    },
    "probe, then fine-tuning from it, lr 1e-4": {
        **PLAIN,
        "augment.mixup": 0,
        "model.hidden": 256,
        "model.pooled_stages": 4,
        "model.dropout": 0.3,
        "model.standardise": True,
        "finetune.lr": 1e-4,
        "finetune.head_lr": 1e-4,
        "finetune.freeze_batch_norm": True,
        "augment.symmetry": "flips",
        "run.keep": "best_phase",
    },
    "fine-tuning, square-root sampling, cross-entropy, no mixup, lr 2e-3": {
        **PLAIN,
        "objective.base": "cross_entropy",
        "augment.mixup": 0,
        "probe.enabled": False,
        "finetune.sampler": "square_root",
        "finetune.lr": 2e-3,
        "augment.symmetry": "flips",
    },
}

Labelled = Iterator[tuple[np.ndarray, str, str]]


def subset(pixels: list, labels: np.ndarray, train: list[int], val: int, test: int) -> Labelled:
    """Cut disjoint splits from a pool: `train[c]` images of class c, `val` and `test` of each."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(sorted(set(labels), key=lambda n: -np.sum(labels == n))):
        order = rng.permutation(np.flatnonzero(labels == name))
        bounds = np.cumsum([test, val, train[number]])
        for split, part in zip(("test", "val", "train"), np.split(order, bounds)[:3], strict=True):
            for index in part:
                yield pixels[index], str(name), split


def deeppcb(manifest: Path) -> Labelled:
    """DeepPCB-LT cut down: 977 training images, 600 to 2; val 12 and test 150 a class."""
    table = pd.read_csv(manifest)
    counts = {"false_call": 600, "mousebite": 200, "open": 100, "spur": 50}
    counts |= {"pin_hole": 20, "short": 5, "copper": 2}
    for split, sizes in (
        ("train", counts),
        ("val", dict.fromkeys(counts, 12)),
        ("test", dict.fromkeys(counts, 150)),
    ):
        for label, count in sizes.items():
            part = table[(table["split"] == split) & (table["label"] == label)]
            for name in part["image"].sample(count, random_state=0):
                yield np.asarray(Image.open(manifest.parent / name)), label, split


def digits() -> Labelled:
    """Handwritten digits of scikit-learn, enlarged: 262 training images, 90 to 2."""
    data = load_digits()
    pixels = [np.kron(image * 15.9, np.ones((4, 4))).astype(np.uint8) for image in data.images]
    train = [90, 60, 40, 26, 17, 11, 8, 5, 3, 2]
    return subset(pixels, np.array([f"d{t}" for t in data.target]), train, 8, 70)


def cifar(archive: Path) -> Labelled:
    """CIFAR-10: 1,239 training images of its test part, 500 to 5; val 12 and test 100 a class."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(n for n in files.namelist() if n.startswith("test/") and n.endswith(".jpg"))
        pixels = [np.asarray(Image.open(io.BytesIO(files.read(name)))) for name in names]
    train = [500, 300, 180, 107, 64, 38, 23, 14, 8, 5]
    return subset(pixels, np.array([n.split("/")[1] for n in names]), train, 12, 100)


def synth() -> Labelled:
    """ICDefectSynth: 1,500 training images of 10 classes, 100 to 1; val 12, test 100 a class."""
    spec = SyntheticSpec(
        num_images=2620,
        num_classes=10,
        num_products=8,
        imbalance=100,
        val_per_class=12,
        test_per_class=100,
        seed=2,
    )
    pixels, table = generate(spec)
    yield from zip(pixels, table["label"], table["split"], strict=True)


def write(images: Labelled, folder: Path) -> Path:
    """Write a set once as PNG files and a manifest."""
    manifest = folder / "manifest.csv"
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (pixels, label, split) in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:05d}.png")
        rows.append({"image": f"{number:05d}.png", "label": label, "split": split})
    pd.DataFrame(rows).to_csv(manifest, index=False)
    return manifest


def run_one(manifest: Path, settings: dict[str, object], out: Path, console: Console) -> dict:
    """Train and judge one method on one set, unless that was done before."""
    if not (out / "evaluation" / "test").exists():
        config = recame.Config().updated(settings)
        recame.train(manifest, config, out=out, resume=(out / "run.json").exists(), console=console)
        recame.evaluate(out, report=False, console=console)
    metrics = json.loads((out / "metrics.json").read_text())["test"]
    info = json.loads((out / "run.json").read_text())
    seconds = (pd.Timestamp(info["finished"]) - pd.Timestamp(info["started"])).total_seconds()
    return {
        "balanced_accuracy": metrics["balanced_accuracy"]["value"],
        "tail_recall": metrics["tail_recall"]["value"],
        "train_s": seconds,
    }


def scores(values: pd.Series) -> str:
    """The mean over the seeds, and each one's where there are several."""
    each = f" ({', '.join(f'{value:.3f}' for value in values)})" if len(values) > 1 else ""
    return f"**{values.mean():.3f}**{each}"


def main() -> None:
    """Run the queue and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deeppcb", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--whole", nargs="+", default=[], metavar="NAME=MANIFEST")
    parser.add_argument("--time-budget", default="90s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, help="default: runs/defaults-BUDGET")
    parser.add_argument("--sets", nargs="+", help="only these of the sets that are at hand")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, help="default: results-BUDGET beside this file")
    options = parser.parse_args()
    kept = options.runs or Path(f"runs/defaults-{options.time_budget}")
    folder = options.out or HERE / f"results-{options.time_budget}"
    console = Console()
    makers: dict[str, Callable[[], Labelled]] = {"digits": digits, "synth small": synth}
    if options.deeppcb:
        makers["deeppcb small"] = lambda: deeppcb(options.deeppcb)
    if options.cifar:
        makers["cifar small"] = lambda: cifar(options.cifar)
    whole = {
        name: Path(table) for name, _, table in (each.partition("=") for each in options.whole)
    }
    names = [name for name in (*makers, *whole) if name in (options.sets or (*makers, *whole))]
    rows = []
    for name in names:
        slug = name.replace(" ", "-")
        manifest = whole.get(name) or write(makers[name](), kept / "sets" / slug)
        for number, (method, settings) in enumerate(METHODS.items()):
            if method not in options.methods:
                continue
            for seed in options.seeds:
                console.rule(f"{name}: {method}, seed {seed}")
                changes = {
                    **settings,
                    "run.seed": seed,
                    "run.time_budget_s": parse_duration(options.time_budget),
                }
                out = kept / f"{slug}-{number}-{seed}"
                result = run_one(manifest, changes, out, console)
                rows.append({"set": name, "method": method, "seed": seed, **result})
    results = pd.DataFrame(rows)
    folder.mkdir(parents=True, exist_ok=True)
    results.to_csv(folder / "results.csv", index=False, float_format="%.5f")
    lines = [f"| method | {' | '.join(names)} |", "| --- " * (1 + len(names)) + "|"]
    for method, runs in results.groupby("method", sort=False):
        cells = [scores(runs[runs["set"] == name]["balanced_accuracy"]) for name in names]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
