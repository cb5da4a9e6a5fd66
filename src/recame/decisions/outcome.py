"""The results of decisions on labelled images: escapes, overkill, review, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from recame.contracts import BoolArray, IntArray
from recame.metrics.statistics import wilson_interval
from recame.names import counted, quoted


class Share(NamedTuple):
    """A share of images, as two counts.

    Attributes:
        what: `escape` or `overkill` (see `Outcome`), `release`, `automatic`, `review`, or
            `misclassified` (share of the automatic ones).
        of: the defect class; empty: all images that count.
        number: images for which it is true.
        images: images that count.
    """

    what: str
    of: str
    number: int
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        if not self.images:
            return 0.0, 1.0
        low, high = wilson_interval(self.number, self.images)
        return float(low), float(high)

    def __str__(self) -> str:
        """Return the text `3 of 820 (0.37%, 0.12% to 1.07%)`."""
        if not self.images:
            return "0 of 0"
        low, high = self.interval
        share = self.number / self.images
        return f"{self.number:,} of {self.images:,} ({share:.2%}, {low:.2%} to {high:.2%})"

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        low, high = self.interval
        value = self.number / self.images if self.images else None
        return {
            "number": self.number,
            "images": self.images,
            "value": value,
            "interval": [low, high],
        }


@dataclass(frozen=True)
class Outcome:
    """The results of a policy on labelled images.

    A defect escapes if it is released as normal and no person sees it. A normal image is overkill
    if it is not released.

    Attributes:
        normal: name of the normal class; None: there is none, and so no escape.
        shares: the rates; those over all images come first.
    """

    normal: str | None
    shares: tuple[Share, ...]

    def share(self, what: str, of: str = "") -> Share:
        """Return one of the rates; 0 of 0 images if it is not known."""
        found = (share for share in self.shares if (share.what, share.of) == (what, of))
        return next(found, Share(what, of, 0, 0))

    def sentences(self) -> list[str]:
        """Describe the results in words."""
        told = []
        if self.normal is not None:
            told.append(
                f"{self.share('escape')} defects are released as {quoted(self.normal)}; "
                f"{self.share('overkill')} normal images are not."
            )
            worst = [share for share in self.shares if share.what == "escape" and share.of]
            told += [f"{quoted(s.of)}: {s} are released." for s in worst if s.number]
        wrong = self.share("misclassified")
        told.append(
            f"{self.share('review')} images go to a person; {counted(wrong.images)} "
            f"{'is' if wrong.images == 1 else 'are'} classified automatically, of which {wrong} "
            "wrongly."
        )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        whole = {share.what: share.to_dict() for share in self.shares if not share.of}
        by_class = {s.of: s.to_dict() for s in self.shares if s.what == "escape" and s.of}
        return {**whole, "escape_by_class": by_class}


def outcome_of(
    actions: Sequence[str],
    called: IntArray,
    target: IntArray,
    names: Sequence[str],
    normal: int | None,
) -> Outcome:
    """Evaluate the actions on N images by their labels.

    Args:
        actions: action of each image, one of `recame.decisions.actions.ACTIONS`.
        called: (N,) index of the predicted class.
        target: (N,) index of the label; images with -1 are left out.
        names: of the C classes.
        normal: index of the class that may be released; None: there is none.
    """
    known: BoolArray = target >= 0
    done = np.array(actions, object)[known]
    called, target = called[known], target[known]
    stands = np.isin(done, ["release", "automatic"])
    passes: BoolArray = (
        np.zeros(len(done), np.bool_) if normal is None else stands & (called == normal)
    )
    classified = stands & ~passes
    everything = np.ones(len(done), np.bool_)

    def share(what: str, rows: BoolArray, among: BoolArray, of: str = "") -> Share:
        return Share(what, of, int((rows & among).sum()), int(among.sum()))

    shares = [
        share("release", passes, everything),
        share("automatic", classified, everything),
        share("review", ~stands, everything),
        share("misclassified", called != target, classified),
    ]
    if normal is not None:
        shares += [
            share("escape", passes, target != normal),
            share("overkill", ~passes, target == normal),
        ]
        shares += [
            share("escape", passes, target == index, name)
            for index, name in enumerate(names)
            if index != normal and (target == index).any()
        ]
    return Outcome(None if normal is None else names[normal], tuple(shares))
