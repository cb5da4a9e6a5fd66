"""Defects of a few pixels on large images: tiles beside whole images and plain recipes.

    python benchmarks/tiles/run.py --set ic_defect_synth_large --data DIR [--time-budget 10m]
        [--seeds 0 1 2] [--methods NAME ...] [--runs DIR] [--out DIR]

The set is generated in `DIR` where it is not there yet. Every method gets the same time on the
same images and is judged on the test split, which nothing else looks at. `own window` trains on
the window that holds the defect, told by the generator's truth: what could be had if it were known
where to look. A resumable queue: what is finished is not run again. Run nothing beside it, or two
at once with OMP_NUM_THREADS=1 and a core each. With PYTHONPATH at another checkout of recame
(and --methods default, --name NAME) that one is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

import recame
from recame.config import Config
from recame.durations import parse_duration
from recame.machine import environment

#: Fine-tuning as a plain timm script does it: one network, whole images, balanced softmax.
PLAIN: dict[str, object] = {
    "data.size": 224,
    "model.num_experts": 1,
    "model.attention": "none",
    "model.pooled_stages": 1,
    "model.classifier": "linear",
    "model.standardise": False,
    "objective.tau": 1,
    "objective.hard_weight": 0,
    "objective.contrastive_weight": 0,
    "objective.intra_weight": 0,
    "probe.enabled": False,
    "finetune.sampler": "instance",
    "finetune.freeze_batch_norm": False,
    "finetune.frozen_stages": 0,
    "finetune.lr": 2e-3,
    "evaluation.least_images_per_s": None,
    "augment.symmetry": "flips",
}
METHODS: dict[str, dict[str, object]] = {
    "default": {},
    "whole": {"data.tiles": 0},
    "plain fine-tuning at 224 px": PLAIN,
    "own window": {"data.context": 1.0, "data.size": 96},
}


def manifest_of(name: str, folder: Path, method: str) -> Path:
    """The set's table; for `own window` one whose boxes are the windows."""
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        from recame.datasets.registry import public_set

        public_set(name).prepare(None, folder)
    if method != "own window":
        return manifest
    boxes = folder / "windows.csv"
    truth = pd.read_csv(folder / "truth.csv")
    table = pd.read_csv(manifest)
    pd.concat([table, truth[["x", "y", "width", "height"]]], axis=1).to_csv(boxes, index=False)
    return boxes


def main() -> None:
    """Run what is not there yet, and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="ic_defect_synth_large")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--time-budget", default="10m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--name", help="of the method, where another checkout is measured")
    parser.add_argument("--runs", type=Path, default=Path("runs/tiles"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    words = parser.parse_args()
    budget = parse_duration(words.time_budget)
    for seed in words.seeds:
        for method in words.methods:
            name = words.name or method
            row = words.out / f"{words.set} {name} {words.time_budget} seed {seed}.json"
            if row.exists():
                print(row.read_text().strip())
                continue
            source = manifest_of(words.set, words.data, method)
            settings = {**METHODS[method], "run.seed": seed, "run.time_budget_s": budget}
            out = words.runs / f"{words.set}-{name.replace(' ', '-')}-{seed}"
            began = time.monotonic()
            recame.train(source, Config().updated(settings), out=out, console=Console())
            seconds = time.monotonic() - began
            recame.evaluate(out)
            figures = json.loads((out / "metrics.json").read_text())["test"]
            found = {
                "set": words.set,
                "method": name,
                "seed": seed,
                "budget_s": budget,
                "seconds": round(seconds, 1),
                **{
                    key: round(figures[key]["value"], 4)
                    for key in ("balanced_accuracy", "tail_recall", "worst_class_recall")
                },
                "reasons": json.loads((out / "reasons.json").read_text()),
                "machine": f"{environment()['processor']}, {torch.get_num_threads()} threads",
            }
            words.out.mkdir(parents=True, exist_ok=True)
            row.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(row.read_text().strip())


if __name__ == "__main__":
    main()
