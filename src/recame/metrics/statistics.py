"""Intervals of metrics: Wilson intervals for rates, bootstrap intervals where no formula exists."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from recame.contracts import BoolArray, FloatArray, IntArray

#: Cells resampled at once; bounds the memory of `bootstrap_intervals` to about 100 MB.
_CELLS_AT_ONCE = 1 << 22


#: An interval wider than this is reported as "too few to tell".
TOO_WIDE = 0.3


@dataclass(frozen=True)
class Estimate:
    """A number and the range it could have had on another test set of the same size.

    Attributes:
        value: None if it does not exist, for example the recall of a class without images.
        low: None if there is no value or no interval.
        high: None if there is no value or no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def too_wide(self) -> bool:
        """Whether the interval is too wide to decide anything."""
        return self.low is not None and self.high is not None and self.high - self.low > TOO_WIDE

    def __str__(self) -> str:
        """Return the text `0.912 (0.874 to 0.943)`."""
        if self.value is None:
            return "none"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def to_dict(self) -> dict[str, float | None]:
        """Return `value`, `low`, `high` as values for JSON."""
        return asdict(self)


class ClassCounts(NamedTuple):
    """The counts of a confusion matrix that the headline numbers need.

    Attributes:
        hits: (..., C) correctly classified images of each class.
        support: (C,) images of each class.
        predicted: (..., C) images predicted as each class.
    """

    hits: FloatArray
    support: FloatArray
    predicted: FloatArray


class ClassRates(NamedTuple):
    """Recall, precision and F1 of each class.

    Attributes:
        recall: (..., C) share of the class's images that were predicted as the class.
        precision: (..., C) share of the images predicted as the class that belong to it.
        f1: (..., C) harmonic mean of the two.
        defect: (C,) which classes are defects: all but the normal one.
    """

    recall: FloatArray
    precision: FloatArray
    f1: FloatArray
    defect: BoolArray


#: From counts of shape (..., C) to named values of shape (...).
Statistic = Callable[[ClassCounts], Mapping[str, FloatArray]]


