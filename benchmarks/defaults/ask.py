"""Which value of a setting is better in the same time? Variants of the default, on several sets.

    python benchmarks/defaults/ask.py benchmarks/defaults/questions/lr.yaml
        [--data deeppcb=MANIFEST.csv cifar=ARCHIVE.zip cells=MANIFEST.csv] [--only TEXT ...]
        [--processor-time] [--runs DIR] [--out DIR]

A question has a `title`, `times`, `draws`, `sets` (of `tuning_sets.py`; all if left out),
`settings` of all runs, if any, and `variants`: name -> settings. A draw has its own images and its
own seed of training, the same for all variants, so differences to the first variant are paired.
Each run leaves a JSON file, so what is finished is not run again; `table.md` has the means, and the
differences with 95 % intervals over draws and sets. `--only` keeps runs whose names hold each TEXT:
two calls can share the work. With `--processor-time` the budget counts the process's own seconds:
on a machine that others share. It does not undo that others use its caches and memory, so give a
question all variants of a draw in one go, with nothing else beside; where no variant changes the
length of a step, ask by a number of steps (`questions/lr_by_steps.yaml`; docs/decisions/0045).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from contest import keep
from rich.console import Console
from run import HERE, Labelled, write
from scipy.stats import t as student
from tuning_sets import tuning_sets

import recame
from recame.durations import parse_duration
from recame.machine import environment
from recame.pages.render import markdown_table


class Job(NamedTuple):
    """One run."""

    set: str
    time: str
    draw: int
    variant: str

    @property
    def name(self) -> str:
        """Of its files."""
        return "@".join(map(str, self)).replace(" ", "-").replace(",", "")


def jobs_of(asked: dict[str, Any], sets: list[str]) -> Iterator[Job]:
    """The runs of a question, all variants of a draw one after the other."""
    for budget in asked["times"]:
        for draw in range(asked["draws"]):
            for name in asked.get("sets", sets):
                if name in sets:
                    yield from (Job(name, budget, draw, each) for each in asked["variants"])


def trained(manifest: Path, settings: dict[str, Any], out: Path, console: Console) -> dict:
    """Train and judge on `test`."""
    started = (out / "run.json").exists()
    if not started or json.loads((out / "run.json").read_text())["state"] != "finished":
        config = recame.Config().updated(settings)
        recame.train(manifest, config, out=out, resume=started, console=console)
    recame.evaluate(out, report=False)
    metrics = json.loads((out / "metrics.json").read_text())["test"]
    phases = json.loads((out / "phases.json").read_text())
    config = recame.RunFolder.open(out).load_config()
    history = pd.read_csv(out / "history.csv") if (out / "history.csv").exists() else pd.DataFrame()
    return {
        "balanced_accuracy": metrics["balanced_accuracy"]["value"],
        "tail_recall": metrics["tail_recall"]["value"],
        "val": phases.get("val_balanced_accuracy", {}),
        "kept": phases.get("kept", ""),
        "size": config.data.size,
        "views": config.evaluation.views,
        "experts": config.model.num_experts,
        "silent": float(history["work/silent"].iloc[-1]) if "work/silent" in history else None,
    }


def table_of(folder: Path, asked: dict[str, Any]) -> str:
    """Means by set and time, and the paired differences to the first variant."""
    rows = pd.DataFrame([json.loads(path.read_text()) for path in sorted(folder.glob("*@*.json"))])
    wide = rows.pivot_table("balanced_accuracy", ["time", "set", "draw"], "variant")
    variants = [name for name in asked["variants"] if name in wide]
    means = []
    for (budget, name), found in wide.groupby(level=[0, 1], sort=False):
        scores = found[variants].mean()
        told = ["" if math.isnan(score) else f"{score:.3f}" for score in scores]
        means.append([budget, name, len(found), *told])
    table = markdown_table(["time", "set", "draws", *variants], means, left=2)
    against = f"Against {variants[0]}, in points: mean over sets and draws, 95 % interval."
    text = [f"# {asked['title']}", "", table, "", against, ""]
    for budget, found in wide.groupby(level=0, sort=False):
        for name in variants[1:]:
            gaps = 100 * (found[name] - found[variants[0]]).dropna()
            if len(gaps) < 2:
                one = f"{gaps.mean():+.1f}, one pair: no interval" if len(gaps) else "not run"
                text.append(f"- {budget}, {name}: {one}")
                continue
            half = student.ppf(0.975, len(gaps) - 1) * gaps.std() / math.sqrt(len(gaps))
            low, high = gaps.mean() - half, gaps.mean() + half
            span = f"{gaps.mean():+.1f} ({low:+.1f} to {high:+.1f})"
            text.append(f"- {budget}, {name}: {span}, {len(gaps)} pairs")
    return "\n".join(text) + "\n"


def main() -> None:
    """Run what is left of the question, and write its table after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", type=Path)
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--runs", type=Path, default=Path("runs/ask"))
    parser.add_argument("--out", type=Path, default=HERE / "results-ask")
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        time.monotonic = time.perf_counter = time.process_time
    asked = yaml.safe_load(options.question.read_text(encoding="utf-8"))
    out, console = options.out / options.question.stem, Console()
    data = {name: Path(path) for name, _, path in (each.partition("=") for each in options.data)}
    for job in jobs_of(asked, list(tuning_sets(data, 0))):
        result = out / f"{job.name}.json"
        if result.exists() or any(text not in job.name for text in options.only):
            continue
        console.rule(job.name)
        made: Labelled = tuning_sets(data, job.draw)[job.set]()
        slug = f"{job.set}-{job.draw}".replace(" ", "-")
        manifest = write(made, options.runs.resolve() / "sets" / slug)
        fixed = {"run.seed": job.draw, "run.time_budget_s": parse_duration(job.time)}
        settings = {**asked.get("settings", {}), **asked["variants"][job.variant], **fixed}
        found = trained(manifest, settings, options.runs / out.name / job.name, console)
        keep(result, {**job._asdict(), **found})
        keep(out / "environment.json", environment())
        (out / "table.md").write_text(table_of(out, asked), encoding="utf-8")


if __name__ == "__main__":
    main()
