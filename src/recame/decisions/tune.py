"""From labelled scores and limits to a policy, what it promises, and what it costs.

The whole of it from arrays: the scores may be any model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.actions import AUTOMATIC, RELEASE, REVIEW, UNKNOWN, Policy
from recame.decisions.automation import Automation, fit_automation
from recame.decisions.exact import above_all_but, most_allowed
from recame.decisions.limits import Limits, Prices
from recame.decisions.promises import Promise, risk_of_each
from recame.decisions.release import Release, check_defects, fit_release, promised_classes
from recame.decisions.scored import Scored, class_log_odds
from recame.errors import DataError
from recame.metrics.statistics import wilson_interval
from recame.names import counted, quoted

#: Escape limits that the frontier shows.
FRONTIER_LIMITS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Expected:
    """What a policy does, as its calibration images tell.

    Attributes:
        by_class: (C, 4) share of each class that is released, decided automatically, sent to a
            person, or unknown; NaN without images.
        mix: (C,) shares of the classes on the line.
        right: share of what is decided automatically that is of its class; NaN where nothing is.
        normal: index of the normal class; None: there is none.
        num_normal: normal images in the calibration.
    """

    by_class: FloatArray
    mix: FloatArray
    right: float
    normal: int | None
    num_normal: int

    def share(self, action: int) -> float:
        """Share of all images on the line that have an action."""
        return float(np.nansum(self.mix * np.nan_to_num(self.by_class[:, action])))

    @property
    def overkill(self) -> float | None:
        """Share of normal images that are not released."""
        return None if self.normal is None else float(1 - self.by_class[self.normal, RELEASE])

    @property
    def escape(self) -> float | None:
        """Share of the defects on the line that are released."""
        if self.normal is None:
            return None
        defects = np.arange(len(self.mix)) != self.normal
        weight = float(self.mix[defects].sum())
        passed = float((self.mix * np.nan_to_num(self.by_class[:, RELEASE]))[defects].sum())
        return passed / weight if weight else 0.0

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Ready for JSON."""
        kinds = ("release", "automatic", "review", "unknown")
        return {
            **{kind: self.share(action) for action, kind in enumerate(kinds)},
            "overkill": self.overkill,
            "escape": self.escape,
            "automatic_right": None if math.isnan(self.right) else self.right,
            "line_mix": dict(zip(names, self.mix.tolist(), strict=True)),
            "by_class": {
                name: None if np.isnan(row).any() else dict(zip(kinds, row.tolist(), strict=True))
                for name, row in zip(names, self.by_class, strict=True)
            },
        }


@dataclass(frozen=True)
class Tuned:
    """What was fitted.

    Attributes:
        policy: the thresholds.
        promises: one a limit.
        expected: what the policy does, as far as the calibration tells.
        frontier: for each escape limit what it would cost, a row each.
        unmet: limits that are not kept, in sentences; nothing was loosened for them.
        notes: what else is to be known.
        facts: `confidence`, `tuning`, `comparisons`, `risk`, `images`, `unit` and `counts`.
    """

    policy: Policy
    promises: tuple[Promise, ...]
    expected: Expected
    frontier: tuple[dict[str, Any], ...]
    unmet: tuple[str, ...]
    notes: tuple[str, ...]
    facts: dict[str, Any]

    def sentences(self) -> list[str]:
        """All that is promised, what is not kept, and what else is to be known."""
        told = [promise.sentence(self.facts["unit"]) for promise in self.promises]
        if any(promise.holds for promise in self.promises):
            told.append(
                f"All of these limits hold together with {self.facts['confidence']:.0%} confidence."
            )
        return [*told, *self.unmet, *self.notes]


