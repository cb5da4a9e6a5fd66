from __future__ import annotations

import numpy as np
import pytest

from recame.decisions.actions import ACTION_OF, REVIEW
from recame.decisions.review_budget import OVER_BUDGET, WAITING, over_budget, places_of


def in_words(lots: list[int], odds: list[float], left: list[int]) -> list[bool]:
    """The rule in plain loops: each place goes to the most doubtful image that has none."""
    over = [True] * len(lots)
    for lot, places in enumerate(left):
        for _ in range(places):
            waiting = [n for n in range(len(lots)) if lots[n] == lot and over[n]]
            if waiting:
                over[min(waiting, key=lambda n: (odds[n], n))] = False
    return over


@pytest.mark.parametrize("seed", range(5))
def test_the_most_doubtful_of_each_lot_have_its_places(seed: int) -> None:
    random = np.random.default_rng(seed)
    lots = random.integers(0, 4, 200)
    odds = random.integers(-3, 4, 200).astype(float)  # with many ties
    left = random.integers(0, 70, 4)
    found = over_budget(lots, odds, left)
    assert found.tolist() == in_words(lots.tolist(), odds.tolist(), left.tolist())
    beyond = np.maximum(np.bincount(lots, minlength=4) - left, 0)
    assert np.bincount(lots[found], minlength=4).tolist() == beyond.tolist()


def test_no_row_and_no_lot() -> None:
    nothing = np.zeros(0, np.int64)
    assert over_budget(nothing, nothing.astype(float), nothing).tolist() == []


@pytest.mark.parametrize(
    ("images", "share", "places"),
    [(1000, 0.08, 80), (100, 0.29, 29), (12, 0.08, 0), (7, 1.0, 7), (7, 0.0, 0), (99, 0.1, 9)],
)
def test_places_are_whole_images(images: int, share: float, places: int) -> None:
    assert places_of(images, share) == places


def test_reasons_of_the_closed_list() -> None:
    assert all(ACTION_OF[reason] == REVIEW for reason in (*WAITING, OVER_BUDGET))
