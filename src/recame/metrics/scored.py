"""Compute metrics that are neither a mean over classes nor a share of images, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.errors import PluginError
from recame.label_space import LabelSpace
from recame.metrics.registry import Metric, Score
from recame.metrics.statistics import Estimate

#: Most resamples; the score is computed again for each.
_MOST_RESAMPLES = 200


def scored(
    metrics: Sequence[Metric],
    probabilities: FloatArray,
    target: IntArray,
    label_space: LabelSpace,
    *,
    resamples: int,
    seed: int,
    confidence: float,
) -> dict[str, Estimate]:
    """Compute the metrics that have a score, with intervals from resampled images.

    Args:
        metrics: those without a score are left out.
        probabilities: (N, C).
        target: (N,) class indices in [0, C).
        label_space: of the C classes.
        resamples: of the images, at most 200; 0: no interval.
        seed: of the draws, which are the same for all metrics.
        confidence: of the interval, in (0, 1).

    Returns:
        By name; without the metrics for which the label space has no such classes. An estimate has
        no value if the split has no such image.

    Raises:
        PluginError: a score is no number in [0, 1].
    """
    count, draws = len(target), min(resamples, _MOST_RESAMPLES)
    found: dict[str, Estimate] = {}
    for metric in metrics:
        if metric.score is None:
            continue
        rng = np.random.default_rng(seed)
        of_rows = partial(_score_of, metric.name, metric.score, probabilities, target, label_space)
        point = of_rows(slice(None))
        if point is None:
            continue
        if math.isnan(point):
            found[metric.name] = Estimate(None)
            continue
        drawn = (of_rows(rng.integers(count, size=count)) for _ in range(draws))
        numbers = [each for each in drawn if each is not None and not math.isnan(each)]
        found[metric.name] = _estimate(point, numbers, confidence)
    return found


def _score_of(
    name: str,
    score: Score,
    probabilities: FloatArray,
    target: IntArray,
    label_space: LabelSpace,
    rows: IntArray | slice,
) -> float | None:
    found = score(probabilities[rows], target[rows], label_space)
    if found is None or math.isnan(found := float(found)):
        return found
    if not 0.0 <= found <= 1.0:
        raise PluginError(
            f"The metric {name} is {found}, but a metric must lie in [0, 1]: scale it."
        )
    return found


def _estimate(point: float, drawn: list[float], confidence: float) -> Estimate:
    if not drawn:
        return Estimate(point)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Estimate(point, min(float(low), point), max(float(high), point))