def tune(
    scored: Scored,
    names: Sequence[str],
    normal: str | None,
    limits: Limits | None = None,
    *,
    unit: str = "image",
    comparisons: int = 1,
    tuning: int = 1,
    estimate: str = "",
    usual_mix: FloatArray | None = None,
    tail: BoolArray | None = None,
    products: Sequence[str] | None = None,
) -> Tuned:
    """Fit a policy to labelled images that trained nothing.

    Args:
        scored: of the calibration images.
        names: of the C classes.
        normal: the class that may be released; None: none is, and all that is called a class is
            decided automatically where its purity is kept.
        limits: what is asked; None: as `Limits()`.
        unit: what counts, in words: of scores with groups `board`, for instance.
        comparisons: K models of which these images have chosen one; 1: they have chosen nothing.
        tuning: the how many-th of these images; each spends a part of the confidence.
        estimate: why nothing can be promised, as where weights were fitted to these images.
        usual_mix: (C,) weights of the classes on the line where the limits state none; None: as
            the labelled images come.
        tail: (C,) the classes of few training images.
        products: of the training; images of others go to a person.

    Raises:
        ConfigError: a limit cannot be promised, names no class, or there is no defect.
        DataError: there is no labelled image.
    """
    limits = limits or Limits()
    limits.check_classes(names, normal, "limits")
    images = scored.counted()
    if not len(images):
        raise DataError("No image of the calibration has a label, and labels are what tells.")
    index = None if normal is None else list(names).index(normal)
    odds = class_log_odds(images.logits)
    counts = np.bincount(images.target, minlength=len(names))
    mix = limits.mix(names, counts.astype(np.float64) if usual_mix is None else usual_mix)
    strange = (limits.unknown_false_alarm, limits.tail_false_alarm)
    promises = sum(limit is not None for limit in strange)
    promises += sum(limits.purity.limit(name) is not None for name in names if name != normal)
    if index is not None:
        check_defects(images.target, names, index)
        promises += len(promised_classes(images.target, names, index, limits.escape))
    risk = risk_of_each(
        limits.confidence, promises=promises, comparisons=comparisons, tuning=tuning
    )
    release, rows = Release(math.inf, ()), []
    if index is not None:
        scores = normal_scores(odds, index)
        words: dict[str, Any] = {"risk": risk, "unit": unit, "why": estimate}
        release = fit_release(scores, images.target, names, index, limits.escape, **words)
        rows = _frontier(scores, images.target, index, mix, risk)
    automation = fit_automation(
        odds, images.target, names, index, limits.purity, mix, risk=risk, why=estimate
    )
    if limits.prices is not None:
        release, automation = _priced(odds, images.target, index, mix, limits, release, automation)
    known = None if products is None else frozenset(products)
    policy = Policy(tuple(names), index, release.above, automation.above, None, known)
    expected = expect(policy, images, mix)
    notes = _notes(images, odds, counts, names, limits)
    facts = {
        "confidence": limits.confidence,
        "tuning": tuning,
        "comparisons": comparisons,
        "risk": risk,
        "images": len(images),
        "unit": unit,
        "counts": dict(zip(names, counts.tolist(), strict=True)),
    }
    return Tuned(
        policy=policy,
        promises=(*release.promises, *automation.promises),
        expected=expected,
        frontier=tuple(rows),
        unmet=tuple(_unmet(limits, expected, rows)),
        notes=tuple(notes),
        facts=facts,
    )


def normal_scores(odds: FloatArray, normal: int) -> FloatArray:
    """(N,) log-odds of the normal class; -inf where an image is called another, or nothing."""
    called = np.isfinite(odds).all(1) & (np.nan_to_num(odds).argmax(1) == normal)
    return np.where(called, odds[:, normal], -math.inf)


def expect(policy: Policy, images: Scored, mix: FloatArray) -> Expected:
    """What a policy does with labelled images, on a line with these shares of the classes."""
    acted = policy.act(images.logits, strangeness=images.unknown)
    counts = np.bincount(images.target, minlength=len(mix))
    table = np.zeros((len(mix), 4))
    np.add.at(table, (images.target, acted.action), 1.0)
    with np.errstate(invalid="ignore"):
        shares = table / counts[:, None]
    automatic = acted.action == AUTOMATIC
    weight = (mix / np.maximum(counts, 1))[images.target]
    taken = float(weight[automatic].sum())
    right = float(weight[automatic & (acted.best == images.target)].sum())
    number = 0 if policy.normal is None else int(counts[policy.normal])
    return Expected(shares, mix, right / taken if taken else math.nan, policy.normal, number)


def _frontier(
    scores: FloatArray, target: IntArray, normal: int, mix: FloatArray, risk: float
) -> list[dict[str, Any]]:
    """For each escape limit, of all defect classes alike: whether it is promised, and its price."""
    counts = np.bincount(target, minlength=len(mix))
    defects = [i for i in range(len(mix)) if i != normal and counts[i]]
    own = {index: np.sort(scores[target == index]) for index in defects}
    called = scores > -math.inf
    weight = (mix / np.maximum(counts, 1))[target]
    rows = []
    for limit in FRONTIER_LIMITS:
        allowed = {i: most_allowed(int(counts[i]), limit, risk) for i in defects}
        above = max((above_all_but(own[i], max(0, allowed[i])) for i in defects), default=math.inf)
        passes = scores > above
        rows.append(
            {
                "escape_limit": limit,
                "promised_classes": sum(k >= 0 for k in allowed.values()),
                "defect_classes": len(defects),
                "release_above": above,
                "normal_released": float(passes[target == normal].mean())
                if counts[normal]
                else math.nan,
                "defects_released": int((passes & (target != normal)).sum()),
                "review_of_called_normal": float(weight[called & ~passes].sum()),
            }
        )
    return rows


