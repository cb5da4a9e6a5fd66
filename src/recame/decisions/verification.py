"""Verify promises on new labelled images: they hold, are broken, or the images are too few."""

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

#: Exit code of the command for each outcome.
EXIT_CODES = {"holds": 0, "broken": 1, "too few": 3}


@dataclass(frozen=True)
class Verified:
    """What new images show about one promise.

    Attributes:
        promise: the promise.
        images: n images of the class; groups if groups are counted.
        beyond: how many of them lie on the wrong side of the threshold.
        outcome: `holds`, `broken` or `too few`.
        needed: images that show that it holds if none is beyond; None if there is no such number.
    """

    promise: Promise
    images: int
    beyond: int
    outcome: str
    needed: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return asdict(self)

    def sentence(self, unit: str = "image") -> str:
        """Describe the outcome in words."""
        limit, of = self.promise.limit, quoted(self.promise.of)
        assert limit is not None  # only promised limits are verified
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
    """What new images show about all promises.

    Attributes:
        rows: one per promise.
        outcome: `broken` if any is broken, `holds` if all hold, else `too few`.
    """

    rows: tuple[Verified, ...]
    outcome: str

    def __str__(self) -> str:
        """Return the outcome, and each promise in a sentence."""
        return "\n".join([self.outcome, *(f"  {row.sentence()}" for row in self.rows)])

    def to_frame(self) -> pd.DataFrame:
        """Return one row per promise."""
        import pandas as pd

        return pd.DataFrame([row.to_dict() for row in self.rows])

    @property
    def exit_code(self) -> int:
        """0 holds, 1 broken, 3 too few."""
        return EXIT_CODES[self.outcome]


def verify(
    scored: Scored,
    policy: Policy,
    promises: Sequence[Promise],
    *,
    mix: FloatArray,
    confidence: float = 0.95,
) -> Verification:
    """Verify promises on labelled images that neither trained nor calibrated the model.

    A promise is broken if this number of images beyond the threshold would have a probability of at
    most its part of 1 - `confidence`, which is divided over all promises. All promises hold if each
    of them is shown to hold (an intersection of tests, which needs no correction: Berger,
    Technometrics 1982).

    Args:
        scored: of the images.
        policy: to which the promises belong.
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
    """The outcome for a limit; `limits`: the one to be shown, and the one that must be exceeded."""
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
    """Verify false alarms on a sample of known images with the class shares of the line.

    Numbers of images are rounded up, by up to one image of each class. `in_shares` says how far the
    rate of the sample may differ from that of the line.
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
