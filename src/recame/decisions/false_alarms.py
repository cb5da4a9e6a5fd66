"""Unknown images in a tuning: which false-alarm limits are promised, and their threshold.

The promises are about known images on the line, with the class shares of the mix, and only about
classes that the calibration has an image of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recame.contracts import BoolArray, FloatArray
from recame.decisions.exact import smallest_limit
from recame.decisions.limits import SMALLEST, USUAL_ALARM, USUAL_TAIL_ALARM, Limits
from recame.decisions.promises import WORTHLESS, Promise
from recame.decisions.scored import Scored
from recame.decisions.unknown import (
    MOST_LIMIT,
    FalseAlarms,
    UnknownThreshold,
    fit_unknown_threshold,
    in_shares,
)
from recame.errors import ConfigError
from recame.names import counted, quoted


class Asked(NamedTuple):
    """Limits of false alarms to promise; they follow from limits and numbers of images only.

    Attributes:
        overall: limit for all known images; `smallest`; None: no image is called unknown.
        of_tail: limit for the tail classes together; None: nothing is promised for them.
        shares: (C,) class shares on the line, of the classes that the calibration holds.
        tail: (C,) which of these are tail classes.
    """

    overall: float | str | None
    of_tail: float | str | None
    shares: FloatArray
    tail: BoolArray

    @property
    def number(self) -> int:
        """Promises."""
        return sum(limit is not None for limit in (self.overall, self.of_tail))


class Alarms(NamedTuple):
    """The threshold for unknown images, and what it promises.

    Attributes:
        above: an image with a higher strangeness is unknown; None: no image is called unknown.
        promises: of false alarms.
        notes: what is not promised, and why.
    """

    above: float | None
    promises: tuple[Promise, ...] = ()
    notes: tuple[str, ...] = ()


def asked_alarms(images: Scored, limits: Limits, mix: FloatArray, tail: BoolArray | None) -> Asked:
    """Find the limits that the images are enough for; `smallest` is left out without images.

    Args:
        images: to which the threshold is fitted.
        limits: what is requested.
        mix: (C,) shares of the classes on the line.
        tail: (C,) which classes are the tail; None: not known.

    Raises:
        ConfigError: a limit is given as a number, but what it needs is missing, or no threshold
            can promise it.
    """
    overall, of_tail = limits.unknown_false_alarm, limits.tail_false_alarm
    for kind, limit in (("overall", overall), ("tail", of_tail)):
        if not (limit is None or isinstance(limit, str) or 0 < limit <= MOST_LIMIT):
            raise ConfigError(
                f"unknown_false_alarm {limit:.2%} {kind}: no number of images promises 0, and a "
                f"limit above {MOST_LIMIT:.0%} is worth nothing. Give a share between them, "
                f"{SMALLEST}, or off: then no image is called unknown."
            )
    counts = np.bincount(images.target, minlength=len(mix))
    shares = np.where(counts > 0, mix, 0.0)
    if not shares.any():
        shares = counts.astype(np.float64)
    rare = np.zeros(len(mix), np.bool_) if tail is None else tail & (shares > 0)
    asked = Asked(overall, of_tail, shares, rare)
    numbers = isinstance(overall, float), isinstance(of_tail, float)
    if any(numbers) and (images.unknown is None or overall is None):
        raise ConfigError(_LACKING)
    if numbers[1] and not rare.any():
        raise ConfigError(_LACKING)
    if overall is None or images.unknown is None:
        return asked._replace(overall=None, of_tail=None)
    every = np.ones(len(mix), np.bool_)
    if of_tail == SMALLEST and not _enough(images, rare, shares):
        asked = asked._replace(of_tail=None)
    if overall == SMALLEST and not _enough(images, every, shares):
        asked = asked._replace(overall=None, of_tail=None)
    return asked


def most_alarms(images: Scored, limits: Limits) -> int:
    """The most limits of false alarms that might be promised, whatever the line's mix."""
    if images.unknown is None or limits.unknown_false_alarm is None:
        return 0
    return 1 + (limits.tail_false_alarm is not None)


