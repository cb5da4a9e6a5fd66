"""Two hundred new images of the same line: continue the old run, or train anew in the same time?

    python benchmarks/continuing/run.py --deeppcb MANIFEST.csv [--first 90s] [--then 60s]
        [--seeds 0 1] [--sets NAME ...] [--processor-time] [--runs DIR] [--out DIR]

Of each small set of `benchmarks/defaults` 200 training images are new: all those of one class,
which the old run has never seen, and others at random; that class's `val` images are new, too. The
old run trains without them. Then the same time is spent on a run that continues it
(`recame train --from RUN --add NEW`) and on one that begins anew with all images. All three are
judged on the same test images. A resumable queue; one thread a run (OMP_NUM_THREADS=1). With
`--processor-time` the budget counts the process's own seconds: on a machine that others share.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

import recame
from recame.durations import parse_duration
from recame.machine import environment
from recame.training.continuing import continuing_config

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "defaults"))
from run import Labelled, deeppcb, synth, write  # noqa: E402 - the folder beside this one

NEW_IMAGES = 200


def divided(manifest: Path, seed: int) -> tuple[Path, Path, str]:
    """The table of old images, that of new ones, and the new class, of middling frequency."""
    table = pd.read_csv(manifest)
    train = table[table["split"] == "train"]
    counts = train["label"].value_counts()
    name = str(counts.index[-3])
    is_new = (table["label"] == name) & table["split"].isin(["train", "val"])
    rest = train[(train["label"] != name) & (train["label"].map(counts) > 10)]
    taken = rest.sample(NEW_IMAGES - int(counts[name]), random_state=seed).index
    is_new |= table.index.isin(taken)
    paths = []
    for what, rows in (("old", ~is_new & (table["label"] != name)), ("new", is_new)):
        part = table[rows].assign(image=str(manifest.parent) + "/" + table["image"])
        paths.append(manifest.parent / f"{what}-{seed}.csv")
        part.to_csv(paths[-1], index=False)
    return paths[0], paths[1], name


def trained(source: Path, config: recame.Config, out: Path, console: Console) -> Path:
    """A run, trained unless it is there."""
    started = (out / "run.json").exists()
    if not started or json.loads((out / "run.json").read_text())["state"] != "finished":
        recame.train(source, config, out=out, resume=started, console=console)
    return out


def judged(run: Path, manifest: Path, new_class: str, known: bool) -> dict[str, float]:
    """Recalls on the test images, of classes that the run knows."""
    table = pd.read_csv(manifest)
    test = table[(table["split"] == "test") & (known | (table["label"] != new_class))]
    path = run / "test.csv"
    test.assign(image=str(manifest.parent) + "/" + test["image"]).to_csv(path, index=False)
    result = recame.evaluate(run, path, name="all-test", report=False)
    found = result.predictions
    names = np.array(recame.RunFolder.open(run).label_space().names)
    truth, called = names[found.target], names[found.probabilities.argmax(1)]
    recalls = pd.Series(truth == called).groupby(truth).mean()
    figures = {"old_classes": recalls.drop(new_class, errors="ignore").mean()}
    if known:
        figures |= {"balanced_accuracy": recalls.mean(), "new_class": recalls[new_class]}
    return figures


def main() -> None:
    """Run the queue and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deeppcb", type=Path)
    parser.add_argument("--first", default="90s", help="time of the old run")
    parser.add_argument("--then", default="60s", help="time of both others")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sets", nargs="+", default=["synth small", "deeppcb small"])
    parser.add_argument("--runs", type=Path, default=Path("runs/continuing"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        time.monotonic = time.perf_counter = time.process_time
    makers: dict[str, Callable[[], Labelled]] = {
        "synth small": synth,
        "deeppcb small": lambda: deeppcb(options.deeppcb),
    }
    console, rows = Console(), []
    first, then = (parse_duration(text) for text in (options.first, options.then))
    for seed in options.seeds:
        for name in options.sets:
            folder = options.runs.resolve() / name.replace(" ", "-")
            manifest = write(makers[name](), folder / "set")
            old, new, new_class = divided(manifest, seed)
            console.rule(f"{name}, seed {seed}, new class {new_class}")
            plain = recame.Config().updated({"run.seed": seed, "run.time_budget_s": first})
            before = trained(old, plain, folder / f"old-{seed}", console)
            changes = {"run.time_budget_s": then, "run.seed": seed}
            more = continuing_config(before, add=True).updated(changes)
            runs = {
                "the old run": before,
                "continued": trained(new, more, folder / f"continued-{seed}", console),
                "anew": trained(manifest, plain.updated(changes), folder / f"anew-{seed}", console),
            }
            for method, run in runs.items():
                figures = judged(run, manifest, new_class, known=method != "the old run")
                rows.append({"set": name, "seed": seed, "method": method, **figures})
            save(pd.DataFrame(rows), options)


def save(results: pd.DataFrame, options: argparse.Namespace) -> None:
    """Write rows, a table of means and each seed's figures, and the machine."""
    options.out.mkdir(parents=True, exist_ok=True)
    results.to_csv(options.out / "results.csv", index=False, float_format="%.5f")
    columns = {"balanced_accuracy": "all classes", "old_classes": "old", "new_class": "new"}
    names = list(dict.fromkeys(results["set"]))
    heads = [f"{name}: {what}" for name in names for what in columns.values()]
    lines = [f"| mean recall of | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for method, found in results.groupby("method", sort=False):
        cells = []
        for name in names:
            for column in columns:
                values = found[found["set"] == name][column].dropna()
                each = ", ".join(f"{value:.3f}" for value in values)
                cells.append(f"**{values.mean():.3f}** ({each})" if len(values) else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (options.out / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
