"""Compute a metric that is neither a mean over classes nor a share of images, with its interval."""

from __future__ import annotations

import math

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.errors import PluginError
from recame.label_space import LabelSpace
from recame.metrics.registry import Metric, Score
from recame.metrics.statistics import Estimate

#: Most resamples; the score is computed again for each.
_MOST_RESAMPLES = 200


def scored(
    metric: Metric,
    score: Score,
    probabilities: FloatArray,
    target: IntArray,
    label_space: LabelSpace,
    *,
    resamples: int,
    seed: int,
    confidence: float,
) -> Estimate | None:
    """Compute a score, with an interval from resampled images.

    Args:
        metric: the metric.
        score: its formula.
        probabilities: (N, C).
        target: (N,) class indices in [0, C).
        label_space: of the C classes.
        resamples: of the images, at most 200; 0: no interval.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Returns:
        None if the label space has no such classes; an estimate without a value if the split has
        no such image.

    Raises:
        PluginError: a score is no number in [0, 1].
    """

    def value(rows: IntArray | slice) -> float | None:
        found = score(probabilities[rows], target[rows], label_space)
        if found is None or math.isnan(found := float(found)):
            return found
        if not 0.0 <= found <= 1.0:
            raise PluginError(
                f"The metric {metric.name} is {found}, but a metric must lie in [0, 1]: scale it."
            )
        return found

    point = value(slice(None))
    if point is None or math.isnan(point):
        return None if point is None else Estimate(None)
    rng = np.random.default_rng(seed)
    count = len(target)
    drawn = [value(rng.integers(count, size=count)) for _ in range(min(resamples, _MOST_RESAMPLES))]
    numbers = [float(each) for each in drawn if each is not None and not math.isnan(each)]
    if not numbers:
        return Estimate(point)
    tail = (1 - confidence) / 2
    low, high = np.quantile(numbers, (tail, 1 - tail))
    return Estimate(point, min(float(low), point), max(float(high), point))
