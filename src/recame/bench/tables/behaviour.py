"""What means hide: recall by class, cluster and product, the price of the tail, class shares."""

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

#: Strengths of post-hoc logit adjustment: tau times the log of the training counts is subtracted
#: from the logits.
TAUS = tuple(np.arange(-1.0, 2.01, 0.25).tolist())

#: Imbalance ratios of the test images: share of the class that is most frequent in training, over
#: the share of the rarest one. Below 1 the order is reversed.
SHIFTS = (50.0, 10.0, 2.0, 1.0, 1 / 2, 1 / 10, 1 / 50)

RECALLS, FRONTIER, CLUSTERS = "recalls.csv", "frontier.csv", "clusters.csv"

_KEYS = ["data", "split", "method", "seed"]


@dataclass(frozen=True)
class Behaviour:
    """Recall in detail, for each run of a bench.

    Attributes:
        recalls: one row for each class: `data, split, method, seed, class, train_images, images,
            recall`.
        frontier: one row for each tau: `data, split, method, seed, tau, tail, others`: mean recall
            of the tail classes and of all other classes.
        clusters: `data, split, method, seed` and the columns of
            `recame.bench.tables.by_cluster.recall_by_cluster`.
    """

    recalls: pd.DataFrame = field(default_factory=pd.DataFrame)
    frontier: pd.DataFrame = field(default_factory=pd.DataFrame)
    clusters: pd.DataFrame = field(default_factory=pd.DataFrame)


def behaviour(path: Path, frame: pd.DataFrame, elsewhere: Sequence[Path] = ()) -> Behaviour:
    """Read the recalls of a table's runs, from the run folders or from kept CSV files.

    Args:
        path: the bench's folder.
        frame: the rows that the table shows.
        elsewhere: folders of the tables from which other rows came. If several folders hold a
            run, the bench's own folder counts, then the first of these.
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
    """Places where a run's manifest may lie; the bench's folder may have been moved."""
    built, info = path / "data" / run.parent.parent.name, run / "run.json"
    was = [Path(read_json(info, error=DataError).get("data", ""))] if info.exists() else []
    return *was, built / run.name / "manifest.csv", built / "manifest.csv"


def _kept(file: Path) -> pd.DataFrame:
    texts = dict.fromkeys(("data", "split", "method", "class", "kind"), str)
    return pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""])


def _first_of_each(tables: Sequence[pd.DataFrame], shown: pd.MultiIndex) -> pd.DataFrame:
    """Rows of the runs that are shown; each run's rows come from the first table that has it."""
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
    """Recall of the tail and of the other classes by tau; None without a tail or predictions."""
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
    """Trade-off between the tail and the other classes under post-hoc logit adjustment.

    Subtracting tau times the log prior from the logits raises the recall of the tail and lowers
    that of the other classes, without training (Menon et al., ICLR 2021). A comparison at one tau
    mixes up the quality of a method with its place on this curve.

    Args:
        probabilities: (N, C).
        target: (N,) class indices.
        counts: (C,) training images; 0 counts as 1.
        tail: (C,) whether a class belongs to the tail.

    Returns:
        `tau, tail, others`, one row for each of `TAUS`; tau 0 is the method without adjustment.
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
    """Mean recall over the seeds, by the rank of a class's training count.

    Classes are matched by rank, because a set that is generated anew for each seed may have another
    class at each rank.

    Args:
        recalls: `Behaviour.recalls` of one data set and split.

    Returns:
        `method, rank` (0: the most frequent), `train_images` (mean), `recall` (mean).
    """
    ordered = recalls.sort_values("train_images", ascending=False, kind="stable")
    ordered = ordered.assign(rank=ordered.groupby(["method", "seed"]).cumcount())
    means = ordered.groupby(["method", "rank"], sort=False)[["train_images", "recall"]].mean()
    return means.reset_index()


def shifted(recalls: pd.DataFrame) -> pd.DataFrame:
    """Accuracy under other class shares of the test images, computed from the recalls.

    The classes are ordered by training count, and their shares fall evenly in the logarithm from
    the first to the last (Zhang et al., SADE, NeurIPS 2022). The method does not know the shares.

    Args:
        recalls: `Behaviour.recalls` of one data set and split.

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
