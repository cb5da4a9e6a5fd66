"""Compare two rates on the same images: how far they differ, and whether the second is higher.

Of n images, `worse` are bad (an escape, a wrong class) only with the second of two models, and
`better` only with the first. Only the number of images on which the two agree matters.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from recame.contracts import FloatArray
from recame.metrics.paired import mcnemar_p_value
from recame.metrics.statistics import rate_at_most

#: Added to the p-value for excluding shares of discordant images that the data rule out.
_NUISANCE_RISK = 1e-6
#: With more discordant images, the conditional test is as good as the unconditional one.
_MANY = 300
#: Number of shares of discordant images among which the largest p-value is searched.
_SHARES = 100


def change_score(
    worse: ArrayLike, better: ArrayLike, images: ArrayLike, change: ArrayLike
) -> FloatArray:
    """Tango's score: how many standard errors the observed change lies above a hypothetical one.

    Tango, Statistics in Medicine 1998, eq. 5; the standard error is the maximum-likelihood one if
    the hypothetical change is true (the larger root of eq. 4).

    Args:
        worse: any shape.
        better: any shape that broadcasts with `worse`.
        images: n >= 1.
        change: hypothetical rate of the second minus rate of the first, in (-1, 1).

    Examples:
        >>> round(float(change_score(9, 9, 600, 0.02)), 3)
        -2.469
    """
    b, c, n, d = (np.asarray(value, np.float64) for value in (worse, better, images, change))
    linear = (2 * n - b + c) * d - b - c
    only_first = (np.sqrt(np.maximum(linear**2 + 8 * n * c * d * (1 - d), 0.0)) - linear) / (4 * n)
    # The rate of `better` is at least 0, and at least -d if the change d is negative.
    variance = n * (2 * np.maximum(only_first, np.maximum(-d, 0.0)) + d * (1 - d))
    gap = b - c - n * d
    none = np.where(gap == 0, 0.0, np.copysign(np.inf, gap))
    score: FloatArray = np.where(variance > 0, gap / np.sqrt(np.maximum(variance, 1e-300)), none)
    return score


def change_interval(
    worse: ArrayLike, better: ArrayLike, images: ArrayLike, confidence: float
) -> tuple[FloatArray, FloatArray]:
    """Tango's score interval of the change; each end holds with `confidence`.

    The interval keeps a width if no image differs; value +- z * error would claim certainty.

    Args:
        worse: any shape.
        better: any shape that broadcasts with `worse`.
        images: n; where it is 0 the interval is (-1, 1).
        confidence: in (0.5, 1), one-sided.

    Returns:
        The lower and the upper ends: rate of the second minus rate of the first.

    Examples:
        >>> low, high = change_interval(9, 9, 600, 0.95)
        >>> print(f"{low:+.4f} {high:+.4f}")
        -0.0124 +0.0124
        >>> print(f"{change_interval(0, 0, 600, 0.95)[1]:.4f}")
        0.0045
    """
    b, c, n = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (worse, better, images)))
    z, safe = NormalDist().inv_cdf(confidence), np.where(n > 0, n, 1.0)
    ends = []
    for wanted, none in ((z, -1.0), (-z, 1.0)):
        low, high = np.full(b.shape, -1.0), np.full(b.shape, 1.0)
        for _ in range(50):  # the score falls as the hypothetical change grows
            middle = (low + high) / 2
            above = change_score(b, c, safe, middle) > wanted
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        ends.append(np.where(n > 0, (low + high) / 2, none)[()])
    return ends[0], ends[1]


@lru_cache(maxsize=1 << 14)
def worse_p_value(worse: int, better: int, images: int) -> float:
    """Exact one-sided p-value that the second model is worse than the first.

    The unconditional test of McNemar's statistic (Suissa and Shuster, Biometrics 1991): the largest
    probability over all shares of discordant images that the data do not rule out; this adds one
    in a million to the p-value (Berger and Boos, JASA 1994). It keeps its level as McNemar's exact
    test does and has more power, since the levels of McNemar's test are coarse if few images
    differ. With some hundred discordant images the two tests agree, and McNemar's is used.

    Args:
        worse: images that are bad only with the second model.
        better: images that are bad only with the first model.
        images: all n.

    Returns:
        1 if `worse` is not larger than `better`.

    Examples:
        >>> round(worse_p_value(15, 3, 600), 4), round(mcnemar_p_value(15, 3) / 2, 4)
        (0.0023, 0.0038)
    """
    if worse <= better:
        return 1.0
    discordant = worse + better
    conditional = mcnemar_p_value(worse, better) / 2
    if discordant > _MANY:
        return conditional
    score = (worse - better) / math.sqrt(discordant)
    most = rate_at_most(discordant, images, 1 - _NUISANCE_RISK)
    reach = math.ceil(images * most + 8 * math.sqrt(images * most + 1))
    beyond = _tails_of_halves(score, min(images, reach))
    shares = most * np.arange(1, _SHARES + 1) / _SHARES
    largest = float((_binomial(images, shares, len(beyond)) @ beyond).max())
    return min(1.0, largest + _NUISANCE_RISK)


def _tails_of_halves(score: float, most: int) -> FloatArray:
    """(most + 1,) probability that m images, each worse or better by chance, reach the score."""
    logs = _log_factorials(most)
    m = np.arange(most + 1)[:, None]
    k = np.arange(most + 1)[None]
    ways = logs[m] - logs[k] - logs[np.maximum(m - k, 0)] - m * math.log(2)
    reached = (k <= m) & (2 * k - m >= score * np.sqrt(m) - 1e-9) & (m > 0)
    chance: FloatArray = np.where(reached, np.exp(np.where(reached, ways, 0.0)), 0.0).sum(1)
    return chance


def _binomial(trials: int, rates: FloatArray, length: int) -> FloatArray:
    """(R, length) probabilities of 0 to length - 1 successes."""
    logs, hits = _log_factorials(trials), np.arange(length)
    ways = logs[trials] - logs[hits] - logs[trials - hits]
    with np.errstate(divide="ignore"):
        missed = np.log1p(-np.minimum(rates, 1.0))[:, None]
    misses = np.where(trials > hits, (trials - hits) * np.where(trials > hits, missed, 0.0), 0.0)
    terms: FloatArray = np.exp(ways + hits * np.log(rates)[:, None] + misses)
    return terms


def _log_factorials(most: int) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
