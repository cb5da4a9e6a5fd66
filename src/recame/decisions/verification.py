"""Do promises hold on images that have fitted nothing? Shown, broken, or too few to tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recame.contracts import FloatArray
from recame.decisions.actions import AUTOMATIC, RELEASE, UNKNOWN, Acted, Policy
from recame.decisions.automation import least_impure, most_impure
from recame.decisions.exact import images_needed, tail
from recame.decisions.promises import Promise
from recame.decisions.scored import Scored
from recame.decisions.unknown import in_shares
from recame.names import counted, quoted

if TYPE_CHECKING:
    import pandas as pd

#: What an outcome leaves the command line with.
EXIT_CODES = {"holds": 0, "broken": 1, "too few": 3}


@dataclass(frozen=True)
class Verified:
    """What new images say of one promise.

    Attributes:
        promise: as it was made.
        images: n of them, of the class; groups where these count.
        beyond: of them, those on the wrong side.
        outcome: `holds`, `broken` or `too few`.
        needed: images of which none may be beyond to show that it holds; None where that is not
            told by a number.
    """

    promise: Promise
    images: int
    beyond: int
    outcome: str
    needed: int | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def sentence(self, unit: str = "image") -> str:
        """In words."""
        limit, of = self.promise.limit, quoted(self.promise.of)
        assert limit is not None  # what was promised is verified
        what = {
            "escape": f"{self.beyond:,} of {counted(self.images, unit)} of {of} are released",
            "purity": f"{self.beyond:,} of {counted(self.images, unit)} that are automatically "
            f"called {of} are something else",
        }.get(self.promise.kind, f"{self.beyond:,} of {counted(self.images, unit)} are unknown")
        share = 1 - limit if self.promise.kind == "purity" else limit
        told = {
            "holds": f"the limit of {share:.2%} holds",
            "broken": f"the limit of {share:.2%} is BROKEN",
            "too few": f"too few to tell whether the limit of {share:.2%} holds",
        }[self.outcome]
        more = ""
        if self.outcome == "too few" and self.needed is not None and self.needed > self.images:
            more = f" (it takes {self.needed:,} if none is)"
        return f"{what}: {told}{more}."


@dataclass(frozen=True)
class Verification:
    """What new images say of all promises.

    Attributes:
        rows: one a promise.
        outcome: `broken` if any is, `holds` if all do, else `too few`.
    """

    rows: tuple[Verified, ...]
    outcome: str

    def __str__(self) -> str:
        """The outcome, and each promise in a sentence."""
        return "\n".join([self.outcome, *(f"  {row.sentence()}" for row in self.rows)])

    def to_frame(self) -> pd.DataFrame:
        """A row a promise."""
        import pandas as pd

        return pd.DataFrame([row.to_dict() for row in self.rows])

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        return EXIT_CODES[self.outcome]


def verify(
    scored: Scored,
    policy: Policy,
    promises: Sequence[Promise],
    *,
    mix: FloatArray,
    confidence: float = 0.95,
) -> Verification:
    """Judge promises by labelled images that neither trained nor calibrated.

    A promise is broken where so many images beyond would be as unlikely as one in twenty for any
    of them (each at a part of 1 - `confidence`, as one that breaks is enough to raise the alarm).
    That all hold is said where each alone is shown to (an intersection of tests, which needs no
    correction: Berger, Technometrics 1982).

    Args:
        scored: of the images.
        policy: that the promises are of.
        promises: those without a limit are left out.
        mix: (C,) shares of the classes on the line that purity is promised for.
        confidence: of both statements.
    """
    images, risk = scored.counted(), 1 - confidence
    acted = policy.act(images.logits, strangeness=images.unknown)
    made = [promise for promise in promises if promise.limit is not None]
    each = risk / max(1, len(made))
    rows = [_verified(promise, images, acted, policy, mix, risk, each) for promise in made]
    outcomes = {row.outcome for row in rows}
    outcome = "broken" if "broken" in outcomes else "holds" if outcomes == {"holds"} else "too few"
    return Verification(tuple(rows), outcome)


def _verified(
    promise: Promise,
    images: Scored,
    acted: Acted,
    policy: Policy,
    mix: FloatArray,
    risk: float,
    each: float,
) -> Verified:
    limit = promise.limit
    assert limit is not None
    if promise.kind == "purity":
        return _purity(promise, images, acted, policy, mix, risk, each)
    if promise.kind != "escape":
        return _alarms(promise, images, acted, policy, mix, risk, each)
    of = images.target == policy.names.index(promise.of)
    number, beyond = int(of.sum()), int((of & (acted.action == RELEASE)).sum())
    outcome = _outcome(number, beyond, (limit, limit), risk, each)
    return Verified(promise, number, beyond, outcome, images_needed(limit, risk, 0))


def _outcome(
    number: int, beyond: int, limits: tuple[float, float], risk: float, each: float
) -> str:
    """What images say of a limit; `limits` are what is to be shown, and what is broken beyond."""
    if number and 1 - tail(beyond - 1, number, limits[1]) <= each:
        return "broken"
    return "holds" if number and tail(beyond, number, limits[0]) <= risk else "too few"


def _alarms(
    promise: Promise,
    images: Scored,
    acted: Acted,
    policy: Policy,
    mix: FloatArray,
    risk: float,
    each: float,
) -> Verified:
    """Known images that are called unknown, as many of each class as come on the line.

    Whole numbers of images exceed the shares by up to one of each class: a rate of the images drawn
    lies within that of the line's (`in_shares`).
    """
    limit, names = promise.limit, policy.names
    assert limit is not None
    counts = np.bincount(images.target, minlength=len(names))
    shares = np.where(counts > 0, mix, 0.0)
    among = np.array([not promise.classes or name in promise.classes for name in names])
    if not (shares * among).any():
        return Verified(promise, 0, 0, "too few", images_needed(limit, risk, 0))
    rows, factor = in_shares(images.target, among, shares, 0)
    number, beyond = len(rows), int((acted.action[rows] == UNKNOWN).sum())
    limits = limit * factor, min(1.0, limit * factor + 1 - factor)
    outcome = _outcome(number, beyond, limits, risk, each)
    return Verified(promise, number, beyond, outcome, images_needed(limit * factor, risk, 0))


def _purity(
    promise: Promise,
    images: Scored,
    acted: Acted,
    policy: Policy,
    mix: FloatArray,
    risk: float,
    each: float,
) -> Verified:
    index = policy.names.index(promise.of)
    taken = (acted.action == AUTOMATIC) & (acted.best == index)
    counts = np.bincount(images.target, minlength=len(mix))
    hits = np.bincount(images.target[taken], minlength=len(mix))
    assert promise.limit is not None
    impurity = 1 - promise.limit
    outcome = "too few"
    if least_impure(hits, counts, index, mix, each) > impurity:
        outcome = "broken"
    elif most_impure(hits, counts, index, mix, risk / 2, risk / 2) <= impurity:
        outcome = "holds"
    wrong = int(hits.sum() - hits[index])
    return Verified(promise, int(hits.sum()), wrong, outcome, None)
