from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import beta, binom, multinomial, norm

from recame.decisions.paired_rates import change_interval, change_score, worse_p_value
from recame.metrics.paired import mcnemar_p_value


def slow_score(worse: int, better: int, images: int, change: float) -> float:
    """Tango's score from a likelihood that is maximised by search."""

    def surprise(only_first: float) -> float:
        rates = np.array([only_first + change, only_first, 1 - change - 2 * only_first])
        counts = np.array([worse, better, images - worse - better])
        return -float(np.where(counts > 0, counts * np.log(np.maximum(rates, 1e-300)), 0).sum())

    low, high = max(0.0, -change), (1 - change) / 2
    best = minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    only_first = min((low, high, best.x), key=surprise)
    variance = images * (2 * only_first + change * (1 - change))
    return (worse - better - images * change) / math.sqrt(variance)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 400),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.001, 0.9) | st.floats(-0.9, -0.001),
)
def test_score_agrees_with_a_searched_likelihood(
    images: int, some: float, part: float, change: float
) -> None:
    differing = round(some * images)
    worse = round(part * differing)
    found = float(change_score(worse, differing - worse, images, change))
    expected = slow_score(worse, differing - worse, images, change)
    assert found == pytest.approx(expected, rel=2e-4, abs=2e-4)


@pytest.mark.parametrize(
    ("worse", "better", "images"), [(9, 9, 600), (15, 3, 600), (0, 0, 50), (4, 0, 12), (1, 30, 90)]
)
def test_interval_agrees_with_a_searched_one(worse: int, better: int, images: int) -> None:
    z = norm.ppf(0.95)
    low, high = change_interval(worse, better, images, 0.95)
    for end, wanted in ((low, z), (high, -z)):
        expected = brentq(
            lambda d, wanted=wanted: slow_score(worse, better, images, d) - wanted, -0.999, 0.999
        )
        assert float(end) == pytest.approx(expected, abs=1e-5)


def test_score_of_no_change_is_that_of_mcnemar() -> None:
    assert float(change_score(15, 3, 600, 0.0)) == pytest.approx(12 / math.sqrt(18))
    assert float(change_score(0, 0, 600, 0.0)) == 0.0


def test_interval_of_no_images_and_of_none_that_differ() -> None:
    low, high = change_interval([0, 0], [0, 0], [0, 600], 0.95)
    z2 = norm.ppf(0.95) ** 2
    assert (low[0], high[0]) == (-1.0, 1.0)
    assert high[1] == pytest.approx(z2 / (600 + z2))
    assert low[1] == pytest.approx(-z2 / (600 + z2))


@pytest.mark.parametrize("images", [150, 600])
@pytest.mark.parametrize("only_first", [0.0, 0.005, 0.02, 0.1])
def test_a_change_of_the_margin_seldom_looks_smaller(images: int, only_first: float) -> None:
    """Exactly: the probability of all counts whose upper end is below the true change."""
    change, counts = 0.02, np.arange(min(images, 140) + 1)
    worse, better = np.meshgrid(counts, counts, indexing="ij")
    fits = worse + better <= images
    worse, better = worse[fits], better[fits]
    rates = [only_first + change, only_first, 1 - change - 2 * only_first]
    chance = multinomial.pmf(np.stack([worse, better, images - worse - better], 1), images, rates)
    assert chance.sum() == pytest.approx(1, abs=1e-6)
    _, high = change_interval(worse, better, images, 0.95)
    assert chance[high < change].sum() <= 0.065


def test_p_value_agrees_with_all_outcomes_of_few_images() -> None:
    """The largest probability over the shares of discordant images, by going through all counts."""
    images = 12
    counts = [(b, c) for b in range(images + 1) for c in range(images + 1 - b)]

    def score(b: int, c: int) -> float:
        return (b - c) / math.sqrt(b + c) if b + c else 0.0

    for worse, better in [(3, 0), (5, 1), (7, 2), (12, 0), (6, 5)]:
        as_uneven = [(b, c) for b, c in counts if score(b, c) >= score(worse, better) - 1e-9]
        rest = max(images - worse - better, 1e-9)
        largest = max(
            sum(
                multinomial.pmf([b, c, images - b - c], images, [q, q, 1 - 2 * q])
                for b, c in as_uneven
            )
            for q in np.linspace(0.005, 0.5, 100) * beta.ppf(1 - 1e-6, worse + better + 1, rest)
        )
        assert worse_p_value(worse, better, images) == pytest.approx(largest, abs=2e-3)


@pytest.mark.parametrize("share", [0.004, 0.01, 0.03, 0.1])
@pytest.mark.parametrize("risk", [0.05, 0.045, 0.005])
def test_equally_good_models_seldom_look_worse(share: float, risk: float) -> None:
    images, size = 400, 0.0
    for differing in range(1, 90):
        worse = np.arange(differing + 1)
        low = np.array([worse_p_value(int(b), int(differing - b), images) <= risk for b in worse])
        chance = binom.pmf(worse, differing, 0.5)[low].sum()
        size += binom.pmf(differing, images, share) * chance
    assert size <= risk
    if images * share * risk >= 0.2:  # levels are coarse where few images differ
        assert size > 0.7 * risk


def test_p_value_shows_more_than_the_conditional_one() -> None:
    assert worse_p_value(15, 3, 600) == pytest.approx(0.0023, abs=1e-4)
    assert worse_p_value(15, 3, 600) < mcnemar_p_value(15, 3) / 2
    assert worse_p_value(3, 3, 600) == worse_p_value(0, 5, 600) == 1.0
    assert worse_p_value(240, 180, 3000) == pytest.approx(mcnemar_p_value(240, 180) / 2)
    assert worse_p_value(12, 0, 12) == pytest.approx(2**-12 + 1e-6)
