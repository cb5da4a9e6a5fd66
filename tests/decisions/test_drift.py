from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from recame.decisions.drift import LEVELS, DriftMonitor, fisher
from recame.errors import ConfigError, DataError

NAMES = ("ok", "crack", "dent")


def lot(
    generator: np.random.Generator, images: int, mix: tuple[float, ...], shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    scores = 1 / (1 + np.exp(-(3 + shift + generator.standard_normal(images))))
    return generator.choice(3, images, p=mix), scores


MIX = (0.9, 0.08, 0.02)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_p_value_agrees_with_scipy(before: int, now: int, some: float, others: float) -> None:
    hits, seen = round(some * before), round(others * now)
    law = hypergeom(before + now, hits + seen, now)
    expected = min(1.0, 2 * min(law.cdf(seen), law.sf(seen - 1)))
    found = fisher(np.array([hits]), before, np.array([seen]), now)
    assert found[0] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_lots_like_the_calibration_images_do_not_drift() -> None:
    generator, alarmed = np.random.default_rng(0), 0
    for _ in range(60):
        monitor = DriftMonitor.of(*lot(generator, 400, MIX), NAMES)
        alarmed += any(monitor.add(*lot(generator, 200, MIX)) for _ in range(10))
    assert alarmed <= 3


def test_a_class_that_is_called_more_often_is_named() -> None:
    generator = np.random.default_rng(1)
    monitor = DriftMonitor.of(*lot(generator, 2000, MIX), NAMES)
    found = monitor.add(*lot(generator, 1000, (0.82, 0.08, 0.1)))
    assert [drift.what for drift in found] == ["Called dent", "Called ok"]
    first = found[0]
    assert first.before == monitor.counts[2] / 2000
    assert first.now == pytest.approx(0.1, abs=0.03)
    assert first.sentence.startswith(f"Called dent: {first.before:.2%} of the calibration images, ")
    assert first.p_value < 1e-4


def test_scores_that_fall_are_named() -> None:
    generator = np.random.default_rng(2)
    monitor = DriftMonitor.of(*lot(generator, 2000, MIX), NAMES)
    found = monitor.add(*lot(generator, 500, MIX, -0.7))
    assert found
    assert {drift.what.split()[0] for drift in found} == {"Scores"}
    assert all(drift.now < drift.before for drift in found)


def test_p_values_pay_for_shares_and_lots() -> None:
    called, scores = np.repeat([0, 1], [990, 10]), np.full(1000, 0.6)
    monitor = DriftMonitor.of(called, scores, NAMES)
    now = np.repeat([0, 1], [90, 10]), np.full(100, 0.6)
    alone = fisher(np.array([10]), 1000, np.array([10]), 100)[0]
    for number in (1, 2, 3):
        found = {drift.what: drift.p_value for drift in monitor.add(*now) if drift.lots == 1}
        paid = alone * (3 + len(LEVELS)) * (math.pi**2 / 6) ** 2 * number**2
        assert found["Called crack"] == pytest.approx(paid)
    assert monitor.lots == 3


def test_blocks_of_lots_show_what_small_lots_do_not() -> None:
    called, scores = np.repeat([0, 1], [4900, 100]), np.full(5000, 0.6)
    monitor = DriftMonitor.of(called, scores, NAMES)
    now = np.repeat([0, 1], [94, 6]), np.full(100, 0.6)
    found = [monitor.add(*now) for _ in range(8)]
    assert [len(drifts) for drifts in found] == [0, 0, 0, 2, 0, 0, 0, 4]
    assert {(drift.what, drift.lots) for drift in found[3]} == {
        ("Called crack", 4),
        ("Called ok", 4),
    }
    assert [drift.lots for drift in found[7]] == [8, 8, 4, 4]
    crack = next(drift for drift in found[3] if drift.what == "Called crack")
    alone = fisher(np.array([100]), 5000, np.array([24]), 400)[0]
    assert crack.p_value == pytest.approx(alone * 13 * (math.pi**2 / 6) ** 2 * 9)
    assert crack.sentence == (
        "Called crack: 2.00% of the calibration images, 6.00% of the last 4 lots."
    )
    assert monitor.waiting == [[], [], [], [752, 48, 0, 800, 800, *[0] * 8, 800]]
    monitor.add(*now)
    assert monitor.waiting[0] == [94, 6, 0, 100, 100, *[0] * 8, 100]


def test_no_image_is_no_lot_and_no_number_reaches_no_level() -> None:
    monitor = DriftMonitor.of(np.zeros(50, np.int64), np.full(50, math.nan), NAMES)
    assert monitor.counts.tolist() == [50, 0, 0] + [0] * len(LEVELS)
    assert monitor.add(np.zeros(0, np.int64), np.zeros(0)) == []
    assert monitor.lots == 0


def test_state_goes_on() -> None:
    generator = np.random.default_rng(3)
    monitor = DriftMonitor.of(*lot(generator, 300, MIX), NAMES, risk=0.2)
    monitor.add(*lot(generator, 100, MIX))
    again = DriftMonitor.from_dict(json.loads(json.dumps(monitor.to_dict())))
    moved = lot(generator, 100, (0.5, 0.4, 0.1))
    assert again.add(*moved) == monitor.add(*moved)
    assert again.to_dict() == monitor.to_dict()
    with pytest.raises(DataError, match="schema 2"):
        DriftMonitor.from_dict({**monitor.to_dict(), "schema": 2})
    with pytest.raises(DataError, match="1 count and 3 classes"):
        DriftMonitor.from_dict({**monitor.to_dict(), "counts": [1]})


def test_what_nothing_can_drift_from() -> None:
    with pytest.raises(DataError, match="no calibration image"):
        DriftMonitor.of(np.zeros(0, np.int64), np.zeros(0), NAMES)
    with pytest.raises(ConfigError, match="risk of a false alarm is 0"):
        DriftMonitor.of(np.zeros(5, np.int64), np.ones(5), NAMES, risk=0)
