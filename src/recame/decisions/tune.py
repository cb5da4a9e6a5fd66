"""Fit a policy to labelled scores and limits, with what it promises and what it costs.

Works on arrays only, so the scores may come from any model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.actions import REVIEW, UNKNOWN, Policy
from recame.decisions.automation import fit_automation
from recame.decisions.expected import Expected, expect, frontier
from recame.decisions.false_alarms import asked_alarms, fit_alarms, most_alarms
from recame.decisions.limits import ESTIMATE, Limits
from recame.decisions.line_mix import LineMix
from recame.decisions.prices import cheapest
from recame.decisions.promises import risk_of_each
from recame.decisions.release import Release, check_defects, fit_release, promised_classes
from recame.decisions.review_budget import first_place
from recame.decisions.scored import Scored, class_log_odds, defect_weights, release_scores
from recame.decisions.tuned import Tuned
from recame.errors import ConfigError, DataError
from recame.metrics.statistics import wilson_interval
from recame.names import counted, quoted

#: A review budget that leaves smaller lots without a place gets no note.
_SMALL_LOT = 10


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
    line: LineMix | None = None,
    tail: BoolArray | None = None,
    products: Sequence[str] | None = None,
    product_column: str = "product",
) -> Tuned:
    """Fit a policy to labelled images that did not train the model.

    Args:
        scored: scores of the calibration images.
        names: of the C classes.
        normal: the class that may be released; None: no image is released, and predicted classes
            are booked automatically if their purity is kept.
        limits: the limits; None: `Limits()`.
        unit: what is counted, in words; for example `board` if the scores have groups.
        comparisons: K models from which these images chose one; 1: they chose nothing.
        tuning: number of this tuning on these images, from 1; each spends a part of the confidence.
        estimate: why nothing can be promised, for example because weights were fitted to these
            images.
        usual_mix: (C,) weights of the classes on the line if the limits state none; None: as in
            the labelled images.
        line: the estimated class shares on the line, if the limits ask to estimate them.
        tail: (C,) the classes with few training images.
        products: products in training; images of other products go to a person.
        product_column: the tables' column of products.

    Raises:
        ConfigError: a limit cannot be promised, a class is unknown, or there is no defect.
        DataError: there is no labelled image.
    """
    limits = limits or Limits()
    limits.check_classes(names, normal, "limits")
    _check_line(limits, line)
    images = scored.counted()
    if not len(images):
        raise DataError("No image of the calibration has a label: give labelled images.")
    index = None if normal is None else list(names).index(normal)
    odds = class_log_odds(images.logits)
    counts = np.bincount(images.target, minlength=len(names))
    usual = counts.astype(np.float64) if usual_mix is None else usual_mix
    mix = limits.mix(names, usual if line is None else line.shares)
    purities = sum(limits.purity.limit(name) is not None for name in names if name != normal)
    everything = np.ones(len(images), np.bool_)
    for_unknown = _halved(images) if purities else everything
    unknown_images = images.chosen(for_unknown)
    strange = asked_alarms(unknown_images, limits, mix, tail)
    # Unknown images are not booked, so the two thresholds need images of their own.
    for_purity = ~for_unknown if purities and strange.overall is not None else everything
    # An estimated mix must not change the release threshold, nor its share of the risk.
    alarms_asked = strange.number if line is None else most_alarms(unknown_images, limits)
    escapes = 0
    if index is not None:
        check_defects(images.target, names, index)
        escapes = len(promised_classes(images.target, names, index, limits.escape))
    risk = risk_of_each(
        limits.confidence,
        promises=purities + alarms_asked + escapes,
        comparisons=comparisons,
        tuning=tuning,
    )
    # An estimated mix must not change the release threshold.
    weighing = mix if line is None else usual
    words: dict[str, Any] = {"risk": risk, "unit": unit, "why": estimate}
    passing = _Passing(np.full(len(images), -math.inf))
    if index is not None:
        passing = _fit_passing(images, odds, names, index, limits, weighing, mix, **words)
    alarms = fit_alarms(unknown_images, strange, names, risk=risk, why=estimate)
    automation = fit_automation(
        _known_odds(odds, images, alarms.above)[for_purity],
        images.target[for_purity],
        names,
        index,
        limits.purity,
        mix,
        risk=risk,
        why=estimate,
    )
    release, scores = passing.release, passing.scores
    if limits.prices is not None:
        free = np.array([limits.purity.limit(name) is None for name in names])
        release, automation = cheapest(
            odds, scores, images.target, index, mix, limits.prices, free, release, automation
        )
    policy = Policy(
        names=tuple(names),
        normal=index,
        release_above=release.above,
        defect_weights=passing.weights,
        guarded=passing.guarded,
        automatic_above=automation.above,
        unknown_above=alarms.above,
        products=None if products is None else frozenset(products),
        audit=limits.audit,
        product_column=product_column,
        review_budget=limits.review.budget,
        lot_column=limits.review.lot,
    )
    expected = expect(policy, images, mix)
    notes = [
        *alarms.notes,
        *_notes(images, odds, counts, names, limits, trained=usual_mix is not None),
        *(() if line is None else (line.sentence(),)),
    ]
    facts = {
        "confidence": limits.confidence,
        "tuning": tuning,
        "comparisons": comparisons,
        "risk": risk,
        "images": len(images),
        "labelled": int((scored.target >= 0).sum()),
        "unit": unit,
        "counts": dict(zip(names, counts.tolist(), strict=True)),
        **({} if line is None else {"line": line.to_dict()}),
    }
    return Tuned(
        policy=policy,
        promises=(*release.promises, *automation.promises, *alarms.promises),
        expected=expected,
        frontier=passing.frontier,
        unmet=tuple(_unmet(limits, expected, passing.frontier)),
        notes=tuple(notes),
        facts=facts,
    )


class _Passing(NamedTuple):
    """How N images are released; without a normal class none is.

    Attributes:
        scores: (N,) of `release_scores`; -inf: the image is not released at any threshold.
        release: the threshold and its promises.
        weights: (C,) of the defect classes in the scores.
        guarded: indices of the classes without a promise.
        frontier: what each escape limit would cost.
    """

    scores: FloatArray
    release: Release = Release(math.inf, ())
    weights: FloatArray | None = None
    guarded: frozenset[int] = frozenset()
    frontier: tuple[dict[str, Any], ...] = ()


def _fit_passing(
    images: Scored,
    odds: FloatArray,
    names: Sequence[str],
    normal: int,
    limits: Limits,
    weighing: FloatArray,
    mix: FloatArray,
    **words: Any,
) -> _Passing:
    """Fit the release threshold; `weighing` and `mix`: (C,) for the scores and the frontier."""
    promised = promised_classes(images.target, names, normal, limits.escape)
    weights = defect_weights(weighing, normal, promised)
    guarded = frozenset(range(len(names))) - {normal, *promised}
    scores = release_scores(images.logits, normal, weights)
    best = np.nan_to_num(odds, nan=-math.inf).argmax(1)
    scores[np.isin(best, list(guarded))] = -math.inf
    release = fit_release(scores, images.target, names, normal, limits.escape, **words)
    rows = frontier(scores, images.target, best == normal, normal, mix, words["risk"])
    return _Passing(scores, release, weights, guarded, tuple(rows))


def _check_line(limits: Limits, line: LineMix | None) -> None:
    """Check that an estimated mix is given exactly if the limits ask for one."""
    if line is None:
        if limits.line_mix == ESTIMATE:
            raise ConfigError(
                "line_mix: estimate: the mix is estimated from a lot's own predictions, and none "
                "are given: give `line` (recame.decisions.line_mix), or state the mix."
            )
        return
    if limits.line_mix != ESTIMATE:
        raise ConfigError(
            "A lot is given to estimate the line's mix from, but the limits do not ask for it: "
            "write line_mix: estimate, or leave the lot out."
        )
    if limits.prices is not None:
        raise ConfigError(
            "prices choose the release threshold by how often each class comes, and an estimate "
            "(line_mix: estimate) must not do that: state the mix, or leave prices out."
        )


def _halved(images: Scored) -> BoolArray:
    """Choose one half of the images, by their names.

    Unknown images are not booked, so purity is that of the remaining ones. The threshold for
    unknown images and the purity must therefore be fitted to different halves.
    """
    digests = (hashlib.sha256(f"half {name}".encode()).digest() for name in images.images)
    return np.array([digest[0] % 2 == 0 for digest in digests], np.bool_)


def _known_odds(odds: FloatArray, images: Scored, above: float | None) -> FloatArray:
    """Log-odds, NaN for unknown images, which are not booked as any class."""
    if above is None or images.unknown is None:
        return odds
    known = odds.copy()
    known[~(images.unknown <= above)] = math.nan
    return known


def _unmet(limits: Limits, expected: Expected, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say which limits the policy does not keep on the calibration images, and what would."""
    told = []
    overkill = expected.overkill
    if limits.overkill is not None and overkill is not None and overkill > limits.overkill:
        low, high = wilson_interval(round(overkill * expected.num_normal), expected.num_normal)
        told.append(
            f"Overkill: {overkill:.1%} of {expected.num_normal:,} normal images are not released "
            f"({low:.1%} to {high:.1%}); the limit is {limits.overkill:.1%}. No escape limit was "
            f"loosened for it. {_would(rows, 1 - limits.overkill)}"
        )
    review = expected.share(REVIEW) + expected.share(UNKNOWN)
    budget = limits.review.budget
    if budget is not None and review > budget:
        told.append(
            f"Review: {review:.1%} of the images of the line go to a person; the limit is "
            f"{budget:.1%}. No limit was loosened for it: in each lot, images beyond the limit "
            "stay held (over_budget). The frontier shows what each escape limit costs."
        )
    return told


