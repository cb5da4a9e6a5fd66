"""What means hide: recall of classes, clusters and products, a tail's price, other shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recame.bench.tables.by_cluster import COLUMNS as CELLS
from recame.bench.tables.by_cluster import recall_by_cluster
from recame.contracts import FloatArray
from recame.errors import DataError
from recame.files import read_json
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions

#: How many times the log of the training counts is taken off the logits, after all training.
TAUS = tuple(np.arange(-1.0, 2.01, 0.25).tolist())

#: How many times as frequent the most frequent class is as the rarest, in the training's order
#: (forward), or the other way round (below 1).
SHIFTS = (50.0, 10.0, 2.0, 1.0, 1 / 2, 1 / 10, 1 / 50)

RECALLS, FRONTIER, CLUSTERS = "recalls.csv", "frontier.csv", "clusters.csv"

_KEYS = ["data", "split", "method", "seed"]


@dataclass(frozen=True)
class Behaviour:
    """Of each run of a bench.

    Attributes:
        recalls: a row a class: `data, split, method, seed, class, train_images, images, recall`.
        frontier: a row a tau: `data, split, method, seed, tau, tail, others`: mean recall of the
            tail's classes and of all other classes.
        clusters: `data, split, method, seed` and the columns of
            `recame.bench.tables.by_cluster.recall_by_cluster`.
    """

    recalls: pd.DataFrame = field(default_factory=pd.DataFrame)
    frontier: pd.DataFrame = field(default_factory=pd.DataFrame)
    clusters: pd.DataFrame = field(default_factory=pd.DataFrame)


def behaviour(path: Path, frame: pd.DataFrame, elsewhere: Sequence[Path] = ()) -> Behaviour:
    """Read what the runs of a table have left, and what was kept of runs that are not here.

    Args:
        path: the bench's folder.
        frame: its rows that are shown.
        elsewhere: folders of the tables from which other rows came; the first that holds a run
            counts, after the bench's own.
    """
    recalls: list[pd.DataFrame] = []
    frontier: list[pd.DataFrame] = []
    clusters: list[pd.DataFrame] = []
    for run, splits in frame.groupby(["data", "method", "seed"])["split"]:
        data, method, seed = run
        folder = path / "runs" / str(data) / str(method) / f"seed{seed}"
        if not (folder / "result.json").exists():
            continue
        found = read_json(folder / "result.json", error=DataError)["splits"]
        for split in splits:
            keys = dict(zip(_KEYS, (data, split, method, seed), strict=True))
            classes = pd.DataFrame(found.get(split, {}).get("per_class", []))
            if classes.empty:
                continue
            own = classes[["class", "train_images", "images", "recall"]]
            recalls.append(own.assign(**keys))
            tail = found[split].get("tail_classes", ())
            if (table := _frontier(folder, split, own, tail)) is not None:
                frontier.append(table.assign(**keys))
            cells = recall_by_cluster(RunFolder(folder), split, _manifests(path, folder))
            if len(cells):
                clusters.append(cells.assign(**keys))
    shown = pd.MultiIndex.from_frame(frame[_KEYS])

    def joined(own: list[pd.DataFrame], columns: Sequence[str], name: str) -> pd.DataFrame:
        files = [folder / name for folder in (path, *elsewhere)]
        tables = [*own, *(_kept(file) for file in files if file.exists())]
        return _first_of_each(tables, shown).reindex(columns=[*_KEYS, *columns])

    return Behaviour(
        joined(recalls, ["class", "train_images", "images", "recall"], RECALLS),
        joined(frontier, ["tau", "tail", "others"], FRONTIER),
        joined(clusters, CELLS, CLUSTERS),
    )


def _manifests(path: Path, run: Path) -> tuple[Path, ...]:
    """Where a run's manifest was or may be, since a bench's folder may have been moved."""
    built, info = path / "data" / run.parent.parent.name, run / "run.json"
    was = [Path(read_json(info, error=DataError).get("data", ""))] if info.exists() else []
    return *was, built / run.name / "manifest.csv", built / "manifest.csv"


def _kept(file: Path) -> pd.DataFrame:
    texts = dict.fromkeys(("data", "split", "method", "class", "kind"), str)
    return pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""])


def _first_of_each(tables: Sequence[pd.DataFrame], shown: pd.MultiIndex) -> pd.DataFrame:
    """The rows of the runs that are shown, each run's from the first table that has it."""
    taken: list[pd.DataFrame] = []
    left = shown
    for table in tables:
        keys = pd.MultiIndex.from_frame(table[_KEYS])
        taken.append(table[keys.isin(left)])
        left = left[~left.isin(keys)]
    return pd.concat(taken, ignore_index=True) if taken else pd.DataFrame(columns=_KEYS)


