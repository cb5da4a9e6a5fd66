"""Recall of rare classes on unseen clusters, in which training has no image of the class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from recame.bench.clusters import clusters_of
from recame.contracts import FloatArray
from recame.inference.finished_run import recorded_data
from recame.metrics.breakdown import macro_statistics
from recame.metrics.statistics import (
    ClassCounts,
    Estimate,
    bootstrap_intervals,
    class_counts,
    confusion_matrix,
)
from recame.reports.judged_images import PREDICTIONS
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions


def tail_unseen(
    folder: RunFolder, source: Path, split: str, tail: Sequence[str]
) -> Estimate | None:
    """Mean recall of the tail classes on clusters in which training has no image of the class.

    Clusters come from the manifest's column `cluster` or, without it, from `truth.csv` beside the
    manifest, which generated sets have (class, product and region). An image of the split
    counts if its class is in the tail, its cluster is known, and no image of the run's split
    `train` has both its label and its cluster. The value is the mean, with equal weight, of the
    recalls of the tail classes on such images; classes without such images are left out. The
    interval is that of `recame.metrics.statistics.bootstrap_intervals`.

    Args:
        folder: a finished run whose split is evaluated.
        source: the manifest that it was trained from.
        split: the split's name.
        tail: names of the tail classes, by the counts of the run's training images.

    Returns:
        The metric, without a value if no image counts; None if no clusters are known.

    Raises:
        RecameError: the run's manifest or predictions, or `truth.csv`, are damaged.
    """
    config = folder.load_config()
    recorded = recorded_data(folder, config).drop_duplicates("image")
    cluster = clusters_of(recorded, source)
    if cluster is None:
        return None
    own = recorded["label"] + "\0" + cluster  # NaN if the cluster is unknown
    unseen = own.notna() & ~own.isin(own[recorded["split"] == "train"])
    by_image = pd.Series(unseen.to_numpy(np.bool_), recorded["image"])
    classes, predictions, _ = load_predictions(folder.evaluation_dir(split) / PREDICTIONS)
    members = np.isin(classes, tail)
    counted = (
        by_image.reindex(predictions.table["image"], fill_value=False).to_numpy(np.bool_)
        & (predictions.target >= 0)
        & members[predictions.target]
    )
    if not counted.any():
        return Estimate(None)
    called = predictions.probabilities[counted].argmax(1)
    confusion = confusion_matrix(predictions.target[counted], called, len(classes))

    def mean(counts: ClassCounts) -> dict[str, FloatArray]:
        return {"value": macro_statistics(counts, {"tail": members})["tail"]}

    interval = bootstrap_intervals(
        confusion, mean, resamples=config.evaluation.bootstrap, seed=config.run.seed
    )
    value = float(mean(class_counts(confusion))["value"])
    return Estimate(value, *interval.get("value", (None, None)))
