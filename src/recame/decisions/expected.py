"""What a policy does with its calibration images, and what other limits would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.actions import AUTOMATIC, RELEASE, Policy
from recame.decisions.exact import above_all_but, most_allowed
from recame.decisions.scored import Scored, class_log_odds

#: Escape limits that the frontier shows.
FRONTIER_LIMITS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Expected:
    """What a policy does, estimated from its calibration images.

    Attributes:
        by_class: (C, 4) share of each class that is released, booked automatically, sent to a
            person, or unknown; NaN without images.
        mix: (C,) shares of the classes on the line.
        right: share of the automatically booked images that belong to the booked class; NaN if
            none is booked.
        normal: index of the normal class; None: there is none.
        num_normal: number of normal images in the calibration.
    """

    by_class: FloatArray
    mix: FloatArray
    right: float
    normal: int | None
    num_normal: int

    def share(self, action: int) -> float:
        """Share of all images on the line that get an action; classes without images left out."""
        return self._mean(action, np.ones(len(self.mix), np.bool_))

    @property
    def overkill(self) -> float | None:
        """Share of normal images that are not released; None without normal images."""
        if self.normal is None or not self.num_normal:
            return None
        return float(1 - self.by_class[self.normal, RELEASE])

    @property
    def escape(self) -> float | None:
        """Share of the defects on the line that are released; classes without images left out."""
        if self.normal is None:
            return None
        return self._mean(RELEASE, np.arange(len(self.mix)) != self.normal)

    def _mean(self, action: int, classes: BoolArray) -> float:
        """Share of these classes' images on the line that get an action; 0 if there are none."""
        shares = self.by_class[:, action]
        # A class without images is left out: its share is not known, and not 0.
        weight = np.where(classes & np.isfinite(shares), self.mix, 0.0)
        return float((weight * np.nan_to_num(shares)).sum() / (weight.sum() or 1.0))

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return it as values for JSON."""
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


def expect(policy: Policy, images: Scored, mix: FloatArray) -> Expected:
    """Estimate what a policy does on a line with these class shares, from labelled images."""
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


def frontier(
    scores: FloatArray,
    target: IntArray,
    called: BoolArray,
    normal: int,
    mix: FloatArray,
    risk: float,
) -> list[dict[str, Any]]:
    """For each escape limit, the same for all defect classes: is it promised, what does it cost?

    Args:
        scores: (N,) of `recame.decisions.scored.release_scores`.
        target: (N,) class indices.
        called: (N,) whether an image is predicted as normal.
        normal: index of the normal class.
        mix: (C,) shares of the classes on the line.
        risk: of each promise.
    """
    counts = np.bincount(target, minlength=len(mix))
    defects = [i for i in range(len(mix)) if i != normal and counts[i]]
    own = {index: np.sort(scores[target == index]) for index in defects}
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


class RiskCoverage(NamedTuple):
    """Error rate of the decisions, by the share of a line that needs no person.

    Attributes:
        coverage: (N,) ascending shares of the line, the most certain images first.
        errors: (N,) error rate among them.
        oracle: (N,) error rate of an oracle that sends the wrong ones to people first.
    """

    coverage: FloatArray
    errors: FloatArray
    oracle: FloatArray


def risk_coverage(images: Scored, mix: FloatArray) -> RiskCoverage:
    """Risk-coverage curve if the least certain images go to people (Geifman, El-Yaniv 2017).

    Args:
        images: labelled images that count (`Scored.counted`).
        mix: (C,) shares of the classes on the line.
    """
    odds = class_log_odds(images.logits)
    certainty = np.nan_to_num(odds.max(1), nan=-math.inf)
    wrong = np.nan_to_num(odds, nan=-math.inf).argmax(1) != images.target
    wrong |= ~np.isfinite(certainty)
    counts = np.bincount(images.target, minlength=len(mix))
    weight = (mix / np.maximum(counts, 1))[images.target]
    weight = weight / max(float(weight.sum()), 1e-300)

    def curve(order: IntArray) -> tuple[FloatArray, FloatArray]:
        covered = np.cumsum(weight[order])
        return covered, np.cumsum((weight * wrong)[order]) / np.maximum(covered, 1e-300)

    coverage, errors = curve(np.argsort(-certainty, kind="stable"))
    known, least = curve(np.argsort(wrong, kind="stable"))
    return RiskCoverage(coverage, errors, np.interp(coverage, known, least))
