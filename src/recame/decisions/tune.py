"""From labelled scores and limits to a policy, what it promises, and what it costs.

The whole of it from arrays: the scores may be any model's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.actions import REVIEW, UNKNOWN, Policy
from recame.decisions.automation import fit_automation
from recame.decisions.exact import images_needed
from recame.decisions.expected import Expected, expect, frontier
from recame.decisions.false_alarms import asked_alarms, fit_alarms, most_alarms
from recame.decisions.limits import ESTIMATE, USUAL_ESCAPE, Limits
from recame.decisions.line_mix import LineMix
from recame.decisions.prices import cheapest
from recame.decisions.promises import Promise, risk_of_each
from recame.decisions.release import Release, check_defects, fit_release, promised_classes
from recame.decisions.review_budget import first_place
from recame.decisions.scored import Scored, class_log_odds, defect_weights, release_scores
from recame.errors import ConfigError, DataError
from recame.metrics.statistics import wilson_interval
from recame.names import counted, quoted

if TYPE_CHECKING:
    import pandas as pd

#: Lots of fewer images are told nothing of what a review budget leaves them.
_SMALL_LOT = 10


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
        facts: `confidence`, `tuning`, `comparisons`, `risk`, `images`, `unit` and `counts`; where
            the line's mix was estimated, `line`.
    """

    policy: Policy
    promises: tuple[Promise, ...]
    expected: Expected
    frontier: tuple[dict[str, Any], ...]
    unmet: tuple[str, ...]
    notes: tuple[str, ...]
    facts: dict[str, Any]

    def __str__(self) -> str:
        """All that is promised, a sentence a line."""
        return "\n".join(self.sentences())

    def to_frame(self) -> pd.DataFrame:
        """The promises, a row each, and how many images they rest on; `frontier` holds prices."""
        import pandas as pd

        return pd.DataFrame([promise.to_dict() for promise in self.promises])

    def sentences(self) -> list[str]:
        """All that is promised, what is not kept, and what else is to be known."""
        told = [text for _, text in self.promised()] + self.unpromised()
        if any(promise.holds for promise in self.promises):
            told.append(
                f"All of these limits hold together with {self.facts['confidence']:.0%} confidence."
            )
        escapes = [promise for promise in self.promises if promise.kind == "escape"]
        if escapes and not any(promise.limit is not None for promise in escapes):
            told.append(self._nothing_released(1 + len(self.promises) - len(escapes)))
        return [*told, *self.unmet, *self.notes]

    def promised(self) -> list[tuple[Promise, str]]:
        """Each promise and its sentence; a reason that all share is left to `unpromised`."""
        unit, shared = self.facts["unit"], bool(self.unpromised())
        plain = [replace(each, why="") if shared else each for each in self.promises]
        words = [each.sentence(unit, estimated=shared) for each in plain]
        return list(zip(self.promises, words, strict=True))

    def unpromised(self) -> list[str]:
        """Why all limits, if there are several, are estimates: one sentence or none."""
        reasons = {"" if each.limit is None else each.why for each in self.promises}
        if len(self.promises) < 2 or len(reasons) > 1 or not (why := reasons.pop()):
            return []
        return [f"None of this is promised: {why}."]

    def _nothing_released(self, promises: int) -> str:
        """What one escape limit takes, of so many promises."""
        shared = {name: self.facts[name] for name in ("confidence", "comparisons", "tuning")}
        needed = images_needed(USUAL_ESCAPE, risk_of_each(promises=promises, **shared))
        assert needed is not None
        return (
            f"No image is released, since no escape limit is promised: {USUAL_ESCAPE:.0%} of one "
            f"class takes {counted(needed, self.facts['unit'])} of it, none of them released."
        )


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
        line: the classes' shares on the line, where the limits ask to estimate them.
        tail: (C,) the classes of few training images.
        products: of the training; images of others go to a person.
        product_column: what tables call them.

    Raises:
        ConfigError: a limit cannot be promised, names no class, or there is no defect.
        DataError: there is no labelled image.
    """
    limits = limits or Limits()
    limits.check_classes(names, normal, "limits")
    _check_line(limits, line)
    images = scored.counted()
    if not len(images):
        raise DataError("No image of the calibration has a label, and labels are what tells.")
    index = None if normal is None else list(names).index(normal)
    odds = class_log_odds(images.logits)
    counts = np.bincount(images.target, minlength=len(names))
    usual = counts.astype(np.float64) if usual_mix is None else usual_mix
    mix = limits.mix(names, usual if line is None else line.shares)
    purified = any(limits.purity.limit(name) is not None for name in names if name != normal)
    laying = _halved(images) if purified else np.ones(len(images), np.bool_)
    strangers = images.chosen(laying)
    strange = asked_alarms(strangers, limits, mix, tail)
    if strange.overall is None:
        laying[:] = False  # which is no half of anything
    # What is estimated moves no threshold of release, nor the risk that it takes.
    promises = strange.number if line is None else most_alarms(strangers, limits)
    promises += sum(limits.purity.limit(name) is not None for name in names if name != normal)
    if index is not None:
        check_defects(images.target, names, index)
        promises += len(promised_classes(images.target, names, index, limits.escape))
    risk = risk_of_each(
        limits.confidence, promises=promises, comparisons=comparisons, tuning=tuning
    )
    release, rows = Release(math.inf, ()), []
    weights, guarded = None, frozenset[int]()
    scores = np.full(len(images), -math.inf)
    if index is not None:
        promised = promised_classes(images.target, names, index, limits.escape)
        # What is estimated moves no threshold of release.
        weights = defect_weights(mix if line is None else usual, index, promised)
        guarded = frozenset(range(len(names))) - {index, *promised}
        scores = release_scores(images.logits, index, weights)
        best = np.nan_to_num(odds, nan=-math.inf).argmax(1)
        scores[np.isin(best, list(guarded))] = -math.inf
        words: dict[str, Any] = {"risk": risk, "unit": unit, "why": estimate}
        release = fit_release(scores, images.target, names, index, limits.escape, **words)
        rows = frontier(scores, images.target, best == index, index, mix, risk)
    alarms = fit_alarms(strangers, strange, names, risk=risk, why=estimate)
    automation = fit_automation(
        _known_odds(odds, images, alarms.above)[~(laying & purified)],
        images.target[~(laying & purified)],
        names,
        index,
        limits.purity,
        mix,
        risk=risk,
        why=estimate,
    )
    if limits.prices is not None:
        free = np.array([limits.purity.limit(name) is None for name in names])
        release, automation = cheapest(
            odds, scores, images.target, index, mix, limits.prices, free, release, automation
        )
    known = None if products is None else frozenset(products)
    policy = Policy(
        names=tuple(names),
        normal=index,
        release_above=release.above,
        defect_weights=weights,
        guarded=guarded,
        automatic_above=automation.above,
        unknown_above=alarms.above,
        products=known,
        audit=limits.audit,
        product_column=product_column,
        review_budget=limits.review.budget,
        lot_column=limits.review.lot,
    )
    expected = expect(policy, images, mix)
    notes = [*alarms.notes]
    notes += _notes(images, odds, counts, names, limits, trained=usual_mix is not None)
    notes += [] if line is None else [line.sentence()]
    facts = {
        "confidence": limits.confidence,
        "tuning": tuning,
        "comparisons": comparisons,
        "risk": risk,
        "images": len(images),
        "unit": unit,
        "counts": dict(zip(names, counts.tolist(), strict=True)),
        **({} if line is None else {"line": line.to_dict()}),
    }
    return Tuned(
        policy=policy,
        promises=(*release.promises, *automation.promises, *alarms.promises),
        expected=expected,
        frontier=tuple(rows),
        unmet=tuple(_unmet(limits, expected, rows)),
        notes=tuple(notes),
        facts=facts,
    )


def _check_line(limits: Limits, line: LineMix | None) -> None:
    """Refuse an estimate that is asked and not there, or there and not asked."""
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
            "prices choose a threshold of release by how often each class comes, and none follows "
            "from an estimate (line_mix: estimate): state the mix, or leave prices out."
        )


def _halved(images: Scored) -> BoolArray:
    """One half of the images, by their names.

    What is unknown is not booked, so that purity is that of what is left: a threshold that the same
    images had laid would leave what suits them.
    """
    digests = (hashlib.sha256(f"half {name}".encode()).digest() for name in images.images)
    return np.array([digest[0] % 2 == 0 for digest in digests], np.bool_)


def _known_odds(odds: FloatArray, images: Scored, above: float | None) -> FloatArray:
    """Log-odds of which unknown images have none: they are called by no class."""
    if above is None or images.unknown is None:
        return odds
    known = odds.copy()
    known[~(images.unknown <= above)] = math.nan
    return known


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
    budget = limits.review.budget
    if budget is not None and review > budget:
        told.append(
            f"Review: {review:.1%} of the images of the line go to a person, and {budget:.1%} "
            "were asked. No limit was loosened for it: in each lot what is beyond it stays held "
            "(over_budget). The frontier shows what each escape limit costs."
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
    *,
    trained: bool,
) -> list[str]:
    """What an engineer should know beside the promises; `trained`: the usual mix is given."""
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
            f"No image of {', '.join(map(quoted, absent[:8]))} is in the calibration: nothing is "
            "known of how often one is released or called something else."
        )
    if images.groups is None:
        notes.append(
            "No column says which images belong together (one board, wafer or lot): images are "
            "taken as independent. If they are not, the promises are too good; name it as group."
        )
    if limits.line_mix is None and limits.purity.asked:
        where = "training" if trained else "the calibration"
        notes.append(f"Purity is for a line on which the classes come as in {where}.")
    if limits.review.budget:
        first = first_place(limits.review.budget)
        if first > _SMALL_LOT:
            notes.append(
                f"Of a lot people see whole images, rounded down: with a review budget of "
                f"{limits.review.budget:.1%} one of fewer than {first:,} images has no place, and "
                "all that goes to a person for its score stays held."
            )
    return notes
