"""The default against plain recipes by a plan, in pieces: what is finished is not run again.

    python benchmarks/defaults/contest.py benchmarks/defaults/plan.yaml [--list] [--hours 6]
        [--data deeppcb=MANIFEST.csv cifar=ARCHIVE.zip cells=MANIFEST.csv xsdd=MANIFEST.csv
            elpv=MANIFEST.csv]
        [--fastai PYTHON] [--only TEXT ...] [--with SETTING=VALUE ...] [--processor-time]
        [--runs DIR] [--out DIR]

Each run leaves one small JSON file in `results-contest`, to be committed after each piece: figures,
and what it called each test image, for paired intervals. Sets that are not given, and fastai
without its environment, are left for another call. `--hours` begins no run that would end later;
`--only` keeps jobs whose names hold each TEXT. Run one at a time, or two on two cores with
OMP_NUM_THREADS=1 and `--only` of disjoint sets. With `--processor-time` seconds are the process's
own: on a machine that others share; the results say so. `--with` changes settings of the recipes
that recame runs, all but the default, to ask what a detail of them costs; give it its own `--out`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from recipes import FASTAI, RECIPES, settings_of
from rich.console import Console
from run import cifar, deeppcb, digits, synth, write
from sizes import cells, synth_large
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold, train_test_split

import recame
from recame.data.proposal import native_size
from recame.durations import parse_duration
from recame.machine import environment
from recame.metrics.operating_point import escapes_at, normal_odds
from recame.training.planner import choose_size

HERE = Path(__file__).parent
#: One character a class, in what a run called each image.
SIGNS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: What start, decoding and judging add to the time of a run, at most.
OVERHEAD = 1.1
#: Overkill at which escapes are told.
OVERKILL = (0.01, 0.02)
TIMED = 256
#: Sets judged as they are, by the name of their manifest in `--data`.
WHOLE = {"x-sdd": "xsdd", "elpv": "elpv"}
#: `elpv fold 1` to `elpv fold 5`: its `train` and `val` cut anew, and `test` left alone.
FOLD, FOLDS = "elpv fold ", 5


@dataclass(frozen=True)
class Job:
    """One run: a recipe, a set, a time, a seed.

    Attributes:
        recipe: of `RECIPES`.
        set: of the plan.
        time: as `5m`.
        seed: of everything random.
        facts: what the plan says of the set.
    """

    recipe: str
    set: str
    time: str
    seed: int
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its files, without signs that a file system refuses."""
        number = list(RECIPES).index(self.recipe)
        return f"{self.set}@{self.time}@{self.seed}@{number}".replace(" ", "-")

    @property
    def core_s(self) -> float:
        """Seconds of one core, at most."""
        return OVERHEAD * parse_duration(self.time)


def jobs_of(plan: Path) -> list[Job]:
    """The plan's runs in order: every recipe of a set, a time and a seed before the next.

    Raises:
        SystemExit: it names a recipe that there is not.
    """
    asked = yaml.safe_load(plan.read_text(encoding="utf-8"))
    times = {
        time_: how if isinstance(how, dict) else {"seeds": how}
        for time_, how in asked["times"].items()
    }
    named = {
        *asked["recipes"],
        *(each for how in times.values() for each in how.get("recipes", ())),
    }
    if unknown := named - set(RECIPES):
        raise SystemExit(f"{plan}: unknown {', '.join(unknown)}; known: {', '.join(RECIPES)}")
    return [
        Job(recipe, name, time_, seed, facts)
        for time_, how in times.items()
        for seed in how["seeds"]
        for name, facts in asked["sets"].items()
        for recipe in how.get("recipes", asked["recipes"])
    ]


def makers(data: dict[str, Path]) -> dict[str, Callable[[], Iterator[tuple[np.ndarray, str, str]]]]:
    """Sets that can be made here."""
    found = {"digits": digits, "synth small": synth, "synth large": synth_large}
    given = {"deeppcb small": (deeppcb, "deeppcb"), "cifar small": (cifar, "cifar")}
    given |= {"cells": (cells, "cells")}
    for name, (make, key) in given.items():
        if key in data:
            found[name] = lambda make=make, path=data[key]: make(path)  # type: ignore[misc]
    return found


