"""The demo: compare a plain baseline and ReCAME-Net on a generated long-tailed inspection set.

Run with `make demo`, or `python examples/demo.py --out FOLDER --train-time 115s`.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import recame
from recame.datasets.generated import CLASSES, SyntheticSpec, write
from recame.durations import parse_duration
from recame.progress import progress_bars
from recame.reports.evaluate import EvaluatedRun, report

#: Small enough for minutes: 10 of the 14 classes, 8 product lines, 100 to 1.
SET = SyntheticSpec(
    num_images=3000,
    num_classes=10,
    num_products=8,
    imbalance=100,
    val_per_class=20,
    test_per_class=60,
    seed=1,
)

#: Further images of the same products for `recame tune`, which train nothing: 150 of each class.
FRESH = replace(SET, num_images=2000, val_per_class=5, test_per_class=150, seed=5)

#: A simple baseline: one network, cross-entropy, no frozen-feature probing.
PLAIN = {
    "model.num_experts": 1,
    "model.attention": "none",
    "model.pooled_stages": 1,
    "model.classifier": "linear",
    "model.standardise": False,
    "probe.enabled": False,
    "objective.base": "cross_entropy",
    "objective.hard_weight": 0,
    "objective.contrastive_weight": 0,
    "objective.intra_weight": 0,
    "finetune.sampler": "instance",
}
SHOWN = {
    "balanced_accuracy": "mean recall over the classes",
    "tail_recall": "mean recall of the rarest classes",
    "worst_class_recall": "recall of the worst class",
    "escape_rate": "defects called normal (escapes)",
    "critical_escape_rate": "critical defects called normal",
    "overkill_rate": "normal called a defect (overkill)",
}


def main() -> None:
    """Generate, train twice, tune decisions, compare, report, predict."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--train-time", default="115s", help="of each of the two runs")
    options = parser.parse_args()
    console, began = Console(), time.monotonic()
    shutil.rmtree(options.out, ignore_errors=True)  # only for a demo: old results are removed

    console.rule("1. recame synth: a generated inspection set")
    with progress_bars(console) as bar:
        manifest = write(SET, options.out / "data", on_progress=bar)
    console.print(
        f"{manifest}: {SET.num_images:,} images, {SET.num_classes} classes on "
        f"{SET.num_products} product lines, {SET.imbalance:.0f} to 1",
        highlight=False,
    )

    settings = {
        "run.time_budget_s": parse_duration(options.train_time),
        "data.normal_class": CLASSES[0].name,
        "data.critical_classes": [c.name for c in CLASSES[: SET.num_classes] if c.critical],
    }
    runs: dict[str, EvaluatedRun] = {}
    for number, (name, changes) in enumerate({"plain": PLAIN, "recame": {}}.items(), 2):
        console.rule(f"{number}. recame train: {name}")
        config = recame.Config().updated({**settings, **changes})
        run = recame.train(manifest, config, out=options.out / name, console=console)
        if name == "recame":
            console.rule("4. recame tune: what may pass unseen")
            fresh = write(FRESH, options.out / "fresh")
            recame.tune(run.path, fresh, console=console)
        quiet = Console(quiet=True)
        runs[name] = recame.evaluate(
            run.path, report=False, console=console if name == "recame" else quiet
        )

    console.rule("5. recame report, recame predict")
    files = report(options.out / "recame", against=options.out / "plain", console=console)
    predictions = options.out / "predictions.csv"
    line = options.out / "data" / "images" / "P01"
    summary = recame.predict(options.out / "recame", line, out=predictions)

    console.rule("What it found")
    console.print(side_by_side(runs))
    console.print(
        f"Predictions of the {summary.num_images:,} images of product line P01: {predictions}",
        highlight=False,
        soft_wrap=True,
    )
    for what, page in (
        ("Report", files.html),
        ("Decisions", options.out / "recame/decisions.html"),
    ):
        console.print(
            f"{what}, open it in a browser: [bold]{page}[/bold]",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"{time.monotonic() - began:.0f} s in all", highlight=False)


def side_by_side(runs: dict[str, EvaluatedRun]) -> Table:
    """Headline numbers of both runs with their intervals."""
    table = Table("on test", *runs, box=None, header_style="dim", pad_edge=False)
    for name, meaning in SHOWN.items():
        cells = []
        for run in runs.values():
            found = run.evaluation.headline[name]
            assert found.value is not None
            cells.append(f"[bold]{found.value:.3f}[/bold] ({found.low:.3f}-{found.high:.3f})")
        table.add_row(meaning, *cells)
    return table


if __name__ == "__main__":
    main()
