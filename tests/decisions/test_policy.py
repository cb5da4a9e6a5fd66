"""What a model says decides; what it cannot say is looked at."""

from __future__ import annotations

import numpy as np
import pytest

from recame.decisions.policy import (
    ALL_ALIKE,
    NO_DISTRIBUTION,
    NO_NUMBER,
    decide,
    names_a_class,
)

GOOD = [0.9, 0.1, 0.0]


def decided(*rows: list[float], **words: object):
    found = {"normal_index": 0, "release_above": None, **words}
    return decide(np.array(rows, np.float32), **found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([np.nan, np.nan, np.nan], NO_NUMBER),
        ([0.9, np.nan, 0.1], NO_NUMBER),
        ([np.inf, 0.0, 0.0], NO_NUMBER),
        ([0.0, 0.0, 0.0], NO_DISTRIBUTION),
        ([0.9, 0.9, 0.0], NO_DISTRIBUTION),
        ([1.5, -0.5, 0.0], NO_DISTRIBUTION),
        ([1 / 3, 1 / 3, 1 / 3], ALL_ALIKE),
    ],
)
@pytest.mark.parametrize("release_above", [None, 0.0, 0.5])
def test_what_names_no_class_is_never_released(
    row: list[float], reason: str, release_above: float | None
) -> None:
    found = decided(GOOD, row, release_above=release_above)
    assert found.released.tolist() == [True, False]
    assert found.reasons == [None, reason]
    assert names_a_class(np.array([GOOD, row], np.float32)).tolist() == [True, False]


def test_an_expert_without_a_number_is_told() -> None:
    experts = np.full((2, 2, 3), 1 / 3, np.float32)
    experts[1, 1, 2] = np.nan
    found = decide(
        np.array([GOOD, GOOD], np.float32), experts, normal_index=None, release_above=None
    )
    assert found.reasons == [None, NO_NUMBER]
    assert found.released.tolist() == [True, False]


def test_the_threshold_holds_the_normal_class_alone() -> None:
    rows = [[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.1, 0.6, 0.3]]
    assert decided(*rows, release_above=0.6).released.tolist() == [True, False, True]
    assert decided(*rows, release_above=float("nan")).released.tolist() == [False, False, True]
    assert decided(*rows, normal_index=None, release_above=0.6).released.all()
    assert decided(*rows).best.tolist() == [0, 0, 1]


def test_rounding_is_no_fault() -> None:
    half = np.random.default_rng(0).dirichlet(np.ones(40), 200).astype(np.float16)
    assert names_a_class(half).all()
    assert names_a_class(np.zeros((0, 3), np.float32)).tolist() == []