def fold(whole: Path, number: int, folder: Path) -> Path:
    """A manifest in which the images of a fold of `train` and `val` are `test`.

    Of the other images a fifth of each class is `val`. No image of the set's own `test` is in it.

    Args:
        whole: manifest of the set.
        number: of the fold, from 1.
        folder: where the manifest is written.
    """
    table = pd.read_csv(whole, dtype={"label": str})
    table = table[table["split"].isin(["train", "val"])].reset_index(drop=True)
    table["image"] = [str((whole.parent / name).resolve()) for name in table["image"]]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    rest, own = list(folds.split(table, table["label"]))[number - 1]
    val = train_test_split(rest, test_size=0.2, stratify=table["label"][rest], random_state=number)
    table["split"] = "train"
    table.loc[own, "split"] = "test"
    table.loc[val[1], "split"] = "val"
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def manifest_of(name: str, data: dict[str, Path], folder: Path) -> Path | None:
    """The manifest of a set, made where that is needed; None if its images are not given."""
    if name in WHOLE:
        return data.get(WHOLE[name])
    own = folder / name.replace(" ", "-")
    if name.startswith(FOLD):
        return fold(data["elpv"], int(name.removeprefix(FOLD)), own) if "elpv" in data else None
    make = makers(data).get(name)
    return None if make is None else write(make(), own)


def judged(
    probabilities: np.ndarray,
    target: np.ndarray,
    names: list[str],
    normal: str | None,
    train: pd.Series,
    *,
    ours: bool = False,
) -> dict[str, Any]:
    """The figures of a run, by scikit-learn, and what it called each image.

    With a normal class also the rank of each image by how normal it looks, 0 the least.

    Args:
        probabilities: (N, C), columns in the order of `names`.
        target: (N,) positions in `names`.
        names: C classes.
        normal: the class without a defect.
        train: labels of the training images.
        ours: whether normal images are told as `recame tune` tells them; plain recipes have the
            probability of the normal class.
    """
    called = probabilities.argmax(1)
    figures = {
        "balanced_accuracy": float(balanced_accuracy_score(target, called)),
        "macro_f1": float(f1_score(target, called, average="macro")),
    }
    if normal is not None:
        own = names.index(normal)
        counts = train.value_counts().reindex(names).fillna(0).to_numpy(np.float64)
        score = normal_odds(probabilities, own, counts) if ours else probabilities[:, own]
        figures |= {
            f"escapes_at_{share:.0%}".replace("%", "_percent"): escapes_at(
                score, target, own, counts, share
            )
            for share in OVERKILL
        }
        # With these the escapes of two recipes can be compared on the same images.
        ranks = np.unique(score, return_inverse=True)[1]
        figures |= {"normal": normal, "release_ranks": ranks.tolist()}
        figures |= {"train_counts": counts.astype(int).tolist()}
    signs = {"target": target, "called": called}
    told = {name: "".join(SIGNS[index] for index in each) for name, each in signs.items()}
    return {**figures, "classes": names, **told}


