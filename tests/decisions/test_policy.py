"""What a model says decides; what it cannot say is looked at."""

from __future__ import annotations

import numpy as np
import pytest

from recame.decisions.policy import (
    ALL_ALIKE,
    NO_DISTRIBUTION,
    NO_NUMBER,
    Decider,
    names_a_class,
)

GOOD = [0.9, 0.1, 0.0]


NAMES = ("ok", "open", "short")


def decided(*rows: list[float], **words: object):
    found = {"names": NAMES, "normal": 0, **words}
    return Decider(**found).decide(np.array(rows, np.float32))  # type: ignore[arg-type]


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
    stands = "automatic" if release_above is None else "release"
    assert (found.actions, found.reasons[1]) == ([stands, "review"], "not_finite")
    assert (found.faults, found.candidates) == ([None, reason], ["", ""])
    assert names_a_class(np.array([GOOD, row], np.float32)).tolist() == [True, False]


def test_an_expert_without_a_number_is_told() -> None:
    experts = np.full((2, 2, 3), 1 / 3, np.float32)
    experts[1, 1, 2] = np.nan
    found = Decider(NAMES).decide(np.array([GOOD, GOOD], np.float32), experts)
    assert found.faults == [None, NO_NUMBER]
    assert found.actions == ["automatic", "review"]


def test_the_threshold_holds_the_normal_class_alone() -> None:
    rows = [[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.1, 0.6, 0.3]]
    assert decided(*rows, release_above=0.6).reasons == ["released", "below_release", "automatic"]
    unknown = decided(*rows, release_above=float("nan"))
    assert unknown.reasons == ["below_release", "below_release", "automatic"]
    assert unknown.candidates == ["ok|open", "ok|open|short", ""]
    assert set(decided(*rows, normal=None, release_above=0.6).actions) == {"automatic"}
    assert decided(*rows).best.tolist() == [0, 0, 1]


def test_what_a_model_hardly_sees_goes_to_a_person() -> None:
    rows = np.array([GOOD, GOOD, [np.nan] * 3], np.float32)
    found = Decider(NAMES).decide(rows, near_black=[True, False, True])
    assert found.reasons == ["near_black", "automatic", "not_finite"]
    assert found.actions == ["review", "automatic", "review"]
    assert found.candidates == ["ok|open", "", ""]


def test_rounding_is_no_fault() -> None:
    half = np.random.default_rng(0).dirichlet(np.ones(40), 200).astype(np.float16)
    assert names_a_class(half).all()
    assert names_a_class(np.zeros((0, 3), np.float32)).tolist() == []
