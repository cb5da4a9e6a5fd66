"""Of what promised limits leave open, what costs least."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.automation import Automation
from recame.decisions.limits import Prices
from recame.decisions.release import Release
from recame.decisions.scored import normal_scores


def cheapest(
    odds: FloatArray,
    target: IntArray,
    normal: int | None,
    mix: FloatArray,
    prices: Prices,
    free: BoolArray,
    release: Release,
    automation: Automation,
) -> tuple[Release, Automation]:
    """The thresholds of least cost that keep what is promised.

    A higher threshold of release promises no less. A purity is shown at its own threshold alone,
    which stays.

    Args:
        odds: (N, C) log-odds of each class; NaN where the model gives no numbers.
        target: (N,) class indices.
        normal: index of the normal class; None: there is none.
        mix: (C,) shares of the classes on the line.
        prices: of what goes wrong, and of a person's look.
        free: (C,) classes without a limit of purity.
        release: as promised.
        automation: as promised.
    """
    counts = np.bincount(target, minlength=len(mix))
    weight = (mix / np.maximum(counts, 1))[target]
    best = np.where(np.isfinite(odds).all(1), np.nan_to_num(odds).argmax(1), -1)
    if normal is not None:
        costs = prices.escape, prices.review
        scores = normal_scores(odds, normal)
        above = _threshold(scores, target == normal, weight, costs, at_least=release.above)
        release = replace(release, above=above)
    thresholds, costs = automation.above.copy(), (prices.false_call, prices.review)
    for index in np.flatnonzero(free & (np.arange(len(mix)) != normal)):
        scores = np.where(best == index, odds[:, index], -math.inf)
        thresholds[index] = _threshold(scores, target == index, weight, costs, at_least=-math.inf)
    return release, replace(automation, above=thresholds)


def _threshold(
    scores: FloatArray,
    right: BoolArray,
    weight: FloatArray,
    costs: tuple[float, float],
    *,
    at_least: float,
) -> float:
    """The one of least cost: who exceeds it and is wrong costs, and who is held back, too."""
    called = scores > -math.inf
    order = np.argsort(-scores[called], kind="stable")
    ranked = scores[called][order]
    each = weight[called][order]
    wrong = np.where(right[called][order], 0.0, each)
    # With the first so many above it.
    cost = costs[0] * np.concatenate([[0.0], np.cumsum(wrong)])
    cost += costs[1] * (each.sum() - np.concatenate([[0.0], np.cumsum(each)]))
    # A threshold is a score: those that equal it are held back.
    thresholds = np.append(ranked, -math.inf)
    number_above = np.searchsorted(-ranked, -thresholds, side="left")
    allowed = np.where(thresholds >= at_least, cost[number_above], math.inf)
    return max(at_least, float(thresholds[allowed.argmin()]))
