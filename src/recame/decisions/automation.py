"""Which defects are classified without a person: per class, where its purity meets its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.exact import smallest_limit
from recame.decisions.limits import PerClass
from recame.decisions.promises import Promise

#: Shares of a class that its automation is tried with, the strictest first.
_COVERED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Automation:
    """From which log-odds on what is called a class stands.

    Attributes:
        above: (C,) an image called a class is decided so if its log-odds of it exceed this; -inf:
            all are, inf: none is.
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
    """The lowest thresholds under which what is called a class is of it as often as asked.

    Of a class with m of its n images above a threshold, at least a share L of it will be above;
    of another class with e of its images called so, at most U. Both are exact one-sided bounds
    (Clopper and Pearson 1934) with a part of the risk each, and for a line with shares w of the
    classes the purity is at least w L / (w L + sum of w U over the others). Thresholds are tried
    from the strictest on and the last that keeps the limit is taken: a fixed sequence, which
    spends the others' risk once (Bauer, Statistics in Medicine 1991), while the class's own bound
    is paid for at each.

    Args:
        odds: (N, C) log-odds of each class; NaN where the model gives no numbers.
        target: (N,) class indices.
        names: of the C classes.
        normal: index of the class that is released, which has no automation; None: there is none.
        purity: limits.
        mix: (C,) shares of the classes on the line.
        risk: of each promise.
        why: what makes estimates of all promises; empty where they hold.
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
    """The last threshold that keeps the limit, and its impurity's bound; inf and None: none."""
    counts = np.bincount(target, minlength=len(mix))
    ranked = np.sort(scores[target == own])[::-1]
    found: tuple[float, float | None] = (math.inf, None)
    tried = -1
    for share in _COVERED:
        taken = math.floor(share * len(ranked))
        if taken <= max(tried, 0):
            continue
        tried = taken
        # So many of the class's own exceed it, all of them where that is asked.
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
    """The largest share of what is taken that may be of other classes."""
    hits = np.bincount(target[taken], minlength=len(counts))
    return most_impure(hits, counts, own, mix, risk / 2 / len(_COVERED), risk / 2)


def most_impure(
    hits: IntArray, counts: IntArray, own: int, mix: FloatArray, own_risk: float, risk: float
) -> float:
    """The largest share of what is called a class that may be of others, on a line.

    Args:
        hits: (C,) images of each class that are called so.
        counts: (C,) all images of each class.
        own: index of the class.
        mix: (C,) shares of the classes on the line.
        own_risk: with which the class's own share may be below its bound.
        risk: with which the others' shares may be above theirs, together.
    """
    others = mix > 0
    others[own] = False
    missed = smallest_limit(int(counts[own]), int(counts[own] - hits[own]), own_risk)
    right = mix[own] * (1 - missed)
    each = risk / max(1, int(others.sum()))
    # Without a hit the bound has a closed form, and most classes have none.
    most = np.where(counts > 0, 1 - each ** (1 / np.maximum(counts, 1)), 1.0)
    for index in np.flatnonzero(hits):
        most[index] = smallest_limit(int(counts[index]), int(hits[index]), each)
    wrong = float((mix * most)[others].sum())
    return float(wrong / (wrong + right)) if right > 0 else 1.0


def least_impure(hits: IntArray, counts: IntArray, own: int, mix: FloatArray, risk: float) -> float:
    """The smallest such share: of the class itself at most, of the others at least so many."""
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
