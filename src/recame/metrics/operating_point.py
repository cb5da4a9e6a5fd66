"""How many defects pass for how many false calls: the order of images, and no threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from recame.contracts import FloatArray, IntArray


def normal_odds(
    probabilities: FloatArray, normal: int, train_counts: Sequence[int] | FloatArray
) -> FloatArray:
    """Odds of the normal class against the defects as they come in training.

    The order of `recame.decisions.scored.release_scores`, by which `recame tune` lets images pass:
    networks are trained as if all classes were equally frequent, so each defect's probability
    counts by how often it comes.

    Args:
        probabilities: (N, C), of classes that are equally frequent.
        normal: index of the normal class.
        train_counts: (C,); where no defect has been trained on, all weigh alike.

    Returns:
        (N,) float64, the higher, the more like a normal image; inf where no defect is possible.
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
    """Share of the defects that pass where at most so many normal images are held back.

    The threshold is laid by the same images, so this ranks models and promises nothing
    (`recame tune` does). Defects weigh as they come in training, whatever their numbers here.

    Args:
        score: (N,) the higher, the more like a normal image.
        target: (N,) class indices.
        normal: index of the normal class.
        train_counts: (C,); where none of the defects here has been trained on, images count alike.
        overkill: largest share of the normal images to be held back.

    Returns:
        Of [0, 1]; NaN without a defect or without a normal image.

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
