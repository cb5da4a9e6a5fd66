"""Of a production lot people see so many images: which of them, where more need a person.

First come those that no score has chosen, or that nothing may decide (`audit`, `not_finite`,
`near_black`, `product_unseen`, whatever is unknown or cannot be read). The places that are left
take the images that go to a person for their score, the most doubtful first. What is beyond them
stays held: no limit was ever loosened because people were few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray

#: Reasons for which an image waits for a place; all others that need a person have one.
WAITING = ("below_release", "class_not_promised", "ambiguous")
#: The reason of those that have none.
OVER_BUDGET = "over_budget"


@dataclass(frozen=True)
class LotReview:
    """A production lot of which more images need a person than people can see.

    Attributes:
        lot: its name; empty: of the whole table, or of images that are of no lot.
        images: of the lot.
        places: of them, those that people can see.
        people: those that need a person.
        over: of these, those that are beyond the budget.
    """

    lot: str
    images: int
    places: int
    people: int
    over: int


def places_of(images: int, share: float) -> int:
    """How many images of a lot people see, at most.

    Examples:
        >>> places_of(100, 0.29), places_of(12, 0.08)
        (29, 0)
    """
    return math.floor(share * images + 1e-9)


def first_place(share: float) -> int:
    """From how many images on a lot has a place.

    Examples:
        >>> first_place(0.02), first_place(0.29)
        (50, 4)
    """
    return math.ceil((1 - 1e-9) / share)


def over_budget(lot: IntArray, odds: FloatArray, left: IntArray) -> BoolArray:
    """(N,) images that wait for a place and get none.

    Args:
        lot: (N,) the number of each image's lot, in the order of the table.
        odds: (N,) log-odds of the class that each is called; the lowest is the most doubtful, and
            of equals the first.
        left: (L,) places of each lot.

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
