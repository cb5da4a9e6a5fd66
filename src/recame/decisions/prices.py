"""Choose the thresholds of lowest cost among those that keep all promised limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.automation import Automation
from recame.decisions.limits import Prices
from recame.decisions.release import Release


def cheapest(
    odds: FloatArray,
    scores: FloatArray,
    target: IntArray,
    normal: int | None,
    mix: FloatArray,
    prices: Prices,
    free: BoolArray,
    release: Release,
    automation: Automation,
) -> tuple[Release, Automation]:
    """Find the thresholds of lowest cost that keep what is promised.

    A higher release threshold still keeps its promises. A purity is promised only at its own
    threshold, so that threshold is not changed.

    Args:
        odds: (N, C) log-odds of each class; NaN if the model gives no numbers.
        scores: (N,) of release (`recame.decisions.scored.release_scores`); not used without a
            normal class.
        target: (N,) class indices.
        normal: index of the normal class; None: there is none.
        mix: (C,) shares of the classes on the line.
        prices: of an escape, a false call and a review.
        free: (C,) classes without a purity limit.
        release: the promised release threshold.
        automation: the promised thresholds of automation.
    """
    counts = np.bincount(target, minlength=len(mix))
    weight = (mix / np.maximum(counts, 1))[target]
    best = np.where(np.isfinite(odds).all(1), np.nan_to_num(odds).argmax(1), -1)
    if normal is not None:
        # Cost of an image that is held back. Predicted as normal, it goes to a person. Predicted as
        # a defect, it is booked or reviewed, whichever is cheaper; a true defect costs nothing.
        on_hold = np.where(best == normal, prices.review, min(prices.review, prices.false_call))
        on_hold = np.where((best != normal) & (target != normal), 0.0, on_hold)
        escapes = np.where(target == normal, 0.0, prices.escape)
        known = scores > -math.inf
        above = _threshold(
            scores[known],
            (weight * escapes)[known],
            (weight * on_hold)[known],
            at_least=release.above,
        )
        release = replace(release, above=above)
    thresholds = automation.above.copy()
    for index in np.flatnonzero(free & (np.arange(len(mix)) != normal)):
        own = best == index
        wrong = np.where(target == index, 0.0, prices.false_call)
        thresholds[index] = _threshold(
            odds[own, index], (weight * wrong)[own], weight[own] * prices.review, at_least=-math.inf
        )
    return release, replace(automation, above=thresholds)


def _threshold(
    scores: FloatArray, above: FloatArray, below: FloatArray, *, at_least: float
) -> float:
    """Find the threshold of lowest cost.

    Args:
        scores: (N,) the threshold is one of them; images that equal it are held back.
        above: (N,) cost of each image if it exceeds the threshold.
        below: (N,) cost of each image if it is held back.
        at_least: lower bound of the threshold.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # cost[k]: with the k largest scores above the threshold.
    cost = np.concatenate([[0.0], np.cumsum(above[order])])
    cost += below.sum() - np.concatenate([[0.0], np.cumsum(below[order])])
    thresholds = np.append(ranked, -math.inf)
    number_above = np.searchsorted(-ranked, -thresholds, side="left")
    allowed = np.where(thresholds >= at_least, cost[number_above], math.inf)
    return max(at_least, float(thresholds[allowed.argmin()]))
