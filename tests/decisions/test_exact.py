from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from recame.decisions.exact import (
    above_all_but,
    images_needed,
    most_allowed,
    smallest_limit,
    tail,
)

counts = st.integers(1, 3000)
rates = st.floats(1e-6, 0.999)
risks = st.floats(1e-7, 0.3)


@given(counts, rates, st.floats(0, 1))
def test_tail_agrees_with_scipy(trials: int, rate: float, share: float) -> None:
    successes = round(share * trials)
    assert tail(successes, trials, rate) == pytest.approx(
        binom.cdf(successes, trials, rate), rel=1e-8, abs=1e-12
    )


def test_tail_at_its_ends() -> None:
    assert tail(-1, 5, 0.3) == 0.0
    assert tail(5, 5, 0.3) == 1.0
    assert tail(0, 0, 0.3) == 1.0
    assert tail(2, 5, 0.0) == 1.0
    assert tail(2, 5, 1.0) == 0.0


@given(counts, rates, risks)
def test_most_allowed_is_the_largest_that_keeps_the_risk(
    trials: int, limit: float, risk: float
) -> None:
    allowed = most_allowed(trials, limit, risk)
    assert -1 <= allowed < trials
    assert allowed == -1 or binom.cdf(allowed, trials, limit) <= risk * (1 + 1e-9)
    assert binom.cdf(allowed + 1, trials, limit) > risk * (1 - 1e-9)


def test_most_allowed_of_no_images_and_of_no_limit() -> None:
    assert most_allowed(0, 0.1, 0.05) == -1
    assert most_allowed(10**6, 0.0, 0.05) == -1
    assert most_allowed(7, 1.0, 0.05) == 7


@given(counts, st.integers(0, 40), risks)
def test_smallest_limit_is_the_beta_quantile(trials: int, allowed: int, risk: float) -> None:
    expected = 1.0 if allowed >= trials else beta.ppf(1 - risk, allowed + 1, trials - allowed)
    assert smallest_limit(trials, allowed, risk) == pytest.approx(expected, rel=1e-6)


@given(st.floats(1e-4, 0.9), risks, st.integers(0, 20))
def test_images_needed_are_the_fewest(limit: float, risk: float, allowed: int) -> None:
    needed = images_needed(limit, risk, allowed)
    assert needed is not None
    assert binom.cdf(allowed, needed, limit) <= risk * (1 + 1e-9)
    assert needed == 1 or binom.cdf(allowed, needed - 1, limit) > risk * (1 - 1e-9)
    assert most_allowed(needed, limit, risk * (1 + 1e-9)) >= allowed


def test_a_limit_of_nothing_takes_no_number_of_images() -> None:
    assert images_needed(0.0, 0.05) is None
    assert images_needed(1.0, 0.05) == 1
    assert smallest_limit(0, 0, 0.05) == 1.0


def test_threshold_above_all_but_some() -> None:
    scores = np.array([0.5, 2.0, 2.0, 1.0, math.nan])
    assert [above_all_but(scores, k) for k in range(-1, 6)] == [
        *(math.inf, 2.0, 2.0, 1.0, 0.5),
        *(-math.inf, -math.inf),
    ]
    for allowed in range(4):
        assert (scores > above_all_but(scores, allowed)).sum() <= allowed


def test_the_share_beyond_a_threshold_breaks_its_limit_as_seldom_as_promised() -> None:
    """The order statistic of uniform scores: the share beyond it is known exactly."""
    trials, limit, risk = 200, 0.05, 0.1
    allowed = most_allowed(trials, limit, risk)
    draws = np.random.default_rng(0).random((20_000, trials))
    beyond = 1 - np.sort(draws, 1)[:, trials - 1 - allowed]
    broken = (beyond > limit).mean()
    assert broken <= risk
    assert broken == pytest.approx(binom.cdf(allowed, trials, limit), abs=0.005)
