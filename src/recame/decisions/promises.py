"""What is promised of decisions, with which risk, and what so many images could promise at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recame.decisions.exact import images_needed, most_allowed, smallest_limit
from recame.names import counted, quoted

#: From this share on a limit protects from nothing, and no confidence is spent on it.
WORTHLESS = 0.5


@dataclass(frozen=True)
class Promise:
    """One sentence that an engineer may rely on, or the reason why there is none.

    Attributes:
        kind: `escape`, `purity`, `unknown_false_alarm` or `tail_false_alarm`.
        of: the class that it is of; empty where it is of all.
        limit: what is promised: of `purity` at least, of the others at most; None: nothing.
        images: n, of the class, in the calibration; groups where these count.
        beyond: of them, those on the wrong side of the threshold.
        allowed: those that might have been.
        risk: with which this promise alone may fail.
        why: what makes it an estimate, or no promise; mostly empty.
        classes: that it is of, where these are several.
    """

    kind: str
    of: str
    limit: float | None
    images: int
    beyond: int
    allowed: int = 0
    risk: float = 0.0
    why: str = ""
    classes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether it is a promise, and no estimate."""
        return self.limit is not None and not self.why

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Promise:
        """Read what `to_dict` wrote."""
        return cls(**{**values, "classes": tuple(values.get("classes", ()))})

    def sentence(self, unit: str = "image", *, estimated: bool = False) -> str:
        """In words, for who signs.

        Args:
            unit: what counts.
            estimated: it is no promise, for a reason that is told elsewhere.
        """
        seen = f"{self.beyond:,} of {counted(self.images, unit)} in the calibration"
        if self.limit is None:
            of = {"escape": "escapes", "purity": "the purity"}.get(self.kind, "false alarms")
            of += f" of {quoted(self.of)}" if self.of else ""
            return f"No limit is promised for {of}: {self.why} ({seen})."
        what = {
            "escape": f"of {quoted(self.of)} is released",
            "purity": f"of what is automatically called {quoted(self.of)} is something else",
            "unknown_false_alarm": "of the known images on the line is called unknown",
            "tail_false_alarm": "of the tail classes' images is called unknown",
        }[self.kind]
        share = 1 - self.limit if self.kind == "purity" else self.limit
        text = f"{share:.2%} {what} ({seen})"
        if self.why:
            return f"Estimated, not promised: at most {text}. {self.why}."
        return f"Estimated: at most {text}." if estimated else f"At most {text}."


def risk_of_each(
    confidence: float, *, promises: int, comparisons: int = 1, tuning: int = 1
) -> float:
    """The risk that one promise may take, so that all hold together.

    What may fail, 1 - `confidence`, is shared out over the promises and over the models that were
    compared on the same images (Bonferroni), and over tunings: the j-th spends 6 / (pi j)^2 of it,
    so that any number of tunings on the same images spends no more than all.

    Args:
        confidence: of everything together.
        promises: how many are printed.
        comparisons: K models of which these images have chosen one; 1: they have chosen nothing.
        tuning: j, from 1.

    Examples:
        >>> round(risk_of_each(0.95, promises=1), 4)
        0.0304
    """
    spent = (1 - confidence) * 6 / (math.pi * tuning) ** 2
    return spent / (max(1, promises) * max(1, comparisons))


@dataclass(frozen=True)
class Promisable:
    """What so many images of each class could promise together, before any threshold is laid.

    Attributes:
        limits: class -> the smallest limit of it; 1.0 without images.
        counts: class -> its images, or groups.
        risk: of each promise.
        confidence: of all together.
        comparisons: models that were compared on the images.
        unit: what counts.
    """

    limits: dict[str, float]
    counts: dict[str, int]
    risk: float
    confidence: float
    comparisons: int
    unit: str

    @property
    def smallest(self) -> float:
        """The smallest limit that all classes promise at once."""
        return max(self.limits.values(), default=1.0)

    def needed(self, limit: float) -> int | None:
        """Images of each class for another limit, if none of them is beyond the threshold."""
        return images_needed(limit, self.risk)

    def sentence(self, limit: float) -> str:
        """In words: what all classes promise, and what a wish would take."""
        few = min(self.counts.values(), default=0)
        tried = counted(self.comparisons, "model")
        text = f"{counted(len(self.counts), 'class')}, {counted(few, self.unit)} or more each"
        text += f", {tried} tried: " if self.comparisons > 1 else ": "
        if self.smallest >= WORTHLESS:
            text += "no escape limit can be promised of all of them at once"
        else:
            text += f"at most {self.smallest:.1%} can be promised ({self.confidence:.0%})"
        if (needed := self.needed(limit)) is None or self.smallest <= limit:
            return f"{text}."
        return f"{text}; {limit:.2g} needs {counted(needed, self.unit)} of each, none released."


def promisable(
    counts: Mapping[str, int],
    *,
    confidence: float = 0.95,
    others: int = 0,
    comparisons: int = 1,
    tuning: int = 1,
    unit: str = "image",
) -> Promisable:
    """What so many images of each defect class could promise, with no escape among them.

    Args:
        counts: defect class -> images that will calibrate, or groups where these count.
        confidence: of everything together.
        others: further promises that are printed beside these.
        comparisons: models of which the same images choose one.
        tuning: the how many-th of these images.
        unit: what counts, in words.

    Examples:
        >>> found = promisable({"bridge": 300, "open": 300})
        >>> found.sentence(0.01)
        '2 classes, 300 images or more each: at most 1.4% can be promised (95%); 0.01 needs 417 \
images of each, none released.'
    """
    risk = risk_of_each(
        confidence, promises=len(counts) + others, comparisons=comparisons, tuning=tuning
    )
    limits = {name: smallest_limit(number, 0, risk) for name, number in counts.items()}
    return Promisable(limits, dict(counts), risk, confidence, comparisons, unit)


def can_promise(images: int, limit: float, risk: float) -> bool:
    """Whether so many images promise a limit at all."""
    return most_allowed(images, limit, risk) >= 0


def too_few(asked: Sequence[tuple[str, int, float]], risk: float, unit: str) -> str:
    """Why limits cannot be promised, and what it would take: class, images, limit of each."""
    told = []
    for name, images, limit in asked:
        needed = images_needed(limit, risk)
        takes = "no number promises 0" if needed is None else f"it takes {needed:,}"
        best = smallest_limit(images, 0, risk)
        least = "nothing" if best >= WORTHLESS else f"at most {best:.1%}"
        told.append(
            f"{quoted(name)} {limit:.2%} ({counted(images, unit)}: {takes}; these promise {least})"
        )
    return "; ".join(told)
