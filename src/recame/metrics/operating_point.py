"""Escapes at a given overkill: compares how models rank images, without a fitted threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from recame.contracts import FloatArray, IntArray


def normal_odds(
    probabilities: FloatArray, normal: int, train_counts: Sequence[int] | FloatArray
) -> FloatArray:
    """Odds of the normal class against the defects, weighted by their training frequency.

    Ranks images as `recame.decisions.scored.release_scores` does, by which `recame tune` releases
    them. Networks are trained as if all classes were equally frequent, so each defect's
    probability is weighted by how frequent that defect is.

    Args:
        probabilities: (N, C), for equally frequent classes.
        normal: index of the normal class.
        train_counts: (C,); if no defect has training images, all defects weigh the same.

    Returns:
        (N,) float64; a higher value is more like a normal image; inf if all defects have
        probability 0.
    """
    weights = np.asarray(train_counts, np.float64).copy()
    weights[normal] = 0.0
    if not weights.any():
        weights[:] = 1.0
        weights[normal] = 0.0
    defects = probabilities.astype(np.float64) @ (weights / weights.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        odds: FloatArray = np.where(defects > 0, probabilities[:, normal] / defects, np.inf)
    return odds


def escapes_at(
    score: FloatArray, target: IntArray, normal: int, train_counts: ArrayLike, overkill: float
) -> float:
    """Share of the defects that pass if at most a given share of the normal images is held back.

    The threshold is set on the same images, so this only ranks models and promises nothing
    (`recame tune` makes promises). Each defect class is weighted by its training frequency,
    however many images of it are here.

    Args:
        score: (N,); a higher score is more like a normal image.
        target: (N,) class indices.
        normal: index of the normal class.
        train_counts: (C,); if none of these defects has training images, each image counts equally.
        overkill: largest share of the normal images that may be held back.

    Returns:
        In [0, 1]; NaN without a defect or without a normal image.

    Examples:
        >>> score, target = np.array([0.9, 0.8, 0.7, 0.85, 0.1]), np.array([0, 0, 1, 1, 2])
        >>> escapes_at(score, target, 0, (90, 4, 6), 0.01)
        0.2
    """
    ok = np.sort(score[target == normal])
    defect = target != normal
    if not len(ok) or not defect.any():
        return math.nan
    counts = np.asarray(train_counts, np.float64)
    support = np.bincount(target, minlength=len(counts))
    weight = (counts / np.maximum(support, 1))[target] * defect
    if not weight.any():
        weight = defect.astype(np.float64)
    held = int(overkill * len(ok) + 1e-9)  # 0.01 x 700 is a little less than 7
    return float((weight * (score >= ok[held])).sum() / weight.sum())
