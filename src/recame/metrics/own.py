"""Metrics of one's own, beside those of the registry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.errors import PluginError
from recame.label_space import LabelSpace
from recame.metrics.registry import BY_NAME, Metric, Score
from recame.metrics.statistics import Estimate
from recame.plugins import Plugin

_SETTING = "evaluation.metrics"
#: Resamples of the images, each of which asks for the score again.
_MOST_RESAMPLES = 200


def own_metrics(plugins: Sequence[Plugin]) -> tuple[Metric, ...]:
    """What `evaluation.metrics` names: a `Metric`, or what makes one of its `init_args`.

    Raises:
        PluginError: one cannot be imported or made, is no metric, or bears a name that is taken.
    """
    found: dict[str, Metric] = {}
    for plugin in plugins:
        made = plugin.load(_SETTING)
        if not isinstance(made, Metric):
            made = plugin.make(_SETTING)
        if not isinstance(made, Metric) or (made.share is None) == (made.score is None):
            raise PluginError(
                f"{_SETTING} names {plugin.class_path}, which is no metric with either a share or "
                "a score: give a recame.metrics.registry.Metric, or what makes one."
            )
        if made.name in BY_NAME or made.name in found:
            raise PluginError(
                f"{_SETTING} ({plugin.class_path}) is called {made.name}, as another metric is, "
                "and files would hold one of them alone: give it another name."
            )
        found[made.name] = made
    return tuple(found.values())


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
) -> Estimate:
    """A score with the interval of its resampled images.

    Args:
        metric: whose score it is.
        score: its formula.
        probabilities: (N, C).
        target: (N,) class indices in [0, C).
        label_space: of the C classes.
        resamples: of the images; 0 for no interval, at most 200 are drawn.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        PluginError: a score is no number of [0, 1].
    """

    def value(rows: IntArray | slice) -> float:
        found = float(score(probabilities[rows], target[rows], label_space))
        if not 0.0 <= found <= 1.0:
            raise PluginError(
                f"{_SETTING}: {metric.name} is {found}, and every metric lies in [0, 1]: scale it."
            )
        return found

    point = value(slice(None))
    if not resamples:
        return Estimate(point)
    rng = np.random.default_rng(seed)
    count = len(target)
    drawn = [value(rng.integers(count, size=count)) for _ in range(min(resamples, _MOST_RESAMPLES))]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Estimate(point, min(float(low), point), max(float(high), point))
