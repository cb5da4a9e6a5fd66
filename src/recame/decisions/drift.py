"""Detect drift: do a lot's images give the model other scores than the calibration images did?

Each lot is compared with the calibration images: the share of images predicted as each class, and
the share whose score is at or above each of a few levels. The test of each share is Fisher's exact
test, which is valid for any two sizes and any distribution.

A small lot shows little, so blocks of two, four, eight ... lots are compared as well, each once it
is complete. The b-th block of 2^s lots may raise a false alarm with a probability of
risk * (6 / pi^2)^2 / (b^2 (s + 1)^2), divided by the number of its shares. Over all blocks
together, at any time, this is at most the risk, although all blocks are compared with the same
calibration images.

A lot that drifts does not prove worse decisions, and a lot that does not drift promises nothing.
But the promises were made for images like the calibration images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.decisions.audit import need_share
from recame.errors import DataError
from recame.names import counted, quoted

_SCHEMA = 1

#: Fixed levels of the score: a test at a level chosen by the calibration images would not be exact.
LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


class Drift(NamedTuple):
    """A share that differs between a block of lots and the calibration images.

    Attributes:
        what: `called NAME`, or `scores from LEVEL`.
        before: share of the calibration images.
        now: share of the block.
        lots: number of lots in the block, which ends with the newest one.
        p_value: adjusted over all shares of all blocks; at most the risk.
    """

    what: str
    before: float
    now: float
    lots: int
    p_value: float

    @property
    def sentence(self) -> str:
        """Describe the drift in words."""
        return (
            f"{self.what}: {self.before:.2%} of the calibration images, {self.now:.2%} of the last "
            f"{counted(self.lots, 'lot')}."
        )


@dataclass
class DriftMonitor:
    """Compare one lot after another with the calibration images.

    Attributes:
        names: of the C classes.
        images: number of calibration images.
        counts: (C + 10,) calibration images predicted as each class, and at or above each level.
        risk: probability that lots without drift are ever reported to drift.
        lots: number of lots compared so far.
        waiting: for each s, the counts and images of a block of 2^s lots that waits for its second
            half; empty if none waits.
    """

    names: tuple[str, ...]
    images: int
    counts: IntArray
    risk: float = 0.05
    lots: int = 0
    waiting: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(
        cls, called: IntArray, scores: FloatArray, names: Sequence[str], risk: float = 0.05
    ) -> DriftMonitor:
        """Start from the calibration images.

        Args:
            called: (N,) index of the predicted class.
            scores: (N,) in [0, 1]; NaN reaches no level.
            names: of the classes.
            risk: probability that lots without drift are ever reported to drift.
        """
        need_share("risk of a false alarm", risk)
        if not len(called):
            raise DataError(
                "There is no calibration image to compare lots with. Give the images that the "
                "decisions were calibrated on."
            )
        return cls(tuple(names), len(called), _counts(called, scores, len(names)), risk)

    def add(self, called: IntArray, scores: FloatArray) -> list[Drift]:
        """Compare the next lot.

        Args:
            called: (M,) index of the predicted class.
            scores: (M,) in [0, 1]; NaN reaches no level.

        Returns:
            Shares that differ, of the lot and of each block that it completes, the smallest p-value
            first. A lot without an image is not counted and returns none.
        """
        if not len(called):
            return []
        self.lots += 1
        block = np.append(_counts(called, scores, len(self.names)), len(called))
        found = self._compare(block, 0)
        scale = 0
        # Like the carry of a binary counter: a complete block joins the waiting one of its size.
        while scale < len(self.waiting) and self.waiting[scale]:
            block = block + np.array(self.waiting[scale])
            self.waiting[scale] = []
            scale += 1
            found += self._compare(block, scale)
        self.waiting[scale : scale + 1] = [block.tolist()]
        return sorted(found, key=lambda drift: drift.p_value)

    def _compare(self, block: IntArray, scale: int) -> list[Drift]:
        counts, images, number = block[:-1], int(block[-1]), self.lots >> scale
        factor = (math.pi**2 / 6) ** 2 * number**2 * (scale + 1) ** 2 * len(counts)
        p_values = fisher(self.counts, self.images, counts, images) * factor
        whats = [f"Called {quoted(name)}" for name in self.names]
        whats += [f"Scores from {level:g}" for level in LEVELS]
        before, now = self.counts / self.images, counts / images
        return [
            Drift(whats[i], float(before[i]), float(now[i]), 1 << scale, float(p_values[i]))
            for i in np.flatnonzero(p_values <= self.risk).tolist()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the state as values for JSON; `from_dict` continues from it."""
        return {
            "schema": _SCHEMA,
            "names": list(self.names),
            "levels": list(LEVELS),
            "images": self.images,
            "counts": self.counts.tolist(),
            "risk": self.risk,
            "lots": self.lots,
            "waiting": self.waiting,
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> DriftMonitor:
        """Continue from the state that `to_dict` returned.

        Raises:
            DataError: the state has another schema, or is damaged.
        """
        names, counts = facts.get("names") or (), np.array(facts.get("counts") or (), np.int64)
        fits = counts.shape == (len(names) + len(LEVELS),)
        if facts.get("schema") != _SCHEMA or facts.get("levels") != list(LEVELS) or not fits:
            raise DataError(
                f"The monitor's state has schema {facts.get('schema')!r}, "
                f"{counted(len(counts), 'count')} and {counted(len(names), 'class')}; this "
                "version cannot continue from it. Begin a new monitor with the calibration images, "
                "or use the version that wrote it."
            )
        waiting = [list(block) for block in facts["waiting"]]
        return cls(tuple(names), facts["images"], counts, facts["risk"], facts["lots"], waiting)


def fisher(before: IntArray, of_before: int, now: IntArray, of_now: int) -> FloatArray:
    """Two-sided p-values (K,) that K shares are equal in two sets (Fisher's exact test).

    Twice the smaller tail, at most 1.

    Args:
        before: (K,) images of the first set in each share.
        of_before: N >= 1, all images of the first set.
        now: (K,) images of the second set in each share.
        of_now: M >= 1, all images of the second set.

    Examples:
        >>> fisher(np.array([2, 50]), 100, np.array([9, 25]), 50).round(4).tolist()
        [0.0018, 1.0]
    """
    both = before + now
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, of_before + of_now + 1)))])

    def ways(of: int | IntArray, taken: IntArray) -> FloatArray:
        found: FloatArray = logs[of] - logs[taken] - logs[of - taken]
        return found

    p_values = np.ones(len(before))
    for i, (total, seen) in enumerate(zip(both.tolist(), now.tolist(), strict=True)):
        taken = np.arange(max(0, total - of_before), min(total, of_now) + 1)
        chance = np.exp(
            ways(of_now, taken)
            + ways(of_before, total - taken)
            - ways(of_before + of_now, np.array(total))
        )
        tails = chance[taken <= seen].sum(), chance[taken >= seen].sum()
        p_values[i] = min(1.0, 2 * float(min(tails)))
    return p_values


def _counts(called: IntArray, scores: FloatArray, num_classes: int) -> IntArray:
    reached = (scores[:, None] >= np.array(LEVELS)).sum(0)
    return np.concatenate([np.bincount(called, minlength=num_classes), reached])
