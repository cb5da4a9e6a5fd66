"""Of what promised limits leave open, what costs least."""

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
    """The thresholds of least cost that keep what is promised.

    A higher threshold of release promises no less. A purity is shown at its own threshold alone,
    which stays.

    Args:
        odds: (N, C) log-odds of each class; NaN where the model gives no numbers.
        scores: (N,) of release (`recame.decisions.scored.release_scores`); not asked without a
            normal class.
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
        # Held back, an image goes to a person where it is called normal; else it is a defect's, to
        # be booked or looked at, whichever is cheaper, and no cost at all where it is one.
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
    """The one of least cost.

    Args:
        scores: (N,) a threshold is one of them, and those that equal it are held back.
        above: (N,) what each costs that exceeds the threshold.
        below: (N,) what each costs that is held back.
        at_least: no lower one is taken.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # With the first so many above it.
    cost = np.concatenate([[0.0], np.cumsum(above[order])])
    cost += below.sum() - np.concatenate([[0.0], np.cumsum(below[order])])
    thresholds = np.append(ranked, -math.inf)
    number_above = np.searchsorted(-ranked, -thresholds, side="left")
    allowed = np.where(thresholds >= at_least, cost[number_above], math.inf)
    return max(at_least, float(thresholds[allowed.argmin()]))