def _priced(
    odds: FloatArray,
    target: IntArray,
    normal: int | None,
    mix: FloatArray,
    limits: Limits,
    release: Release,
    automation: Automation,
) -> tuple[Release, Automation]:
    """Of what the promises leave open, what costs least: higher thresholds promise no less."""
    prices = limits.prices
    assert prices is not None  # asked where there are some
    counts = np.bincount(target, minlength=len(mix))
    weight = (mix / np.maximum(counts, 1))[target]
    finite = np.isfinite(odds).all(1)
    best = np.where(finite, np.nan_to_num(odds).argmax(1), -1)
    if normal is not None:
        above = _cheapest(
            normal_scores(odds, normal), target == normal, weight, prices.escape, prices,
            at_least=release.above,
        )  # fmt: skip
        release = replace(release, above=above)
    thresholds = automation.above.copy()
    for index in range(len(mix)):
        # A limit of purity is shown at its own threshold alone, and no other is taken.
        if index == normal or np.isfinite(thresholds[index]) or thresholds[index] == math.inf:
            continue
        scores = np.where(best == index, odds[:, index], -math.inf)
        thresholds[index] = _cheapest(
            scores, target == index, weight, prices.false_call, prices, at_least=-math.inf
        )
    return release, replace(automation, above=thresholds)


def _cheapest(
    scores: FloatArray,
    right: BoolArray,
    weight: FloatArray,
    wrong_price: float,
    prices: Prices,
    *,
    at_least: float,
) -> float:
    """The threshold of least cost: who exceeds it and is wrong costs, and who is held back, too."""
    called = scores > -math.inf
    order = np.argsort(-scores[called], kind="stable")
    ranked = scores[called][order]
    each = weight[called][order]
    wrong = np.where(right[called][order], 0.0, each)
    # With the first so many above it.
    cost = wrong_price * np.concatenate([[0.0], np.cumsum(wrong)])
    cost += prices.review * (each.sum() - np.concatenate([[0.0], np.cumsum(each)]))
    # A threshold is a score: those that equal it are held back.
    thresholds = np.append(ranked, -math.inf)
    number_above = np.searchsorted(-ranked, -thresholds, side="left")
    costs = cost[number_above]
    costs[thresholds < at_least] = math.inf
    if not np.isfinite(costs).any():
        return at_least
    found = float(thresholds[costs.argmin()])
    return max(found, at_least)


def _unmet(limits: Limits, expected: Expected, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Limits that the policy does not keep, as far as the calibration tells, and what would."""
    told = []
    overkill = expected.overkill
    if limits.overkill is not None and overkill is not None and overkill > limits.overkill:
        low, high = wilson_interval(round(overkill * expected.num_normal), expected.num_normal)
        told.append(
            f"Overkill: {overkill:.1%} of {expected.num_normal:,} normal images are not released "
            f"({low:.1%} to {high:.1%}), and {limits.overkill:.1%} were asked. No escape limit was "
            f"loosened for it. {_would(rows, 1 - limits.overkill)}"
        )
    review = expected.share(REVIEW) + expected.share(UNKNOWN)
    if limits.review_share is not None and review > limits.review_share:
        told.append(
            f"Review: {review:.1%} of the images of the line go to a person, and "
            f"{limits.review_share:.1%} were asked. No limit was loosened for it; the frontier "
            "shows what each escape limit costs."
        )
    return told


def _would(rows: Sequence[dict[str, Any]], released: float) -> str:
    """What escape limit would release so large a share of normal images."""
    enough = [row["escape_limit"] for row in rows if row["normal_released"] >= released]
    if not enough:
        return "No escape limit of the frontier releases as many."
    return f"An escape limit of {min(enough):.1%} would release as many."


def _notes(
    images: Scored,
    odds: FloatArray,
    counts: IntArray,
    names: Sequence[str],
    limits: Limits,
) -> list[str]:
    """What an engineer should know beside the promises."""
    notes = []
    empty = int((~np.isfinite(odds).all(1)).sum())
    if empty:
        notes.append(
            f"{counted(empty)} of the calibration have no finite score; such images go to a person."
        )
    absent = [name for name, number in zip(names, counts, strict=True) if not number]
    if absent:
        notes.append(
            f"No image of {', '.join(map(quoted, absent[:8]))} is in the calibration: nothing is "
            "known of how often one is released or called something else."
        )
    if images.groups is None:
        notes.append(
            "No column says which images belong together (one board, wafer or lot): images are "
            "taken as independent. If they are not, the promises are too good; name it as group."
        )
    if limits.line_mix is None and limits.purity.asked:
        notes.append("Purity is for a line on which the classes come as in the calibration.")
    return notes
