"""Which defects are booked without a person: each class whose purity keeps its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.exact import smallest_limit
from recame.decisions.limits import PerClass
from recame.decisions.promises import Promise

#: Shares of a class's images above the threshold that are tried, the strictest first.
_COVERED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Automation:
    """Thresholds above which a predicted class is booked automatically.

    Attributes:
        above: (C,) an image predicted as a class is booked as it if its log-odds of that class
            exceed this; -inf: every image is, inf: none is.
        promises: of the classes that have a limit.
    """

    above: FloatArray
    promises: tuple[Promise, ...]


def fit_automation(
    odds: FloatArray,
    target: IntArray,
    names: Sequence[str],
    normal: int | None,
    purity: PerClass,
    mix: FloatArray,
    *,
    risk: float,
    why: str = "",
) -> Automation:
    """Find the lowest thresholds that keep the purity limit of each class.

    If m of the class's n images lie above a threshold, at least a share L of the class will. If e
    images of another class lie above it too, at most a share U of that class will. Both are exact
    one-sided bounds (Clopper and Pearson 1934), each with a part of the risk. On a line with shares
    w of the classes, the purity is then at least w L / (w L + sum of w U over the others).
    Thresholds are tried from the strictest to the loosest, and the last one that keeps the limit is
    taken. This fixed sequence spends the risk of the other classes only once (Bauer, Statistics in
    Medicine 1991); the bound of the class itself is paid for at each threshold.

    Args:
        odds: (N, C) log-odds of each class; NaN if the model gives no numbers.
        target: (N,) class indices.
        names: of the C classes.
        normal: index of the class that is released and never booked; None: there is none.
        purity: limits.
        mix: (C,) shares of the classes on the line.
        risk: of each promise.
        why: reason why the limits are only estimated; empty if they are promised.
    """
    called = np.where(np.isfinite(odds).all(1), np.nan_to_num(odds).argmax(1), -1)
    above = np.full(len(names), -math.inf)
    promises = []
    for index, name in enumerate(names):
        limit = purity.limit(name)
        if index == normal or limit is None:
            continue
        assert isinstance(limit, float)
        scores = np.where(called == index, odds[:, index], -math.inf)
        above[index], bound = _lowest(scores, target, index, 1 - limit, mix, risk)
        wrong = (scores > above[index]) & (target != index)
        taken = int((scores > above[index]).sum())
        told = why
        if bound is None:
            told = "its purity is not shown by so few images"
            told = "no number of images shows a purity of 100%" if limit == 1 else told
        promised = None if bound is None else limit
        promises.append(Promise("purity", name, promised, taken, int(wrong.sum()), 0, risk, told))
    return Automation(above, tuple(promises))


def _lowest(
    scores: FloatArray, target: IntArray, own: int, impurity: float, mix: FloatArray, risk: float
) -> tuple[float, float | None]:
    """The loosest threshold that keeps the limit, and its impurity bound; inf and None: none."""
    counts = np.bincount(target, minlength=len(mix))
    ranked = np.sort(scores[target == own])[::-1]
    found: tuple[float, float | None] = (math.inf, None)
    tried = -1
    for share in _COVERED:
        taken = math.floor(share * len(ranked))
        if taken <= max(tried, 0):
            continue
        tried = taken
        # Exactly `taken` images of the class exceed it.
        above = float(ranked[taken]) if taken < len(ranked) else -math.inf
        bound = _impurity(scores > above, target, counts, own, mix, risk)
        if bound > impurity:
            break
        found = above, bound
        if above == -math.inf:
            break
    return found


def _impurity(
    taken: BoolArray, target: IntArray, counts: IntArray, own: int, mix: FloatArray, risk: float
) -> float:
    """Upper bound of the share of the taken images that belong to other classes."""
    hits = np.bincount(target[taken], minlength=len(counts))
    return most_impure(hits, counts, own, mix, risk / 2 / len(_COVERED), risk / 2)


def most_impure(
    hits: IntArray, counts: IntArray, own: int, mix: FloatArray, own_risk: float, risk: float
) -> float:
    """Upper bound, on a line, of the share of images booked as a class that belong to others.

    Args:
        hits: (C,) images of each class that are booked as this class.
        counts: (C,) all images of each class.
        own: index of the class.
        mix: (C,) shares of the classes on the line.
        own_risk: probability that the class's own share is below its bound.
        risk: probability that the share of any other class is above its bound.
    """
    others = mix > 0
    others[own] = False
    missed = smallest_limit(int(counts[own]), int(counts[own] - hits[own]), own_risk)
    right = mix[own] * (1 - missed)
    each = risk / max(1, int(others.sum()))
    # Most classes have no hit; then the bound has a closed form.
    most = np.where(counts > 0, 1 - each ** (1 / np.maximum(counts, 1)), 1.0)
    for index in np.flatnonzero(hits):
        most[index] = smallest_limit(int(counts[index]), int(hits[index]), each)
    wrong = float((mix * most)[others].sum())
    return float(wrong / (wrong + right)) if right > 0 else 1.0


def least_impure(hits: IntArray, counts: IntArray, own: int, mix: FloatArray, risk: float) -> float:
    """Lower bound of the same share (see `most_impure`)."""
    present = counts > 0
    each = risk / max(1, int(present.sum()))
    least = np.zeros(len(counts))
    for index in np.flatnonzero(hits * present):
        least[index] = 1 - smallest_limit(
            int(counts[index]), int(counts[index] - hits[index]), each
        )
    most = smallest_limit(int(counts[own]), int(hits[own]), each)
    wrong = float((mix * least).sum() - mix[own] * least[own])
    right = float(mix[own] * most)
    return wrong / (wrong + right) if wrong + right > 0 else 0.0
