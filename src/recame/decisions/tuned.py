"""What a tuning found: the policy, what it promises, and what is not kept, in sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from recame.decisions.actions import Policy
from recame.decisions.exact import images_needed
from recame.decisions.expected import Expected
from recame.decisions.limits import USUAL_ESCAPE
from recame.decisions.promises import Promise, risk_of_each
from recame.names import counted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Tuned:
    """The result of a tuning.

    Attributes:
        policy: the thresholds.
        promises: one per limit.
        expected: what the policy does, estimated from the calibration images.
        frontier: what each escape limit would cost, one row per limit.
        unmet: limits that are not kept, in sentences; nothing was loosened for them.
        notes: further remarks.
        facts: `confidence`, `tuning`, `comparisons`, `risk`, `images` (that count), `labelled` (all
            of them), `unit` and `counts`; also `line` if the line's mix was estimated.
    """

    policy: Policy
    promises: tuple[Promise, ...]
    expected: Expected
    frontier: tuple[dict[str, Any], ...]
    unmet: tuple[str, ...]
    notes: tuple[str, ...]
    facts: dict[str, Any]

    def __str__(self) -> str:
        """Return all promises and remarks, one sentence per line."""
        return "\n".join(self.sentences())

    def to_frame(self) -> pd.DataFrame:
        """Return the promises, one row each, with their numbers of images."""
        import pandas as pd

        return pd.DataFrame([promise.to_dict() for promise in self.promises])

    def calibrated_on(self) -> str:
        """Return what was counted: images, or one image of each group and class."""
        images, labelled, unit = (self.facts[name] for name in ("images", "labelled", "unit"))
        if unit == "image":
            return counted(images, "labelled image")
        every = f"{labelled:,} labelled images: one of each {unit} and class counts"
        return f"{counted(images, unit)} ({every})"

    def sentences(self) -> list[str]:
        """Return what is promised, what is not kept, and further remarks, as sentences."""
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
        """Return each promise and its sentence; `unpromised` gives a reason that all share."""
        unit, shared = self.facts["unit"], bool(self.unpromised())
        plain = [replace(each, why="") if shared else each for each in self.promises]
        words = [each.sentence(unit, estimated=shared) for each in plain]
        return list(zip(self.promises, words, strict=True))

    def unpromised(self) -> list[str]:
        """Say in one sentence why all limits are only estimates, if there are several; else []."""
        reasons = {"" if each.limit is None else each.why for each in self.promises}
        if len(self.promises) < 2 or len(reasons) > 1 or not (why := reasons.pop()):
            return []
        return [f"None of this is promised: {why}."]

    def _nothing_released(self, promises: int) -> str:
        """Say how many images one escape limit would need, among this number of promises."""
        shared = {name: self.facts[name] for name in ("confidence", "comparisons", "tuning")}
        needed = images_needed(USUAL_ESCAPE, risk_of_each(promises=promises, **shared))
        assert needed is not None
        return (
            "No image is released, since no escape limit is promised: a limit of "
            f"{USUAL_ESCAPE:.0%} for one class takes {counted(needed, self.facts['unit'])} of it, "
            "none of them released."
        )
