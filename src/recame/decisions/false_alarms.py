"""The unknown within a tuning: which false alarms are promised, and the threshold that keeps them.

Promises are of known images as they come on the line: in the shares of the mix, of those classes
that the calibration holds an image of.
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
    """False alarms that are to be promised, told by limits and numbers of images alone.

    Attributes:
        overall: of the known images at most; `smallest`; None: nothing is called unknown.
        of_tail: the same of the tail classes together; None: nothing is promised of them.
        shares: (C,) of the line, of the classes that the calibration holds.
        tail: (C,) which of them are the tail.
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
    """What was laid.

    Attributes:
        above: strangeness from which on an image is unknown; None: nothing is called so.
        promises: of false alarms.
        notes: what is not promised, and why.
    """

    above: float | None
    promises: tuple[Promise, ...] = ()
    notes: tuple[str, ...] = ()


def asked_alarms(images: Scored, limits: Limits, mix: FloatArray, tail: BoolArray | None) -> Asked:
    """What of the limits there are images for; where the smallest are asked, of what there is.

    Args:
        images: that lay the threshold.
        limits: what is asked.
        mix: (C,) shares of the classes on the line.
        tail: (C,) which classes are the tail; None: that is not known.

    Raises:
        ConfigError: a limit is asked by its number, and what it takes is not there, or no
            threshold promises it.
    """
    overall, of_tail = limits.unknown_false_alarm, limits.tail_false_alarm
    for kind, limit in (("overall", overall), ("tail", of_tail)):
        if not (limit is None or isinstance(limit, str) or 0 < limit <= MOST_LIMIT):
            raise ConfigError(
                f"unknown_false_alarm {limit:.2%} {kind}: no number of images promises 0, and "
                f"beyond {MOST_LIMIT:.0%} a promise says nothing. Give a share between them, "
                f"{SMALLEST}, or off: then nothing is called unknown."
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
    """How many false alarms might be promised, whatever the line's mix."""
    if images.unknown is None or limits.unknown_false_alarm is None:
        return 0
    return 1 + (limits.tail_false_alarm is not None)


_LACKING = (
    "unknown_false_alarm cannot be kept: it takes a limit `overall`, a score of how strange each "
    "image is, and, for `tail`, images of the classes that are the tail. Leave it out, or give "
    "what is missing."
)


def fit_alarms(
    images: Scored, asked: Asked, names: Sequence[str], *, risk: float, why: str = ""
) -> Alarms:
    """Lay the lowest threshold that keeps what is promised.

    Args:
        images: labelled, as they count.
        asked: of the same images.
        names: of the C classes.
        risk: of each promise.
        why: what makes estimates of them; empty where they hold.

    Raises:
        ConfigError: a limit that is asked by its number cannot be promised.
    """
    if asked.overall is None or images.unknown is None:
        return Alarms(None)
    counts = np.bincount(images.target, minlength=len(names))
    missing = [name for name, number in zip(names, counts, strict=True) if not number]
    notes = []
    if missing:
        notes.append(
            f"Of {', '.join(map(quoted, missing[:8]))} the calibration holds no image: nothing is "
            "promised of how often these are called unknown."
        )
    for of_tail in dict.fromkeys((asked.of_tail, None)):
        found = _laid(images, asked._replace(of_tail=of_tail), risk)
        if found.known.kept and (found.tail is None or found.tail.kept):
            break
        if isinstance(asked.overall, float) or isinstance(of_tail, float):
            _refuse({"overall": found.known, "tail": found.tail})
    else:
        notes.append("Nothing is called unknown: too few images promise how seldom a known one is.")
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
    for _ in range(3):  # the tail's images may ask for more once all images have their limit
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
            f"Limits that these images cannot promise: {'; '.join(lacking)}, in the shares in "
            "which the classes come on the line. Nothing was loosened. Label more, or ask for less."
        )


def _enough(images: Scored, classes: BoolArray, shares: FloatArray) -> bool:
    """Whether the images that come in these shares promise a limit that is worth a word."""
    if not (classes & (shares > 0)).any():
        return False
    rows, _ = in_shares(images.target, classes, shares, 0)
    return smallest_limit(len(rows), 0, 1 / 20) < WORTHLESS


def _least(alarms: FalseAlarms) -> float:
    """The smallest limit that so many images promise, rounded up."""
    return min(WORTHLESS, alarms.at_most * (1 + 1e-6))