def _would(rows: Sequence[dict[str, Any]], released: float) -> str:
    """Say which escape limit would release this share of normal images."""
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
    *,
    trained: bool,
) -> list[str]:
    """Remarks besides the promises; `trained`: the usual mix is that of training."""
    notes = []
    empty = int((~np.isfinite(odds).all(1)).sum())
    if empty:
        notes.append(
            f"{counted(empty)} of the calibration {'has' if empty == 1 else 'have'} no finite "
            "score; such images go to a person."
        )
    absent = [name for name, number in zip(names, counts, strict=True) if not number]
    if absent:
        notes.append(
            f"No image of {', '.join(map(quoted, absent[:8]))} is in the calibration: it is not "
            "known how often one is released or called something else."
        )
    if images.groups is None:
        notes.append(
            "No column says which images belong together (one board, wafer or lot): images are "
            "taken as independent. If they are not, the promises are too optimistic: name the "
            "column as group."
        )
    if limits.line_mix is None and limits.purity.asked:
        where = "training" if trained else "the calibration"
        notes.append(f"Purity is for a line on which the classes come as in {where}.")
    if limits.review.budget:
        first = first_place(limits.review.budget)
        if first > _SMALL_LOT:
            notes.append(
                f"The review budget of a lot is rounded down to whole images: with "
                f"{limits.review.budget:.1%}, people see none of a lot of fewer than {first:,} "
                "images, and all that goes to a person for its score stays held."
            )
    return notes
