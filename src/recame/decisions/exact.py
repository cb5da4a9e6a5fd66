"""What so many images can promise: exact binomial bounds, from nothing but counts.

A limit that is promised must hold for the images that will come, whatever their distribution. With
n images of a class, and a threshold laid above all but k of their scores, the share of the class
that lies beyond it is above a limit with a probability of at most P(Bin(n, limit) <= k) (Wilks,
Annals of Mathematical Statistics 1941; as a test of a fixed rule: Clopper and Pearson, Biometrika
1934). Everything here follows from that tail. Needs no scipy.
"""

from __future__ import annotations

import math

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.metrics.statistics import rate_at_most


def tail(successes: int, trials: int, rate: float) -> float:
    """P(Bin(trials, rate) <= successes).

    Args:
        successes: below 0 the tail is empty, from `trials` on it is all.
        trials: n >= 0.
        rate: in [0, 1].

    Examples:
        >>> round(tail(0, 149, 0.02), 4), tail(-1, 10, 0.5), tail(10, 10, 0.5)
        (0.0493, 0.0, 1.0)
    """
    if successes < 0:
        return 0.0
    if successes >= trials or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    return float(np.exp(_log_terms(trials, rate, successes)).sum().clip(0.0, 1.0))


def most_allowed(trials: int, limit: float, risk: float) -> int:
    """The most images of n that may lie beyond a threshold which promises a limit.

    The largest k with P(Bin(n, limit) <= k) <= risk.

    Args:
        trials: n images.
        limit: the share that is promised.
        risk: with which the promise may fail.

    Returns:
        -1 where even a threshold above all of them promises nothing: n is too small.

    Examples:
        >>> [most_allowed(trials, 0.02, 0.05) for trials in (148, 149, 1000)]
        [-1, 0, 12]
    """
    if trials <= 0 or limit <= 0:
        return -1
    if limit >= 1:
        return trials
    most = math.ceil(trials * limit + 10 * math.sqrt(trials * limit + 1))  # the tail ends before
    terms = np.exp(_log_terms(trials, limit, min(trials, most)))
    allowed = int(np.searchsorted(np.cumsum(terms), risk, side="right")) - 1
    # A sum that rounding has carried to the risk or past it.
    while allowed >= 0 and tail(allowed, trials, limit) > risk:
        allowed -= 1
    return allowed


def smallest_limit(trials: int, allowed: int, risk: float) -> float:
    """The smallest limit that so many images promise, of which so many lie beyond the threshold.

    Args:
        trials: n images; with 0 nothing is promised, which is a limit of 1.
        allowed: k of them.
        risk: with which the promise may fail.

    Examples:
        >>> round(smallest_limit(82, 0, 0.05 / 6 / 12), 3)
        0.085
    """
    return 1.0 if trials <= 0 else rate_at_most(allowed, trials, 1 - risk)


def images_needed(limit: float, risk: float, allowed: int = 0) -> int | None:
    """The fewest images that promise a limit with so many of them beyond the threshold.

    Args:
        limit: the share that is promised.
        risk: with which the promise may fail.
        allowed: k; the more may lie beyond, the lower the threshold, and the more it takes.

    Returns:
        None for a limit of 0, which no number of images promises.

    Examples:
        >>> images_needed(0.02, 0.05), images_needed(0.02, 0.05, 3), images_needed(0.0, 0.05)
        (149, 386, None)
    """
    if limit <= 0:
        return None
    if limit >= 1:
        return 1
    low, high = allowed, max(1, 2 * allowed)
    while tail(allowed, high, limit) > risk:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tail(allowed, middle, limit) > risk else (low, middle)
    return high


def above_all_but(scores: FloatArray, allowed: int) -> float:
    """The lowest threshold that only so many scores exceed: whoever exceeds it is beyond it.

    Args:
        scores: (n,); NaN counts as exceeding nothing.
        allowed: k; -1: nobody may exceed it, whatever comes.

    Returns:
        The (k + 1)-th largest score, which does not exceed itself, so that ties never add to k;
        -inf where all may exceed it, inf where none may.

    Examples:
        >>> above_all_but(np.array([3.0, 1.0, 3.0, 2.0]), 1), above_all_but(np.array([1.0]), -1)
        (3.0, inf)
    """
    if allowed < 0:
        return math.inf
    if allowed >= len(scores):
        return -math.inf
    ranked = np.sort(np.where(np.isnan(scores), -math.inf, scores))
    return float(ranked[len(ranked) - 1 - allowed])


def _log_terms(trials: int, rate: float, most: int) -> FloatArray:
    """Log probabilities (most + 1,) of 0 to `most` successes."""
    hits: IntArray = np.arange(most + 1)
    count = hits[1:]
    ways = np.concatenate([[0.0], np.cumsum(np.log((trials - count + 1) / count))])
    terms: FloatArray = ways + hits * math.log(rate) + (trials - hits) * math.log1p(-rate)
    return terms
