"""The decisions of two models on the same labelled images, and the images where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recame.contracts import Array, BoolArray, IntArray

#: How an image's result changed from the old to the new model, worst first.
_FLIPS = ("critical defect escapes now", "escapes now", "wrong now", "caught now", "right now")


class Answers(NamedTuple):
    """The decisions of one model on N labelled images.

    Attributes:
        escaped: (N,) whether the image is a defect that was released.
        right: (N,) whether the image was classified correctly.
    """

    escaped: BoolArray
    right: BoolArray


class Flip(NamedTuple):
    """An image on which the two models differ.

    Attributes:
        image: its name.
        class_name: its label.
        product: None where none is known.
        what: `critical defect escapes now`, `escapes now`, `wrong now`, `caught now`, `right now`.
    """

    image: str
    class_name: str
    product: str | None
    what: str


def flips(
    old: Answers,
    new: Answers,
    target: IntArray,
    images: Sequence[str],
    names: Sequence[str],
    critical: BoolArray,
    product_of: Array | None,
) -> tuple[Flip, ...]:
    """List the images on which two models differ, worst first, then in their order.

    Args:
        old: decisions of the old model.
        new: decisions of the new model.
        target: (N,) class indices.
        images: N names.
        names: of the classes.
        critical: (N,) whether the image's class is critical.
        product_of: (N,) products; None: not known.
    """
    escapes_now = new.escaped & ~old.escaped
    caught_now = old.escaped & ~new.escaped
    marks = (
        escapes_now & critical,
        escapes_now,
        old.right & ~new.right & ~caught_now,
        caught_now,
        new.right & ~old.right,
    )
    rank = np.select(marks, range(len(marks)), len(marks))
    differing = np.flatnonzero(rank < len(marks))
    differing = differing[np.argsort(rank[differing], kind="stable")]
    return tuple(
        Flip(
            images[i],
            names[target[i]],
            None if product_of is None else product_of[i],
            _FLIPS[rank[i]],
        )
        for i in differing.tolist()
    )
