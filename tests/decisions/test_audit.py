from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
from scipy.stats import kstest

from recame.decisions.audit import RATIOS, EscapeMonitor, audited, evidence
from recame.errors import ConfigError, DataError


def digests(num: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(num)]


def test_a_share_is_drawn_by_content() -> None:
    images = digests(20_000)
    drawn = audited(images, 0.05, "line 3")
    assert drawn.mean() == pytest.approx(0.05, abs=0.005)
    order = np.random.default_rng(0).permutation(len(images))
    again = audited([images[i].upper() for i in order], 0.05, "line 3")
    assert (again == drawn[order]).all()
    more = audited(images, 0.1, "line 3")
    assert (more | ~drawn).all()
    other = audited(images, 0.05, "line 4")
    assert (drawn & other).mean() == pytest.approx(0.0025, abs=0.0015)


def test_what_is_drawn_is_uniform() -> None:
    images = digests(400)
    # The smallest share that draws each image, by bisection.
    low, high = np.zeros(400), np.ones(400)
    for _ in range(12):
        middle = (low + high) / 2
        drawn = np.array([audited([d], m, "")[0] for d, m in zip(images, middle, strict=True)])
        low, high = np.where(drawn, low, middle), np.where(drawn, middle, high)
    assert kstest(high, "uniform").pvalue > 0.05


def test_all_and_none_are_drawn() -> None:
    images = digests(50)
    assert audited(images, 1.0, "").all()
    assert not audited(images, 0, "").any()
    assert audited([], 0.5, "").shape == (0,)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(DataError, match="'ab12' is no SHA-256"):
        audited(["ab12"], 0.5, "")
    with pytest.raises(ConfigError, match=r"share of audited images is 1.5.*from 0 to 1"):
        audited(digests(1), 1.5, "")


def slow_evidence(escaped: list[bool], limit: float) -> float:
    """Each rate's bet from each image on, multiplied out."""
    total = 1 / (1 + math.log(len(escaped) + 1))
    for ratio in RATIOS:
        rate = min(limit * ratio, (1 + limit) / 2)
        for begin in range(len(escaped)):
            weight = 1 / (1 + math.log(begin + 1)) - 1 / (1 + math.log(begin + 2))
            factors = [rate / limit if e else (1 - rate) / (1 - limit) for e in escaped[begin:]]
            total += weight * math.prod(factors) / len(RATIOS)
    return total


@pytest.mark.parametrize("limit", [0.001, 0.02, 0.3, 0.9])
def test_evidence_is_that_of_all_bets(limit: float) -> None:
    escaped = np.random.default_rng(0).random(300) < min(2 * limit, 0.95)
    monitor = EscapeMonitor(limit)
    for end in (1, 5, 130, 300):
        monitor.add(escaped[monitor.images : end])
        assert monitor.e_value == pytest.approx(slow_evidence(escaped[:end].tolist(), limit))


def test_streams_are_watched_together() -> None:
    escaped = np.random.default_rng(1).random((3, 400)) < 0.05
    _, values = evidence(np.zeros((3, len(RATIOS))), 0, escaped, 0.02)
    for row in range(3):
        monitor = EscapeMonitor(0.02)
        monitor.add(escaped[row])
        assert monitor.e_value == pytest.approx(values[row, -1])
        reached = np.flatnonzero(values[row] >= 20)
        assert monitor.alarmed_at == (reached[0] + 1 if len(reached) else None)


def test_no_bet_grows_while_the_promise_is_kept() -> None:
    """The mean over all eight streams of three images, whatever the rates below the limit."""
    limit = 0.3
    streams = np.array(np.meshgrid(*[[False, True]] * 3)).reshape(3, -1).T
    _, values = evidence(np.zeros((8, len(RATIOS))), 0, streams, limit)
    for rates in ([0.3, 0.3, 0.3], [0.1, 0.3, 0.2], [0.0, 0.0, 0.3]):
        chance = np.where(streams, rates, 1 - np.array(rates)).prod(1)
        for image in range(3):
            assert (chance @ values[:, image]) <= 1 + 1e-12
    assert chance.sum() == pytest.approx(1)