def aligned(
    table: pd.DataFrame, probabilities: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities, targets and names with the classes in alphabetical order, alike for all."""
    names = sorted(set(classes))
    columns = [classes.index(name) for name in names]
    target = pd.Index(names).get_indexer(pd.Index(table["label"]))
    return probabilities[:, columns], target, names


def run_recame(
    job: Job, manifest: Path, out: Path, console: Console, changes: dict[str, str]
) -> dict[str, Any]:
    """Train and judge a recipe of recame's; the rate is that of `recame predict` on files."""
    table = pd.read_csv(manifest, dtype={"label": str})
    paths = [manifest.parent / name for name in table["image"]]
    size, _ = choose_size(native_size(paths, context=2.0))
    settings = settings_of(job.recipe, str(job.facts["symmetry"]), size)
    settings |= {} if job.recipe == "default" else changes
    settings |= {"run.seed": job.seed, "run.time_budget_s": parse_duration(job.time)}
    config = recame.Config().updated(settings)
    began, started = time.monotonic(), (out / "run.json").exists()
    if not started or json.loads((out / "run.json").read_text())["state"] != "finished":
        recame.train(manifest, config, out=out, resume=started, console=console)
    seconds = time.monotonic() - began
    found = recame.evaluate(out, report=False)
    names = list(recame.RunFolder.open(out).label_space().names)
    order = found.predictions.table.set_index("image")["label"].to_frame()
    wanted = table[table["split"] == "test"]["image"]
    at = pd.Index(order.index).get_indexer(pd.Index(wanted))
    figures = aligned(order.iloc[at], found.predictions.probabilities[at], names)
    train = table["label"][table["split"] == "train"]
    return {
        **judged(*figures, job.facts.get("normal"), train, ours=job.recipe == "default"),
        "seconds": seconds,
        "images_per_s": rate(out, [manifest.parent / name for name in wanted]),
        "version": f"recame {recame.__version__}",
        "kept": json.loads((out / "phases.json").read_text()).get("kept", ""),
    }


def rate(run: Path, paths: list[Path]) -> float:
    """Images a second from files, with one thread, once it is warm."""
    model = recame.load(run, threads=1)
    few = [str(path) for path in paths[:TIMED]]
    list(model.stream(few[:32]))
    began = time.monotonic()
    list(model.stream(few))
    return len(few) / (time.monotonic() - began)


def run_fastai(
    job: Job, manifest: Path, out: Path, python: Path, options: list[str]
) -> dict[str, Any]:
    """The same by fastai, in its own environment."""
    file = out / "found.npz"
    words: list[str | Path] = [python, HERE / "fastai_recipe.py", manifest, "--out", file]
    words += ["--seconds", str(parse_duration(job.time)), "--seed", str(job.seed)]
    words += ["--symmetry", str(job.facts["symmetry"]), *options]
    subprocess.run(list(map(str, words)), check=True)
    found = np.load(file)
    table = pd.read_csv(manifest, dtype={"label": str})
    test = table[table["split"] == "test"]
    names = [str(name) for name in found["names"]]
    figures = aligned(test, found["probabilities"], names)
    return {
        **judged(*figures, job.facts.get("normal"), table["label"][table["split"] == "train"]),
        "seconds": float(found["seconds"]),
        "images_per_s": float(found["images_per_s"]),
        "version": str(found["version"]),
        "kept": f"{int(found['epochs'])} epochs",
    }


def main() -> None:
    """Run what is left of the plan, and write each result when it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--list", action="store_true", help="what is left, and its core-hours")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--fastai", type=Path, help="python of an environment with fastai")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--with", nargs="+", default=[], dest="changes", metavar="SETTING=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs/contest"))
    parser.add_argument("--out", type=Path, default=HERE / "results-contest")
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        time.monotonic = time.perf_counter = time.process_time
    jobs = jobs_of(options.plan)
    left = [job for job in jobs if not (options.out / f"{job.name}.json").exists()]
    left = [job for job in left if all(text in job.name for text in options.only)]
    hours = sum(job.core_s for job in left) / 3600
    print(f"{len(left)} of {len(jobs)} runs are left: at most {hours:.1f} core-hours")
    if options.list:
        print("\n".join(f"{job.name}  {job.recipe}" for job in left))
        return
    data = {name: Path(path) for name, _, path in (each.partition("=") for each in options.data)}
    changes = {name: value for name, _, value in (each.partition("=") for each in options.changes)}
    ends, console = time.time() + 3600 * options.hours, Console()
    for job in left:
        if job.recipe == FASTAI and options.fastai is None:
            continue
        manifest = manifest_of(job.set, data, options.runs.resolve() / "sets")
        if manifest is None:
            continue
        if time.time() + job.core_s > ends:
            break
        console.rule(f"{job.name}: {job.recipe}")
        out = options.runs / job.name
        if job.recipe == FASTAI:
            own = ["--processor-time"] if options.processor_time else []
            found = run_fastai(job, manifest, out, options.fastai, own)
        else:
            found = run_recame(job, manifest, out, console, changes)
        clock = "processor" if options.processor_time else "wall"
        named = {"recipe": job.recipe, "set": job.set, "time": job.time, "seed": job.seed}
        told = {"clock": clock, "machine": machine()}
        keep(options.out / f"{job.name}.json", {**named, **found, **told})


def machine() -> str:
    """The processor, and how many threads computed."""
    facts = environment()
    return f"{facts.get('processor', '')}, {facts.get('cpu_threads', '')} threads"


def keep(path: Path, values: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
