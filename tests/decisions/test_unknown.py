from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from recame.decisions.exact import images_needed, smallest_limit
from recame.decisions.unknown import fit_unknown_threshold, is_unknown
from recame.errors import ConfigError, DataError

TAIL = np.array([False, False, True, True])


def drawn(counts: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    target = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).random(len(target)), target


def test_keeps_both_limits_with_the_lowest_threshold() -> None:
    scores, target = drawn((300, 100, 60, 40))
    scores[400:] += 0.5  # the tail is stranger, so that its limit decides
    found = fit_unknown_threshold(scores, target, TAIL, limit=0.2, tail_limit=0.1, risk=0.1)
    assert found.tail is not None
    # Both promises have half of the risk.
    for told, num in ((found.known, 500), (found.tail, 100)):
        assert (told.images, told.kept, told.needed) == (num, True, None)
        assert binom.cdf(told.allowed, num, told.limit) <= 0.05
        assert binom.cdf(told.allowed + 1, num, told.limit) > 0.05
        assert told.at_most == pytest.approx(smallest_limit(num, told.allowed, 0.05))
        assert told.at_most <= told.limit
    assert found.threshold == np.sort(scores[400:])[99 - found.tail.allowed]
    assert found.tail.alarms == found.tail.allowed
    unknown = is_unknown(scores, found.threshold)
    assert found.known.alarms == unknown.sum() < found.known.allowed
    # A threshold any lower has one false alarm too many.
    lower = is_unknown(scores, np.nextafter(found.threshold, -1))
    assert lower[400:].sum() == found.tail.allowed + 1
    alone = fit_unknown_threshold(scores, target, TAIL, limit=0.2, tail_limit=None, risk=0.1)
    assert alone.tail is None
    assert alone.threshold is not None
    assert alone.threshold < found.threshold
    assert binom.cdf(alone.known.allowed, 500, 0.2) > 0.05  # which has the whole risk


def test_too_few_images_promise_nothing_and_say_what_it_takes() -> None:
    scores, target = drawn((200, 50, 8, 4))
    found = fit_unknown_threshold(scores, target, TAIL, limit=0.05, tail_limit=0.05, risk=0.05)
    assert found.threshold is None
    assert found.known.kept
    assert found.tail is not None
    assert not found.tail.kept
    assert found.tail.needed == images_needed(0.05, 0.025) == 72
    assert found.tail.at_most == pytest.approx(1 - 0.025 ** (1 / 12))
    assert found.tail.alarms == 0
    assert json.loads(json.dumps(found.to_dict()))["tail"]["needed"] == 72
    empty = fit_unknown_threshold(
        scores[:250], target[:250], TAIL, limit=0.05, tail_limit=0.05, risk=0.05
    )
    assert empty.tail is not None
    assert (empty.tail.images, empty.tail.at_most, empty.tail.needed) == (0, 1.0, 72)


def test_what_is_no_number_is_always_a_false_alarm() -> None:
    scores, target = drawn((400, 100, 0, 0))
    scores[:5], scores[5:8] = np.nan, np.inf
    how = {"limit": 0.05, "tail_limit": None, "risk": 0.05}
    found = fit_unknown_threshold(scores, target, TAIL, **how)
    assert found.known.kept
    assert found.known.alarms == found.known.allowed == 16
    assert is_unknown(scores, found.threshold)[:8].all()
    scores[:100] = np.nan
    found = fit_unknown_threshold(scores, target, TAIL, **how)
    assert found.threshold is None
    assert found.known.alarms == 100
    assert found.known.at_most > 0.2
    assert found.known.needed == images_needed(0.05, 0.05, 100)
    assert is_unknown(scores, None).sum() == 100


def test_images_without_a_class_do_not_count() -> None:
    scores, target = drawn((300, 100, 60, 40))
    more = np.concatenate([scores, np.full(50, 9.0)]), np.concatenate([target, np.full(50, -1)])
    how = {"limit": 0.05, "tail_limit": 0.1, "risk": 0.05}
    found = fit_unknown_threshold(scores, target, TAIL, **how)
    assert fit_unknown_threshold(*more, TAIL, **how) == found
    assert found.threshold is not None


