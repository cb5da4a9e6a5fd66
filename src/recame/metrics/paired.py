"""The difference between two models on the same images, with an interval and a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.label_space import LabelSpace
from recame.metrics.breakdown import macro_statistics
from recame.metrics.registry import METRICS
from recame.metrics.statistics import ClassCounts, sum_by_key

_CELLS_AT_ONCE = 1 << 21

#: From (R, M) images in each cell and (R, 2, C) prior images to the values (R,) of both models.
Statistic = Callable[[FloatArray, FloatArray], Mapping[str, tuple[FloatArray, FloatArray]]]


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same images.

    Attributes:
        value: of the evaluated model.
        other: of the other model.
        difference: `value - other`.
        low: lower end of the difference's interval.
        high: upper end of the difference's interval.
    """

    value: float
    other: float
    difference: float
    low: float
    high: float

    @property
    def real(self) -> bool:
        """Whether the interval excludes 0: the models differ significantly."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return {**asdict(self), "real": self.real}


def mcnemar_p_value(only_one: int, only_other: int) -> float:
    """Exact two-sided McNemar test (McNemar, Psychometrika 1947).

    The probability of a split at least this uneven of the images on which exactly one model is
    right, if either model were equally likely to be the right one.

    Args:
        only_one: images that only the first model classifies correctly.
        only_other: images that only the second model classifies correctly.

    Examples:
        >>> mcnemar_p_value(5, 5), round(mcnemar_p_value(10, 1), 4)
        (1.0, 0.0117)
    """
    images = only_one + only_other
    fewer = np.arange(1, min(only_one, only_other) + 1)
    # Logarithms of the binomial coefficients from 0 to the smaller count.
    chosen = np.concatenate([[0.0], np.cumsum(np.log((images - fewer + 1) / fewer))])
    total = chosen.max() + math.log(float(np.exp(chosen - chosen.max()).sum()))
    return min(1.0, 2 * math.exp(total - images * math.log(2)))


def paired_differences(
    target: IntArray,
    called: IntArray,
    other: IntArray,
    label_space: LabelSpace,
    tail: tuple[str, ...] = (),
    *,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, Difference]:
    """Differences of two models on the same images, with intervals.

    Uses a Bayesian bootstrap (Rubin, Annals of Statistics 1981) of the images within each class:
    all images of a class with the same pair of predictions share one gamma draw. A prior adds to
    each class half an image that only the first model classifies correctly and half an image that
    only the other does, so that two images on which both agree prove nothing. The percentiles are
    shifted so that the prior does not pull the difference towards 0 (as in `bootstrap_intervals`).
    Escapes are resampled over all defects together, overkill over the normal images.

    Args:
        target: (N,) class indices, below C.
        called: (N,) the first model's predictions, 0 to C; C is a class that the space lacks.
        other: (N,) the second model's predictions.
        label_space: C classes.
        tail: classes of `tail_recall`.
        resamples: R.
        seed: of the draws.
        confidence: two-sided, in (0, 1).

    Returns:
        The headline metrics that exist for these images, by name. Empty if N = 0.
    """
    if not len(target):
        return {}
    size = label_space.num_classes + 1
    cells, counts = np.unique((target * size + called) * size + other, return_counts=True)
    classes, pair = cells // size**2, cells % size**2
    support = np.bincount(target, minlength=size)[:-1].astype(np.float64)
    layout = _Cells(classes, pair // size, pair % size, support)
    by_class = np.isin(label_space.names, tail), label_space.normal_index

    def statistic(
        shares: FloatArray, prior: FloatArray
    ) -> dict[str, tuple[FloatArray, FloatArray]]:
        one = _statistics(layout, layout.first, shares, prior[:, 0], prior[:, 1], *by_class)
        two = _statistics(layout, layout.second, shares, prior[:, 1], prior[:, 0], *by_class)
        return {name: (one[name], two[name]) for name in one}

    generator = np.random.default_rng(seed)
    point = statistic(counts[None].astype(np.float64), np.zeros((1, 2, len(support))))
    drawn = _draw(layout, counts, statistic, resamples, generator)
    found = {
        name: _difference(float(one[0]), float(two[0]), drawn[name], confidence)
        for name, (one, two) in point.items()
    }
    for metric in METRICS:
        if metric.level != "headline" or metric.share is None:
            continue
        both = [metric.share(target, calls, label_space) for calls in (called, other)]
        hits = [hit[counted] for counted, hit in filter(None, both)]
        if hits and len(hits[0]):
            one, two = hits
            found[metric.name] = _rate_difference(one, two, resamples, generator, confidence)
    return found


def _rate_difference(
    one: BoolArray,
    other: BoolArray,
    resamples: int,
    generator: np.random.Generator,
    confidence: float,
) -> Difference:
    """Difference of two shares on the same images, from the images on which the models differ."""
    only, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    prior = np.array([only + 0.5, only_other + 0.5, max(len(one) - only - only_other, 0.5)])
    first, second, _ = generator.dirichlet(prior, resamples).T
    return _difference(float(one.mean()), float(other.mean()), first - second, confidence)


def _difference(value: float, other: float, drawn: FloatArray, confidence: float) -> Difference:
    """The interval of the resampled differences, shifted to the observed difference."""
    tail, observed = (1 - confidence) / 2, value - other
    low, high = np.quantile(drawn, (tail, 1 - tail)) + (observed - drawn.mean())
    low, high = min(low, observed), max(high, observed)
    return Difference(value, other, observed, float(max(low, -1.0)), float(min(high, 1.0)))


@dataclass(frozen=True)
class _Cells:
    """Non-empty cells of (class, first, second prediction), ascending, and images of each class."""

    classes: IntArray
    first: IntArray
    second: IntArray
    support: FloatArray


def _draw(
    layout: _Cells,
    counts: IntArray,
    statistic: Statistic,
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, FloatArray]:
    """(R,) resampled differences of each statistic."""
    present = layout.support > 0
    width = len(counts) + 2 * len(layout.support)
    at_once = max(1, min(resamples, _CELLS_AT_ONCE // width))
    parts: list[Mapping[str, FloatArray]] = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        shares = generator.standard_gamma(counts, size=(rows, len(counts)))
        prior = generator.standard_gamma(0.5, size=(rows, 2, len(layout.support))) * present
        mass = sum_by_key(shares, layout.classes, len(layout.support)) + prior.sum(1)
        scale = np.divide(layout.support, mass, out=np.zeros_like(mass), where=mass > 0)
        pairs = statistic(shares * scale[:, layout.classes], prior * scale[:, None])
        parts.append({name: one - two for name, (one, two) in pairs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _statistics(
    layout: _Cells,
    called: IntArray,
    mass: FloatArray,
    right: FloatArray,
    wrong: FloatArray,
    tail: BoolArray,
    normal: int | None,
) -> dict[str, FloatArray]:
    """One model's metrics from (R, M) images in each cell and (R, C) prior images."""
    classes, support = layout.classes, layout.support
    count = len(support)
    hits = sum_by_key(np.where(called == classes, mass, 0.0), classes, count) + right
    spread = wrong / max(count - 1, 1)  # the prior's errors, spread over the other classes
    predicted = sum_by_key(mass, called, count + 1)[:, :count] + right
    predicted += spread.sum(1, keepdims=True) - spread
    counts = ClassCounts(hits, support, predicted)
    values = macro_statistics(counts, {"tail_recall": tail}, normal)
    return {m.name: values[m.name] for m in METRICS if m.level == "headline" and m.name in values}
