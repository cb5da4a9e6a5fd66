"""The review budget: which images of a lot people see, if more need a person than people can see.

Images come first that no score has chosen, or that cannot be decided by a score (`audit`,
`not_finite`, `near_black`, `product_unseen`, unknown or unreadable images). The remaining places go
to images that need a person because of their score, the most doubtful first. Images beyond the
budget stay held: limits are never loosened because there are too few people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray

#: Reasons for which an image waits for a place; images with other reasons always have one.
WAITING = ("below_release", "class_not_promised", "ambiguous")
#: The reason of images that get no place.
OVER_BUDGET = "over_budget"


@dataclass(frozen=True)
class LotReview:
    """A production lot in which more images need a person than people can see.

    Attributes:
        lot: its name; empty: the whole table, or the images without a lot.
        images: number of images in the lot.
        places: number of images that people can see.
        people: number of images that need a person.
        over: number of images beyond the budget.
    """

    lot: str
    images: int
    places: int
    people: int
    over: int


def places_of(images: int, share: float) -> int:
    """Largest number of images of a lot that people see.

    Examples:
        >>> places_of(100, 0.29), places_of(12, 0.08)
        (29, 0)
    """
    return math.floor(share * images + 1e-9)


def first_place(share: float) -> int:
    """Fewest images of a lot for which people see one.

    Examples:
        >>> first_place(0.02), first_place(0.29)
        (50, 4)
    """
    return math.ceil((1 - 1e-9) / share)


def over_budget(lot: IntArray, odds: FloatArray, left: IntArray) -> BoolArray:
    """Mark (N,) the waiting images that get no place.

    Args:
        lot: (N,) index of each image's lot, in the order of the table.
        odds: (N,) log-odds of the predicted class; the lowest is the most doubtful; among equal
            ones the first.
        left: (L,) places left in each lot.

    Examples:
        >>> lots, odds = np.array([0, 0, 1, 0]), np.array([2.0, 0.5, 3.0, 2.0])
        >>> over_budget(lots, odds, np.array([2, 0])).tolist()
        [False, False, True, True]
    """
    order = np.lexsort((np.nan_to_num(odds, nan=-np.inf), lot))  # stable
    ordered = lot[order]
    rank = np.arange(len(lot)) - np.searchsorted(ordered, ordered)
    over = np.zeros(len(lot), np.bool_)
    over[order] = rank >= left[ordered]
    return over