def _frontier(
    folder: Path, split: str, classes: pd.DataFrame, tail: Sequence[str]
) -> pd.DataFrame | None:
    """Tail and other classes over taus; None without a tail or without predictions."""
    from recame.reports.judged_images import PREDICTIONS

    file = RunFolder(folder).evaluation_dir(split) / PREDICTIONS
    if not tail or not file.exists():
        return None
    names, predictions, _ = load_predictions(file)
    known = predictions.target >= 0
    counts = classes.set_index("class")["train_images"].reindex(list(names)).to_numpy(np.float64)
    return frontier_of(
        predictions.probabilities[known].astype(np.float64),
        predictions.target[known],
        counts,
        np.isin(names, tail),
    )


def frontier_of(
    probabilities: FloatArray, target: np.ndarray[Any, Any], counts: FloatArray, tail: Any
) -> pd.DataFrame:
    """What a tail gains, and what the others lose, as the prior is taken off the logits.

    Menon et al., ICLR 2021: a method's tail can be bought by a constant a class, without training.
    Compared at one point alone, methods differ by where on such a line they happen to stand.

    Args:
        probabilities: (N, C).
        target: (N,) class indices.
        counts: (C,) training images; fewer than one count as one.
        tail: (C,) which classes are the tail.

    Returns:
        `tau, tail, others`, a row each of `TAUS`; 0 is the method as it is.
    """
    logs = np.log(np.clip(probabilities, 1e-12, None))
    prior = np.log(np.maximum(counts, 1.0))
    support = np.bincount(target, minlength=len(counts))
    rows = []
    for tau in TAUS:
        right = (logs - tau * prior).argmax(1) == target
        hits = np.bincount(target, right, minlength=len(counts))
        recall = np.where(support > 0, hits / np.maximum(support, 1), np.nan)
        means = [recall[group & (support > 0)] for group in (tail, ~np.asarray(tail))]
        rows.append([tau, *(one.mean() if len(one) else np.nan for one in means)])
    return pd.DataFrame(rows, columns=["tau", "tail", "others"])


def by_count(recalls: pd.DataFrame) -> pd.DataFrame:
    """Mean recall by the rank of a class's training count, over the seeds.

    By rank, since sets that are made anew for each seed may have other classes in each place.

    Args:
        recalls: of one data set and split.

    Returns:
        `method, rank` (0: the most frequent), `train_images` (mean), `recall` (mean).
    """
    ordered = recalls.sort_values("train_images", ascending=False, kind="stable")
    ordered = ordered.assign(rank=ordered.groupby(["method", "seed"]).cumcount())
    means = ordered.groupby(["method", "rank"], sort=False)[["train_images", "recall"]].mean()
    return means.reset_index()


def shifted(recalls: pd.DataFrame) -> pd.DataFrame:
    """Accuracy if the test images' classes came in other shares, by the recalls as they are.

    Classes in the order of their training counts, their shares falling evenly in the logarithm
    from the first to the last (Zhang et al., SADE, NeurIPS 2022). The method is not told.

    Args:
        recalls: of one data set and split.

    Returns:
        `method, shift` (of `SHIFTS`), `accuracy`: mean over the seeds.
    """
    rows = []
    for (method, _), own in recalls.dropna(subset="recall").groupby(["method", "seed"], sort=False):
        ordered = own.sort_values("train_images", ascending=False, kind="stable")["recall"]
        place = np.linspace(0, 1, len(ordered)) if len(ordered) > 1 else np.zeros(1)
        for shift in SHIFTS:
            shares = shift**-place
            value = float((shares / shares.sum()) @ ordered.to_numpy())
            rows.append((method, shift, value))
    table = pd.DataFrame(rows, columns=["method", "shift", "accuracy"])
    return table.groupby(["method", "shift"], sort=False)["accuracy"].mean().reset_index()
