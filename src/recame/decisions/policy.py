"""What an image's probabilities lead to: its class, or a person's look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recame.contracts import Array, BoolArray, FloatArray, IntArray

#: How far a row of probabilities may be from a sum of 1; half precision stays well within.
_SUM_TOLERANCE = 0.05

NO_NUMBER = "the model's answer is no number (NaN or infinite)"
NO_DISTRIBUTION = "the model's answer is no probability of each class"
ALL_ALIKE = "the model holds every class for equally probable"


class Decided(NamedTuple):
    """What N images are taken for.

    Attributes:
        best: (N,) most probable class; meaningless where `reasons` says why there is none.
        confidence: (N,) its probability.
        released: (N,) whether the class may stand; the others go to review.
        reasons: why an answer names no class; None where it does.
    """

    best: IntArray
    confidence: FloatArray
    released: BoolArray
    reasons: Sequence[str | None]


def decide(
    probabilities: FloatArray,
    experts: FloatArray | None = None,
    *,
    normal_index: int | None,
    release_above: float | None,
) -> Decided:
    """Take each image for its most probable class, unless a person has to look.

    An answer that names no class is never released: the largest of no numbers is the first class,
    mostly the normal one, and every comparison with them is false. So are all classes equally
    probable where a graph has lost what was no number on its way.

    Args:
        probabilities: (N, C), calibrated.
        experts: (N, E, C) of each expert, if they are known.
        normal_index: of the normal class.
        release_above: probability that it needs to pass unseen; None: any.
    """
    best, confidence = probabilities.argmax(1), probabilities.max(1)
    reasons = _reasons(probabilities, experts)
    released = np.array([reason is None for reason in reasons], np.bool_)
    if normal_index is not None and release_above is not None:
        released &= (best != normal_index) | (confidence >= np.float32(release_above))
    return Decided(best, confidence, released, reasons)


def names_a_class(probabilities: FloatArray) -> BoolArray:
    """(N,) whether (N, C) probabilities are numbers that tell one class from another."""
    return np.array([reason is None for reason in _reasons(probabilities, None)], np.bool_)


def _reasons(probabilities: Array, experts: Array | None) -> list[str | None]:
    """Why each answer names no class."""
    finite = np.asarray(np.isfinite(probabilities).all(1))
    if experts is not None:
        finite &= np.isfinite(experts).all((1, 2))
    with np.errstate(invalid="ignore"):
        likely = (probabilities.min(1) >= -_SUM_TOLERANCE) & (
            np.abs(probabilities.sum(1) - 1) <= _SUM_TOLERANCE
        )
        alike = np.equal(probabilities.max(1), probabilities.min(1))
    if (finite & likely & ~alike).all():
        return [None] * len(probabilities)
    return [
        NO_NUMBER if not number else NO_DISTRIBUTION if not known else ALL_ALIKE if same else None
        for number, known, same in zip(finite, likely, alike, strict=True)
    ]
