"""The release threshold: which images pass unseen, so that each defect class keeps its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.decisions.exact import above_all_but, most_allowed, smallest_limit
from recame.decisions.limits import SMALLEST, USUAL_ESCAPE, PerClass
from recame.decisions.promises import WORTHLESS, Promise, can_promise, too_few
from recame.errors import ConfigError
from recame.names import counted, quoted


@dataclass(frozen=True)
class Release:
    """The release threshold, and what it promises.

    Attributes:
        above: an image is released if its score (`release_scores`) exceeds this; inf: none is.
        promises: one per defect class.
    """

    above: float
    promises: tuple[Promise, ...]


def promised_classes(
    target: IntArray, names: Sequence[str], normal: int, escape: PerClass
) -> list[int]:
    """Return the defect classes whose escape limits are promised; the risk is divided over them.

    Depends only on limits and numbers of images, not on scores. With the limit `smallest`, classes
    with too few images for a useful limit are left out.
    """
    counts = np.bincount(target, minlength=len(names))
    enough = [smallest_limit(int(number), 0, 1 / 20) < WORTHLESS for number in counts]
    limits = [escape.limit(name) for name in names]
    return [
        index
        for index, limit in enumerate(limits)
        if index != normal and limit is not None and (limit != SMALLEST or enough[index])
    ]


def fit_release(
    scores: FloatArray,
    target: IntArray,
    names: Sequence[str],
    normal: int,
    escape: PerClass,
    *,
    risk: float,
    unit: str = "image",
    why: str = "",
) -> Release:
    """Find the lowest threshold that keeps the limit of every defect class.

    For a class with n images this is the (k + 1)-th largest score, with the largest k for which
    P(Bin(n, limit) <= k) <= risk (`exact`). The share of the class that will exceed it is above the
    limit with at most that risk. The largest threshold of all classes keeps all limits.

    Args:
        scores: (N,) of `release_scores`; -inf if the model gives no numbers.
        target: (N,) class indices.
        names: of the C classes.
        normal: index of the normal class.
        escape: limits.
        risk: of each promise.
        unit: what is counted.
        why: reason why the limits are only estimated; empty if they are promised.

    Raises:
        ConfigError: there are too few images to promise a limit; says how many it needs.
    """
    promised = promised_classes(target, names, normal, escape)
    refused: list[tuple[str, int, float]] = []
    above, fitted = -math.inf, []
    for index, name in enumerate(names):
        if index == normal:
            continue
        own = scores[target == index]
        asked = escape.limit(name)
        if index not in promised:
            # No promise, but the class's calibration images are still not released.
            if asked is not None and len(own):
                above = max(above, above_all_but(own, 0))
            reason = "it has no limit" if asked is None else "it has too few images"
            fitted.append((index, Promise("escape", name, None, len(own), 0, 0, 0.0, reason)))
            continue
        smallest = max(USUAL_ESCAPE, smallest_limit(len(own), 0, risk))
        assert asked is not None
        limit = smallest if asked == SMALLEST else float(asked)
        if asked != SMALLEST and not can_promise(len(own), limit, risk):
            refused.append((name, len(own), limit))
            continue
        # Rounding may make `smallest` slightly too small, which would give -1.
        allowed = max(0, most_allowed(len(own), limit, risk))
        above = max(above, above_all_but(own, allowed))
        fitted.append((index, Promise("escape", name, limit, len(own), 0, allowed, risk, why)))
    if refused:
        raise ConfigError(
            f"Limits that these images cannot promise: {too_few(refused, risk, unit)}. Nothing was "
            f"loosened. Label more images, ask for escape: {SMALLEST}, or give these classes "
            "limits that their images promise."
        )
    if not any(promise.limit is not None for _, promise in fitted):
        above = math.inf  # without a promise, no image is released
    passed = [int((scores[target == index] > above).sum()) for index, _ in fitted]
    promises = tuple(
        Promise(**{**promise.to_dict(), "beyond": beyond})
        for (_, promise), beyond in zip(fitted, passed, strict=True)
    )
    return Release(above, promises)


def check_defects(target: IntArray, names: Sequence[str], normal: int) -> None:
    """Refuse a calibration without defects.

    Raises:
        ConfigError: there is no defect.
    """
    if not (target != normal).any():
        raise ConfigError(
            f"The calibration holds {counted(len(target))} of {quoted(names[normal])} and no "
            "defect, so it is not known how often a defect would be released. Give labelled images "
            "of the defects too."
        )