def wilson_interval(
    successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Wilson score interval of a rate (Wilson, JASA 1927).

    Unlike value +- z * deviation, it stays inside [0, 1] and keeps a width if every trial
    succeeded, which is common for classes with few images.

    Args:
        successes: any shape, between 0 and `trials`.
        trials: any shape that broadcasts with `successes`; where it is 0 the interval is (0, 1).
        confidence: in (0, 1), two-sided.

    Returns:
        The lower and the upper bounds, in the broadcast shape.

    Examples:
        >>> low, high = wilson_interval(10, 12)
        >>> print(f"{low:.2f}-{high:.2f}")
        0.55-0.95
    """
    k, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    safe = np.where(n > 0, n, 1.0)
    rate = k / safe
    centre = (rate + z2 / (2 * safe)) / (1 + z2 / safe)
    half = np.sqrt(z2 * (rate * (1 - rate) / safe + z2 / (4 * safe**2))) / (1 + z2 / safe)
    # The formula gives exactly 0 and 1 at the ends; rounding would not.
    low = np.where((n == 0) | (k == 0), 0.0, np.clip(centre - half, 0.0, 1.0))
    high = np.where((n == 0) | (k == n), 1.0, np.clip(centre + half, 0.0, 1.0))
    return low[()], high[()]


def rate_at_most(successes: int, trials: int, confidence: float = 0.95) -> float:
    """Upper confidence limit of a rate, one-sided and exact (Clopper and Pearson, Biometrika 1934).

    It also bounds the rate beyond a threshold that was set so that only `successes` of the trials'
    values exceed it: this is the same beta quantile as that of a tolerance limit (Wilks, Annals of
    Mathematical Statistics 1941).

    Args:
        successes: at most `trials`.
        trials: at least 1.
        confidence: in (0, 1).

    Examples:
        >>> round(rate_at_most(0, 299), 4), round(rate_at_most(1, 10), 3), rate_at_most(3, 3)
        (0.01, 0.394, 1.0)
    """
    if successes >= trials:
        return 1.0
    count = np.arange(1, successes + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((trials - count + 1) / count))])
    hits = np.arange(successes + 1)
    low, high = successes / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        logs = ways + hits * np.log(rate) + (trials - hits) * np.log1p(-rate)
        low, high = (rate, high) if np.exp(logs).sum() > 1 - confidence else (low, rate)
    return float(high)


def confusion_matrix(target: IntArray, prediction: IntArray, num_classes: int) -> IntArray:
    """Count the images by true class (rows) and predicted class (columns).

    Args:
        target: (N,) class indices.
        prediction: (N,) class indices.
        num_classes: C.

    Returns:
        (C, C).
    """
    flat = np.bincount(target * num_classes + prediction, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def class_counts(confusion: IntArray) -> ClassCounts:
    """Reduce a confusion matrix, or a stack (..., C, C) with equal row sums, to its counts."""
    full = confusion.astype(np.float64)
    support = full.sum(-1).reshape(-1, full.shape[-1])[0]
    return ClassCounts(np.diagonal(full, axis1=-2, axis2=-1).copy(), support, full.sum(-2))


def class_rates(counts: ClassCounts, normal: int | None = None) -> ClassRates:
    """Compute recall, precision and F1 of each class, 0 where the denominator is 0.

    Args:
        counts: of shape (..., C).
        normal: index of the class that means "no defect", if there is one.
    """
    hits, support, predicted = counts

    def ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
        return top / np.where(bottom > 0, bottom, 1.0)

    f1 = ratio(2 * hits, support + predicted)
    defect = np.arange(len(support)) != (-1 if normal is None else normal)
    return ClassRates(ratio(hits, support), ratio(hits, predicted), f1, defect)


def class_means(values: ArrayLike, target: IntArray) -> FloatArray:
    """Mean of the images' values (N,) for each class that has images."""
    found, images = np.unique(target, return_counts=True)
    means: FloatArray = np.bincount(target, weights=np.asarray(values))[found] / images
    return means


def balanced_accuracy(right: BoolArray, target: IntArray) -> float:
    """Mean recall of the classes that have images.

    Args:
        right: (N,) whether each image is classified correctly.
        target: (N,) class indices.

    Examples:
        >>> balanced_accuracy(np.array([True, False, True]), np.array([0, 0, 3]))
        0.75
    """
    return float(class_means(right, target).mean())


def standard_error(first: BoolArray, second: BoolArray, target: IntArray) -> float:
    """Standard error of the difference of two balanced accuracies on the same images.

    As a prior, each class gets one more image, on which the models differ with probability one
    half: two images on which they agree do not show that they always agree.

    Args:
        first: (N,) whether the first model classifies each image correctly.
        second: (N,) the same for the second model.
        target: (N,) class indices.
    """
    difference = first.astype(np.float64) - second
    images = np.bincount(target)
    images = images[images > 0]
    mean = class_means(difference, target)
    variance = class_means(difference**2, target) - mean**2
    variance = (variance * images + 0.5) / (images + 1)
    return float(np.sqrt((variance / images).sum()) / len(images))


def paired_difference(difference: FloatArray, target: IntArray) -> tuple[float, float]:
    """Mean over the classes of two models' differences on the same images, and its standard error.

    The variance of a class is computed with one more image whose difference has the variance of all
    images: two images with equal differences do not show that all are equal.

    Args:
        difference: (N,) of each image.
        target: (N,) class indices.
    """
    images = np.bincount(target)
    images = images[images > 0]
    means = class_means(difference, target)
    variance = class_means(difference**2, target) - means**2
    usual = float(class_means(difference**2, target).mean())
    variance = (variance * images + usual) / (images + 1)
    return float(means.mean()), float(np.sqrt((variance / images).sum()) / len(images))


def resample_counts(
    confusion: IntArray, resamples: int, generator: np.random.Generator
) -> ClassCounts:
    """Resample the counts that other test sets with the same images per class could have given.

    A Bayesian bootstrap (Rubin, Annals of Statistics 1981) stratified by class: the shares of the
    predicted classes within each class are drawn from the Dirichlet distribution of its row. Half
    a correctly classified image and half a wrongly classified one are added to each row (the
    Jeffreys prior). The plain bootstrap would claim certainty for a class with two images that are
    both correct; with the prior, each resampled recall follows its Jeffreys interval. The wrong
    half is spread evenly over the other classes.

    Only non-empty cells are drawn, so the cost grows with the images, not with the classes.

    Args:
        confusion: (C, C), C >= 2.
        resamples: R.
        generator: source of randomness.

    Returns:
        Counts with `hits` and `predicted` of shape (R, C); they are not whole numbers.
    """
    num_classes = len(confusion)
    support = confusion.sum(1).astype(np.float64)
    present = np.flatnonzero(support)
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    columns, rows = np.nonzero(wrong.T)
    shapes = np.concatenate([np.diagonal(confusion)[present] + 0.5, wrong[rows, columns]])
    cells = generator.standard_gamma(shapes, size=(resamples, len(shapes)))
    right = np.zeros((resamples, num_classes))
    right[:, present] = cells[:, : len(present)]
    spread = np.zeros_like(right)
    spread[:, present] = generator.standard_gamma(0.5, size=(resamples, len(present)))
    cells = cells[:, len(present) :]

    mass = right + spread + sum_by_key(cells, rows, num_classes)
    share = np.divide(support, mass, out=np.zeros_like(mass), where=mass > 0)
    hits, spread = right * share, spread * share / (num_classes - 1)
    predicted = hits + sum_by_key(cells * share[:, rows], columns, num_classes)
    predicted += spread.sum(1, keepdims=True) - spread
    return ClassCounts(hits, support, predicted)


def sum_by_key(cells: FloatArray, keys: IntArray, size: int) -> FloatArray:
    """Sum the (R, M) cells that share a key (M,), 0 to `size` - 1, into (R, size)."""
    sums = np.zeros((len(cells), size))
    if len(keys):
        order = np.argsort(keys, kind="stable")
        found, starts = np.unique(keys[order], return_index=True)
        sums[:, found] = np.add.reduceat(cells[:, order], starts, axis=1)
    return sums


def bootstrap_intervals(
    confusion: IntArray,
    statistic: Statistic,
    *,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
    lower_is_better: Container[str] = (),
) -> dict[str, tuple[float, float]]:
    """Compute intervals in [0, 1] of any statistics of the class counts (`resample_counts`).

    The percentiles are shifted by the observed value minus the mean of the resampled values. The
    prior lowers each perfect class a little, and over many small classes this would add up
    (coverage of balanced accuracy with 30 classes of 3 to 20 images, nominal 0.95: plain bootstrap
    0.89, not shifted 0.49, shifted 0.94). If the observed value is the worst possible one, for
    example a G-mean of 0 because one class has recall 0, the percentiles are not shifted.

    Args:
        confusion: (C, C) counts, C >= 2.
        statistic: from counts of shape (..., C) to named values (...).
        resamples: R; 0: no intervals.
        seed: of the draws.
        confidence: in (0, 1), two-sided.
        lower_is_better: names whose worst value is 1 instead of 0.

    Returns:
        (low, high) of each name, in the units of the statistic.
    """
    if resamples == 0:
        return {}
    generator = np.random.default_rng(seed)
    cells = int(np.count_nonzero(confusion)) + 2 * len(confusion)
    at_once = max(1, min(resamples, _CELLS_AT_ONCE // cells))
    draws = [
        statistic(resample_counts(confusion, min(at_once, resamples - start), generator))
        for start in range(0, resamples, at_once)
    ]
    tail, found = (1 - confidence) / 2, {}
    for name, observed in statistic(class_counts(confusion)).items():
        values, point = np.concatenate([draw[name] for draw in draws]), float(observed)
        shift = 0.0 if point == float(name in lower_is_better) else point - values.mean()
        low, high = np.clip(np.quantile(values, (tail, 1 - tail)) + shift, 0.0, 1.0)
        found[name] = float(low), float(high)
    return found


def area_under_roc(negative: FloatArray, positive: FloatArray) -> float | None:
    """Area under the ROC: how often a positive scores above a negative; ties count half.

    Exact, by sorting (Mann and Whitney, Annals of Mathematical Statistics 1947).

    Args:
        negative: (N,) scores; may be infinite.
        positive: (M,) scores.

    Returns:
        None if either is empty.

    Raises:
        ValueError: a score is NaN, which cannot be ranked.

    Examples:
        >>> area_under_roc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
        0.875
    """
    if np.isnan(negative).any() or np.isnan(positive).any():
        raise ValueError("A score is NaN, which cannot be ranked: replace it by -inf or inf.")
    if not len(negative) or not len(positive):
        return None
    ranked = np.sort(negative)
    below = int(np.searchsorted(ranked, positive, "left").sum())
    not_above = int(np.searchsorted(ranked, positive, "right").sum())
    return (below + not_above) / (2 * len(negative) * len(positive))
