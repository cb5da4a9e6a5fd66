"""Promises about decisions, their risk, and what a number of images could promise at best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recame.decisions.exact import images_needed, most_allowed, smallest_limit
from recame.names import counted, quoted

#: A limit of this share or more is useless, so no confidence is spent on it.
WORTHLESS = 0.5


@dataclass(frozen=True)
class Promise:
    """A promised limit, or the reason why nothing is promised.

    Attributes:
        kind: `escape`, `purity`, `unknown_false_alarm` or `tail_false_alarm`.
        of: the class that it is about; empty: all classes.
        limit: the promised limit: a lower one for `purity`, an upper one else; None: no promise.
        images: n images of the class in the calibration; groups if groups are counted.
        beyond: how many of them lie on the wrong side of the threshold.
        allowed: how many might have.
        risk: probability with which this promise alone may fail.
        why: why it is only an estimate, or no promise; usually empty.
        classes: the classes that it is about, if there are several.
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
        """Whether it is a promise and not an estimate."""
        return self.limit is not None and not self.why

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Promise:
        """Read what `to_dict` wrote."""
        return cls(**{**values, "classes": tuple(values.get("classes", ()))})

    def sentence(self, unit: str = "image", *, estimated: bool = False) -> str:
        """Describe the promise in words.

        Args:
            unit: what is counted, `image` or the name of a group.
            estimated: whether it is only an estimate, for a reason that is given elsewhere.
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
    """Risk that each promise may take, so that all hold together with the confidence.

    The total risk, 1 - `confidence`, is divided by the number of promises and by the number of
    models that were compared on the same images (Bonferroni). The j-th tuning on the same images
    may spend 6 / (pi j)^2 of it, so that all tunings together never spend more than the total.

    Args:
        confidence: with which all promises hold together.
        promises: number of promises.
        comparisons: K models from which these images chose one; 1: they chose nothing.
        tuning: j, from 1.

    Examples:
        >>> round(risk_of_each(0.95, promises=1), 4)
        0.0304
    """
    spent = (1 - confidence) * 6 / (math.pi * tuning) ** 2
    return spent / (max(1, promises) * max(1, comparisons))


@dataclass(frozen=True)
class Promisable:
    """What the images of all classes could promise together, before any threshold is set.

    Attributes:
        limits: class -> its smallest limit; 1.0 without images.
        counts: class -> its images, or groups.
        risk: of each promise.
        confidence: with which all promises hold together.
        comparisons: models that were compared on the images.
        unit: what is counted.
    """

    limits: dict[str, float]
    counts: dict[str, int]
    risk: float
    confidence: float
    comparisons: int
    unit: str

    @property
    def smallest(self) -> float:
        """The smallest limit that can be promised for all classes at once."""
        return max(self.limits.values(), default=1.0)

    def needed(self, limit: float) -> int | None:
        """Images of each class needed for another limit, if none is beyond the threshold."""
        return images_needed(limit, self.risk)

    def sentence(self, limit: float) -> str:
        """Say in words what can be promised, and how many images another limit needs."""
        few = min(self.counts.values(), default=0)
        tried = counted(self.comparisons, "model")
        text = f"{counted(len(self.counts), 'class')}, {counted(few, self.unit)} or more each"
        text += f", {tried} tried: " if self.comparisons > 1 else ": "
        if self.smallest >= WORTHLESS:
            text += "no escape limit can be promised for all of them at once"
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
    """Compute what these images of each defect class could promise if none of them escaped.

    Args:
        counts: defect class -> calibration images, or groups if these are counted.
        confidence: with which all promises hold together.
        others: number of further promises.
        comparisons: models from which the same images choose one.
        tuning: number of this tuning on these images, from 1.
        unit: what is counted, in words.

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
    """Whether this number of images can promise a limit."""
    return most_allowed(images, limit, risk) >= 0


def too_few(asked: Sequence[tuple[str, int, float]], risk: float, unit: str) -> str:
    """Say why limits cannot be promised and how many images they need; (class, images, limit)."""
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