_LACKING = (
    "unknown_false_alarm cannot be kept: it needs a limit `overall`, a score of how strange each "
    "image is and, for `tail`, images of the tail classes. Leave it out, or give what is missing."
)


def fit_alarms(
    images: Scored, asked: Asked, names: Sequence[str], *, risk: float, why: str = ""
) -> Alarms:
    """Set the lowest threshold that keeps the promised limits.

    Args:
        images: labelled images that count (`Scored.counted`).
        asked: limits to promise for these images.
        names: of the C classes.
        risk: of each promise.
        why: reason why the limits are only estimated; empty if they are promised.

    Raises:
        ConfigError: a limit given as a number cannot be promised.
    """
    if asked.overall is None or images.unknown is None:
        return Alarms(None)
    counts = np.bincount(images.target, minlength=len(names))
    missing = [name for name, number in zip(names, counts, strict=True) if not number]
    notes = []
    if missing:
        notes.append(
            f"The calibration holds no image of {', '.join(map(quoted, missing[:8]))}: nothing is "
            "promised about how often these are called unknown."
        )
    for of_tail in dict.fromkeys((asked.of_tail, None)):
        found = _laid(images, asked._replace(of_tail=of_tail), risk)
        if found.known.kept and (found.tail is None or found.tail.kept):
            break
        if isinstance(asked.overall, float) or isinstance(of_tail, float):
            _refuse({"overall": found.known, "tail": found.tail})
    else:
        notes.append("No image is called unknown: too few images to promise a false-alarm limit.")
        return Alarms(None, (), tuple(notes))
    rare = tuple(name for name, inside in zip(names, asked.tail, strict=True) if inside)
    told = (("unknown_false_alarm", found.known, ()), ("tail_false_alarm", found.tail, rare))
    promises = tuple(
        Promise(kind, "", a.limit, a.images, a.alarms, a.allowed, risk, why, classes)
        for kind, a, classes in told
        if a is not None
    )
    return Alarms(found.threshold, promises, tuple(notes))


def _laid(images: Scored, asked: Asked, risk: float) -> UnknownThreshold:
    """The threshold at the limits, or at the smallest that the images promise."""
    assert images.unknown is not None
    assert asked.overall is not None
    overall = USUAL_ALARM if isinstance(asked.overall, str) else asked.overall
    of_tail = USUAL_TAIL_ALARM if isinstance(asked.of_tail, str) else asked.of_tail
    for _ in range(3):  # the tail may need a wider limit once `overall` has one
        found = fit_unknown_threshold(
            images.unknown,
            images.target,
            asked.tail,
            limit=overall,
            tail_limit=of_tail,
            risk=risk * (1 if of_tail is None else 2),
            mix=asked.shares,
        )
        if asked.overall == SMALLEST and not found.known.kept:
            overall = _least(found.known)
        if asked.of_tail == SMALLEST and found.tail is not None and not found.tail.kept:
            of_tail = _least(found.tail)
        if found.threshold is not None:
            break
    return found


def _refuse(told: dict[str, FalseAlarms | None]) -> None:
    lacking = [
        f"unknown_false_alarm {alarms.limit:.2%} {kind} ({counted(alarms.images)}: it takes "
        f"{alarms.needed})"
        for kind, alarms in told.items()
        if alarms is not None and not alarms.kept
    ]
    if lacking:
        raise ConfigError(
            f"Limits that these images cannot promise: {'; '.join(lacking)}, with the class shares "
            "of the line. Nothing was loosened. Label more images, or allow more false alarms."
        )


def _enough(images: Scored, classes: BoolArray, shares: FloatArray) -> bool:
    """Whether the images, drawn in these shares, promise a limit below 50 %."""
    if not (classes & (shares > 0)).any():
        return False
    rows, _ = in_shares(images.target, classes, shares, 0)
    return smallest_limit(len(rows), 0, 1 / 20) < WORTHLESS


def _least(alarms: FalseAlarms) -> float:
    """The smallest limit that these images promise, rounded up."""
    return min(WORTHLESS, alarms.at_most * (1 + 1e-6))
