"""Recall by the number of training images of a class in the same cluster, and by product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recame.bench.clusters import clusters_of
from recame.inference.finished_run import recorded_data
from recame.reports.judged_images import PREDICTIONS
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions

#: Least number of training images of each group of cells.
BINS = (0, 1, 2, 4, 8, 16, 32)

COLUMNS = ("kind", "place", "cells", "images", "recall")


def recall_by_cluster(folder: RunFolder, split: str, places: tuple[Path, ...]) -> pd.DataFrame:
    """Recall of a run on clusters that training has seen often, rarely or never, and by product.

    A cell is a class in a cluster, or in a product if no clusters are known. Cells are grouped by
    their number of training images. Each cell has the same weight, however many images of the
    split it has.

    Args:
        folder: a finished run whose split is evaluated.
        split: its name.
        places: manifests beside which `truth.csv` may lie; the first one with clusters counts.

    Returns:
        `kind, place, cells, images, recall`. In rows of kind `cluster`, place is one of `BINS`. In
        rows of kind `product`, place is the rank from the worst product (0), and recall the mean
        over the classes of that product. Empty if neither clusters nor products are known, or if
        predictions are not kept.

    Raises:
        RecameError: the run's manifest or predictions are damaged.
    """
    file = folder.evaluation_dir(split) / PREDICTIONS
    empty = pd.DataFrame(columns=list(COLUMNS))
    if not file.exists():
        return empty
    recorded = recorded_data(folder, folder.load_config()).drop_duplicates("image")
    told = (clusters_of(recorded, place) for place in places)
    cluster = next((found for found in told if found is not None), None)
    product = recorded.get("product")
    if cluster is None:
        cluster = product
    if cluster is None:
        return empty
    names, predictions, _ = load_predictions(file)
    known = predictions.target >= 0
    called = predictions.probabilities.argmax(1)
    judged = pd.DataFrame(
        {
            "image": predictions.table["image"][known].to_numpy(),
            "label": np.asarray(names, dtype=object)[predictions.target[known]],
            "right": (called == predictions.target)[known],
        }
    )
    training = recorded["split"] == "train"
    held = pd.DataFrame({"label": recorded["label"], "cluster": cluster})[training]
    held = held.groupby(["label", "cluster"]).size().rename("held").reset_index()
    by_image = pd.Series(cluster.to_numpy(), recorded["image"])
    judged["cluster"] = judged["image"].map(by_image)
    cells = judged.groupby(["label", "cluster"])["right"].agg(["mean", "size"]).reset_index()
    cells = cells.merge(held, "left", ["label", "cluster"]).fillna({"held": 0})
    cells["place"] = np.asarray(BINS)[np.searchsorted(BINS, cells["held"], side="right") - 1]
    parts = [_rows(cells.groupby("place"), "cluster")]
    if product is not None and len(set(recorded["product"].dropna())) > 1:
        judged["product"] = judged["image"].map(pd.Series(product.to_numpy(), recorded["image"]))
        own = judged.groupby(["product", "label"])["right"].agg(["mean", "size"]).reset_index()
        ranked = _rows(own.groupby("product"), "product").sort_values("recall", kind="stable")
        parts.append(ranked.assign(place=range(len(ranked))))
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def _rows(groups: Any, kind: str) -> pd.DataFrame:
    table = groups.agg(cells=("mean", "size"), images=("size", "sum"), recall=("mean", "mean"))
    named: pd.DataFrame = table.rename_axis("place").reset_index()
    return named.assign(kind=kind)
