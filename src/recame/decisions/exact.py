"""What a number of images can promise: exact binomial bounds from counts alone.

A promised limit must hold for future images, whatever their distribution. Take n images of a class
and a threshold that k of their scores exceed. The share of the class beyond the threshold is then
above a limit with a probability of at most P(Bin(n, limit) <= k) (Wilks, Annals of Mathematical
Statistics 1941; as a test of a fixed rule: Clopper and Pearson, Biometrika 1934). All functions
here follow from this tail. scipy is not needed.
"""

from __future__ import annotations

import math

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.metrics.statistics import rate_at_most


def tail(successes: int, trials: int, rate: float) -> float:
    """P(Bin(trials, rate) <= successes).

    Args:
        successes: below 0 the tail is 0; from `trials` on it is 1.
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
    """Largest number of n images that may lie beyond a threshold which promises a limit.

    The largest k with P(Bin(n, limit) <= k) <= risk.

    Args:
        trials: n images.
        limit: the share that is promised.
        risk: probability with which the promise may fail.

    Returns:
        -1 if n is too small: even a threshold above all of them does not promise the limit.

    Examples:
        >>> [most_allowed(trials, 0.02, 0.05) for trials in (148, 149, 1000)]
        [-1, 0, 12]
    """
    if trials <= 0 or limit <= 0:
        return -1
    if limit >= 1:
        return trials
    most = math.ceil(trials * limit + 10 * math.sqrt(trials * limit + 1))  # k is smaller
    terms = np.exp(_log_terms(trials, limit, min(trials, most)))
    allowed = int(np.searchsorted(np.cumsum(terms), risk, side="right")) - 1
    # Rounding may have made k one too large.
    while allowed >= 0 and tail(allowed, trials, limit) > risk:
        allowed -= 1
    return allowed


def smallest_limit(trials: int, allowed: int, risk: float) -> float:
    """Smallest limit that n images promise if k of them lie beyond the threshold.

    Args:
        trials: n images; 0 images promise nothing, which is a limit of 1.
        allowed: k of them.
        risk: probability with which the promise may fail.

    Examples:
        >>> round(smallest_limit(82, 0, 0.05 / 6 / 12), 3)
        0.085
    """
    return 1.0 if trials <= 0 else rate_at_most(allowed, trials, 1 - risk)


def images_needed(limit: float, risk: float, allowed: int = 0) -> int | None:
    """Fewest images that promise a limit if k of them lie beyond the threshold.

    Args:
        limit: the share that is promised.
        risk: probability with which the promise may fail.
        allowed: k. A larger k lowers the threshold, but needs more images.

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
    """Lowest threshold that at most k scores exceed.

    Args:
        scores: (n,); NaN exceeds no threshold.
        allowed: k; -1: no score may exceed it, not even a future one.

    Returns:
        The (k + 1)-th largest score; a score that equals the threshold does not exceed it, so ties
        never add to k. -inf if all may exceed it, inf if none may.

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
