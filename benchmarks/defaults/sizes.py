"""What size images are best brought to, in equal time: each size, and the one that is chosen.

    python benchmarks/defaults/sizes.py --sets "digits" "cells" --sizes 64 128 auto
        [--deeppcb MANIFEST.csv] [--cifar cifar10_lt100.zip] [--cells MANIFEST.csv]
        [--time-budget 90s] [--seeds 0 1] [--set NAME=VALUE ...] [--processor-time]
        [--runs DIR] [--out DIR]

The sets of `run.py` and two small ones of larger images, judged as there. The queue is resumable,
and each call writes the table of all runs that are there. One thread (OMP_NUM_THREADS=1). With
`--processor-time` the budget counts the process's own seconds: on a machine that others share.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from run import HERE, Labelled, cifar, deeppcb, digits, run_one, subset, synth, write

from recame.config import FinetuneConfig, parse_settings
from recame.datasets.generated import SyntheticSpec, generate
from recame.durations import parse_duration
from recame.machine import environment
from recame.runs.folder import RunFolder


def cells(manifest: Path) -> Labelled:
    """Solar cells of ELPV, 300 px, of its train and val: 240 training images, 150 to 15."""
    table = pd.read_csv(manifest)
    table = table[table["split"].isin(["train", "val"])]
    pixels = [np.asarray(Image.open(manifest.parent / name)) for name in table["image"]]
    return subset(pixels, table["label"].to_numpy(), [150, 50, 25, 15], 10, 40)


def synth_large() -> Labelled:
    """ICDefectSynth drawn at 192 px: 306 training images of 10 classes, 50 to 1 about."""
    spec = SyntheticSpec(
        num_images=1006,
        num_classes=10,
        num_products=8,
        imbalance=50,
        size=192,
        val_per_class=10,
        test_per_class=60,
        seed=3,
    )
    pixels, table = generate(spec)
    yield from zip(pixels, table["label"], table["split"], strict=True)


def runs(folder: Path) -> Iterator[dict[str, object]]:
    """A row for each judged run."""
    for out in sorted(folder.glob("*@*@*@*")):
        if not (out / "evaluation" / "test").exists():
            continue
        name, method, _, seed = out.name.split("@")
        run = RunFolder.open(out)
        config, info = run.load_config(), run.info()
        took = (pd.Timestamp(info["finished"]) - pd.Timestamp(info["started"])).total_seconds()
        metrics = json.loads((out / "metrics.json").read_text())["test"]
        yield {
            "set": name,
            "asked": method,
            "budget_s": config.run.time_budget_s,
            "seed": int(seed),
            "size": config.data.size,
            "balanced_accuracy": metrics["balanced_accuracy"]["value"],
            "tail_recall": metrics["tail_recall"]["value"],
            "kept": json.loads((out / "phases.json").read_text())["kept"],
            "views": config.evaluation.views,
            "frozen_stages": config.finetune.frozen_stages,
            "images_shown": _shown(config.finetune),
            "search_s": info.get("seconds", {}).get("size", 0.0),
            "train_s": took,
        }


def _shown(settings: FinetuneConfig) -> int:
    """Images that fine-tuning showed, whole epochs or as many steps as fitted."""
    if not settings.enabled:
        return 0
    if settings.steps is not None:
        return settings.steps * settings.batch_size
    return int(settings.epochs) * int(settings.epoch_size)


def main() -> None:
    """Run the queue and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deeppcb", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--cells", type=Path)
    parser.add_argument("--sets", nargs="+", default=["digits", "synth small", "synth large"])
    parser.add_argument("--sizes", nargs="+", default=["auto"])
    parser.add_argument("--set", dest="settings", nargs="*", default=[])
    parser.add_argument("--time-budget", default="90s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs/sizes"))
    parser.add_argument("--out", type=Path, default=HERE / "results-sizes")
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        time.monotonic = time.perf_counter = time.process_time
    kept, console = options.runs, Console()
    makers: dict[str, Callable[[], Labelled]] = {
        "digits": digits,
        "synth small": synth,
        "synth large": synth_large,
        "deeppcb small": lambda: deeppcb(options.deeppcb),
        "cifar small": lambda: cifar(options.cifar),
        "cells": lambda: cells(options.cells),
    }
    for name in options.sets:
        manifest = write(makers[name](), kept / "sets" / name.replace(" ", "-"))
        for seed in options.seeds:
            for size in options.sizes:
                method = " ".join([size, *options.settings])
                console.rule(f"{name}: {method}, seed {seed}")
                changes = parse_settings([f"data.size={size}", *options.settings])
                changes |= {
                    "run.seed": seed,
                    "run.time_budget_s": parse_duration(options.time_budget),
                }
                out = kept / f"{name}@{method}@{options.time_budget}@{seed}"
                run_one(manifest, changes, out, console)
    save(pd.DataFrame(runs(kept)), options.out)


def save(results: pd.DataFrame, folder: Path) -> None:
    """Write the rows, a table of each seed's balanced accuracy, and the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    results.to_csv(folder / "results.csv", index=False, float_format="%.5f")
    asked = results["asked"] + results["budget_s"].map(" in {:g} s".format)
    cells = results.assign(asked=asked).pivot_table(
        "balanced_accuracy", "asked", "set", scores, sort=False
    )
    lines = [
        f"| data.size | {' | '.join(cells.columns)} |",
        "| --- " * (1 + len(cells.columns)) + "|",
        *(f"| {name} | {' | '.join(row.fillna(''))} |" for name, row in cells.iterrows()),
    ]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    print("\n".join(lines))


def scores(values: pd.Series) -> str:
    """Each seed's balanced accuracy."""
    return ", ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