def test_false_alarms_are_as_seldom_as_promised() -> None:
    escaped = np.random.default_rng(2).random((400, 4000), np.float32) < 0.02
    _, values = evidence(np.zeros((400, len(RATIOS))), 0, escaped, 0.02)
    assert (values.max(1) >= 20).mean() <= 0.05


def test_a_doubled_rate_is_seen_at_once_and_after_a_good_time() -> None:
    generator = np.random.default_rng(3)
    for good, median in ((0, 500), (3000, 1500)):
        drawn = generator.random((200, good + 3000), np.float32)
        escaped = drawn < np.repeat([0.01, 0.04], [good, 3000])
        _, values = evidence(np.zeros((200, len(RATIOS))), 0, escaped, 0.02)
        assert 100 < np.median((values >= 20).argmax(1)) - good < median


def test_an_alarm_stays() -> None:
    monitor = EscapeMonitor(0.02)
    monitor.add(np.ones(5, np.bool_))
    raised = monitor.alarmed_at
    assert raised == 3
    monitor.add(np.zeros(5000, np.bool_))
    assert monitor.e_value < 1
    assert (monitor.alarm, monitor.alarmed_at) == (True, raised)


def test_many_escapes_stay_a_number() -> None:
    monitor = EscapeMonitor(0.0001)
    monitor.add(np.ones(5000, np.bool_))
    assert math.isfinite(monitor.e_value)
    assert monitor.e_value > 1e50


def test_state_goes_on() -> None:
    escaped = np.random.default_rng(4).random(900) < 0.03
    whole, first = EscapeMonitor(0.02, 0.1), EscapeMonitor(0.02, 0.1)
    whole.add(escaped)
    first.add(escaped[:333])
    second = EscapeMonitor.from_dict(json.loads(json.dumps(first.to_dict())))
    second.add(escaped[333:])
    assert second.e_value == pytest.approx(whole.e_value)
    assert (second.images, second.escapes) == (900, int(escaped.sum()))
    with pytest.raises(DataError, match="schema 7"):
        EscapeMonitor.from_dict({**first.to_dict(), "schema": 7})
    with pytest.raises(DataError, match="Begin a new monitor"):
        EscapeMonitor.from_dict({**first.to_dict(), "stakes": [0.0]})


def test_interval_by_hand_and_at_its_ends() -> None:
    monitor = EscapeMonitor(0.02)
    assert monitor.interval() == (0.0, 1.0)
    monitor.add(np.zeros(400, np.bool_))
    low, high = monitor.interval()
    # B(0.5, 400.5) / B(0.5, 0.5) against (1 - p)^400.
    spread = math.lgamma(0.5) + math.lgamma(400.5) - math.lgamma(401) - math.log(math.pi)
    assert (low, high) == (0.0, pytest.approx(1 - math.exp((spread - math.log(20)) / 400)))
    monitor.add(np.ones(20, np.bool_))
    low, high = monitor.interval()
    assert 0.015 < low < 20 / 420 < high < 0.1


def test_interval_holds_at_all_times() -> None:
    generator, missed = np.random.default_rng(5), 0
    for _ in range(100):
        monitor = EscapeMonitor(0.02)
        left = False
        for part in np.split(generator.random(1500) < 0.03, 50):
            monitor.add(part)
            low, high = monitor.interval()
            left |= not low <= 0.03 <= high
        missed += left
    assert missed <= 5


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.1, math.nan])
def test_a_promise_that_is_none(limit: float) -> None:
    with pytest.raises(ConfigError, match="promised rate of escapes is"):
        EscapeMonitor(limit)
    with pytest.raises(ConfigError, match="risk of a false alarm is"):
        EscapeMonitor(0.02, risk=limit)
