"""Standard error of a run's balanced accuracy over other test images, boards or lots."""

from __future__ import annotations

import numpy as np
import pandas as pd

from recame.contracts import Predictions

_RESAMPLES = 1000


def sampling_error(predictions: Predictions, group: str = "", *, seed: int = 0) -> float | None:
    """Standard error of balanced accuracy over draws of the evaluated images.

    Images of one board or lot are alike, so whole groups are resampled with replacement (bootstrap;
    a class that is missing in a draw does not enter its mean). Without groups, single images are
    resampled within their classes, for which there is a formula.

    Args:
        predictions: of one split.
        group: a column of their table; empty or absent: no groups.
        seed: of the draws.

    Returns:
        A share, 0 to 1; None if no image has a label.
    """
    known = predictions.target >= 0
    target = predictions.target[known]
    if not len(target):
        return None
    right = predictions.probabilities[known].argmax(1) == target
    classes, label = np.unique(target, return_inverse=True)
    number = len(classes)
    if not group or group not in predictions.table:
        images = np.bincount(label)
        recall = np.bincount(label, right) / images
        return float(np.sqrt((recall * (1 - recall) / images).sum()) / number)
    codes, names = pd.factorize(predictions.table.loc[known, group].astype(str))
    cell = codes * number + label
    shape = (len(names), number)
    support = np.bincount(cell, minlength=shape[0] * number).reshape(shape).astype(np.float64)
    hits = np.bincount(cell, right, minlength=shape[0] * number).reshape(shape)
    generator = np.random.default_rng(seed)
    times = generator.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), _RESAMPLES)
    drawn = times @ support
    recalls = np.where(drawn > 0, times @ hits / np.maximum(drawn, 1), np.nan)
    return float(np.nanmean(recalls, axis=1).std(ddof=1))
