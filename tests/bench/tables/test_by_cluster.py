"""Recall by what training holds of a cluster, on a run whose clusters are planted here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recame.bench.tables.by_cluster import BINS, recall_by_cluster
from recame.reports.evaluate import evaluate
from recame.reports.judged_images import PREDICTIONS
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions


@pytest.fixture
def judged(finished: Path, tmp_path: Path) -> RunFolder:
    """A finished run whose test images are judged."""
    shutil.copytree(finished, tmp_path / "run")
    evaluate(tmp_path / "run", report=False)
    return RunFolder.open(tmp_path / "run")


def test_cells_are_grouped_by_their_training_images(judged: RunFolder, tmp_path: Path) -> None:
    manifest = pd.read_csv(judged.manifest_path)
    # Of each class one cluster is alone in test, the other in all splits.
    odd = manifest.groupby("label").cumcount() % 2 == 1
    apart = odd & (manifest["split"] == "test")
    cluster = np.where(apart, "apart", "all")
    pd.DataFrame({"image": manifest["image"], "cluster": cluster}).to_csv(
        tmp_path / "truth.csv", index=False
    )
    missing = tmp_path / "nowhere" / "manifest.csv"
    table = recall_by_cluster(judged, "test", (missing, tmp_path / "manifest.csv"))
    own = table[table["kind"] == "cluster"].set_index("place")
    assert own["images"].sum() == (manifest["split"] == "test").sum()

    classes, found, _ = load_predictions(judged.evaluation_dir("test") / PREDICTIONS)
    called = np.array(classes)[found.probabilities.argmax(1)]
    right = pd.Series(called == found.table["label"].to_numpy(), found.table["image"])
    rows = manifest[manifest["split"] == "test"].assign(
        right=lambda t: t["image"].map(right), cluster=cluster[manifest["split"] == "test"]
    )
    cells = rows.groupby(["label", "cluster"])["right"].mean()
    assert own.loc[0, "recall"] == pytest.approx(cells.xs("apart", level="cluster").mean())
    assert own.loc[0, "cells"] == len(cells.xs("apart", level="cluster"))
    held = manifest[manifest["split"] == "train"].groupby("label").size()
    last = own.index.max()
    largest = cells.xs("all", level="cluster")[held[held >= last].index]
    assert last == max(least for least in BINS if least <= held.max())
    assert own.loc[last, "recall"] == pytest.approx(largest.mean())


def test_without_predictions_there_is_nothing(judged: RunFolder, tmp_path: Path) -> None:
    (judged.evaluation_dir("test") / PREDICTIONS).unlink()
    assert recall_by_cluster(judged, "test", (tmp_path / "manifest.csv",)).empty