def test_a_mix_takes_images_in_its_shares() -> None:
    # 90 % of what comes is of class 0, of which there are fewer images than of the others.
    scores, target = drawn((180, 200, 200, 200))
    scores[180:] += 1
    mix = np.array([90.0, 5, 4, 1])
    how = {"limit": 0.15, "tail_limit": None, "risk": 0.05}
    found = fit_unknown_threshold(scores, target, TAIL, mix=mix, **how)
    assert found.known.images == 200  # 180, 10, 8, 2
    assert found.threshold is not None
    assert found.threshold < 1.1
    as_they_come = fit_unknown_threshold(scores, target, TAIL, **how)
    assert as_they_come.threshold is not None
    assert as_they_come.threshold > 1.7
    assert fit_unknown_threshold(scores, target, TAIL, mix=2 * mix, **how) == found
    # A class that is to come and of which there is no image leaves nothing to promise by.
    none = fit_unknown_threshold(scores[:180], target[:180], TAIL, mix=mix, **how)
    assert (none.threshold, none.known.images, none.known.at_most) == (None, 0, 1.0)
    without = np.array([1.0, 0, 0, 0])
    assert fit_unknown_threshold(scores, target, TAIL, mix=without, **how).known.images == 180


def test_shares_that_no_whole_numbers_have_are_paid_for() -> None:
    """A class of a share below one image takes one, and the limit is so much lower."""
    scores, target = drawn((99, 100, 100, 100))
    mix = np.array([0.99, 0.004, 0.003, 0.003])
    found = fit_unknown_threshold(
        scores, target, TAIL, limit=0.05, tail_limit=None, risk=0.05, mix=mix
    )
    assert found.known.images == 102
    assert found.known.at_most == pytest.approx(smallest_limit(102, 1, 0.05) * 102 / 100)


@pytest.mark.parametrize("mix", [None, np.array([0.9, 0.06, 0.03, 0.01])])
def test_the_promises_fail_as_seldom_as_they_say(mix: np.ndarray | None) -> None:
    """Uniform scores up to a height of each class: what lies beyond a threshold is known."""
    counts, height = np.array([250, 100, 80, 40]), np.array([1.0, 1.3, 2.0, 4.0])
    target = np.repeat(np.arange(4), counts)
    shares = counts / counts.sum() if mix is None else mix
    tail = shares * TAIL / (shares * TAIL).sum()
    rng = np.random.default_rng(0)
    broken = np.zeros(3)
    for _ in range(600):
        scores = rng.random(len(target)) * height[target]
        found = fit_unknown_threshold(
            scores, target, TAIL, limit=0.1, tail_limit=0.25, risk=0.2, mix=mix
        )
        assert found.threshold is not None
        beyond = np.maximum(0, 1 - found.threshold / height)
        known, rare = (shares * beyond).sum() > 0.1, (tail * beyond).sum() > 0.25
        broken += known, rare, known or rare
    assert broken[2] / 600 <= 0.2
    assert broken.max() / 600 > 0.02  # nor is the threshold much higher than it has to be


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 2.0, math.inf, math.nan]), st.integers(-1, 3)),
        min_size=1,
        max_size=60,
    ),
    st.floats(0.05, 0.5),
    st.booleans(),
)
def test_false_alarms_never_exceed_what_is_allowed(
    images: list[tuple[float, int]], limit: float, mixed: bool
) -> None:
    scores, target = np.array([s for s, _ in images]), np.array([t for _, t in images])
    mix = np.array([4.0, 2, 1, 1]) if mixed else None
    found = fit_unknown_threshold(
        scores, target, TAIL, limit=limit, tail_limit=limit, risk=0.2, mix=mix
    )
    assert found.tail is not None
    assert (found.threshold is None) == (not (found.known.kept and found.tail.kept))
    for told in (found.known, found.tail):
        if found.threshold is not None:
            assert told.alarms <= told.allowed
        assert told.kept == (told.at_most <= limit)
        assert told.kept == (told.needed is None)


def test_what_cannot_be_asked_is_refused() -> None:
    scores, target = drawn((20, 20, 20, 20))
    how = {"limit": 0.1, "tail_limit": 0.1, "risk": 0.05}
    for name, value in (("limit", 0.0), ("limit", 0.6), ("tail_limit", -0.1), ("risk", 0.3)):
        with pytest.raises(ConfigError, match=f"^{name} is {value}"):
            fit_unknown_threshold(scores, target, TAIL, **(how | {name: value}))
    with pytest.raises(DataError, match="80 scores, 79 targets and 4 classes"):
        fit_unknown_threshold(scores, target[1:], TAIL, **how)
    with pytest.raises(DataError, match="3 classes"):
        fit_unknown_threshold(scores, target, TAIL[1:], **how)
    for mix in ([1.0, 1, 1], [1.0, 1, 1, -1], [0.0, 0, 0, 0], [1.0, 1, 1, math.nan]):
        with pytest.raises(ConfigError, match="a share of 0 or more for each of 4 classes"):
            fit_unknown_threshold(scores, target, TAIL, mix=np.array(mix), **how)
