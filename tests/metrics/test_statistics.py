from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from recame.metrics.breakdown import macro_statistics
from recame.metrics.statistics import (
    area_under_roc,
    balanced_accuracy,
    bootstrap_intervals,
    class_counts,
    class_means,
    confusion_matrix,
    rate_at_most,
    resample_counts,
    standard_error,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(10, 12), (0, 5), (5, 5), (1, 1), (300, 1000)])
def test_wilson_agrees_with_scipy(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(0.9, method="wilson")
    low, high = wilson_interval(successes, trials, 0.9)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_rate_at_most_is_the_exact_one(pair):
    successes, trials = pair
    exact = binomtest(successes, trials, alternative="less").proportion_ci(0.95, method="exact")
    assert rate_at_most(successes, trials) == pytest.approx(exact.high, rel=1e-6)


def test_wilson_is_vectorised_and_knows_nothing_without_trials():
    low, high = wilson_interval([0, 10, 0], [0, 12, 4])
    assert low.shape == (3,)
    assert (low[0], high[0]) == (0.0, 1.0)
    assert (round(low[1], 2), round(high[1], 2)) == (0.55, 0.95)
    assert low[2] == 0.0


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_stays_in_range(pair):
    successes, trials = pair
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    wider_low, wider_high = wilson_interval(successes, trials, 0.99)
    assert wider_low <= low <= high <= wider_high


def test_confusion_matrix_counts():
    got = confusion_matrix(np.array([0, 0, 2, 2]), np.array([0, 1, 2, 0]), 3)
    assert got.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_draws_keep_every_class_and_every_image(num_classes, seed):
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, 4, (num_classes, num_classes))
    confusion[rng.integers(num_classes)] = 0
    drawn = resample_counts(confusion, 7, rng)
    assert drawn.hits.shape == drawn.predicted.shape == (7, num_classes)
    np.testing.assert_array_equal(drawn.support, confusion.sum(1))
    np.testing.assert_allclose(drawn.predicted.sum(1), confusion.sum())
    assert (drawn.hits >= 0).all()
    assert (drawn.hits <= drawn.support + 1e-9).all()
    assert (drawn.hits <= drawn.predicted + 1e-9).all()
    assert (drawn.hits[:, confusion.sum(1) == 0] == 0).all()


def test_drawn_recalls_follow_their_jeffreys_distribution():
    confusion = np.array([[18, 1, 1], [0, 5, 0], [2, 0, 2]])
    drawn = resample_counts(confusion, 40_000, np.random.default_rng(0))
    recall = drawn.hits / drawn.support
    right, images = np.diagonal(confusion), confusion.sum(1)
    a, b = right + 0.5, images - right + 0.5
    np.testing.assert_allclose(recall.mean(0), a / (a + b), atol=4e-3)
    np.testing.assert_allclose(recall.var(0), a * b / ((a + b) ** 2 * (a + b + 1)), rtol=0.05)
    # What is not drawn as right goes where the row's wrong calls went, and a little elsewhere.
    wrong = np.array([[0, 1.25, 1.25], [0.25, 0, 0.25], [2.25, 0.25, 0]])
    expected = images * a / (images + 1) + (images / (images + 1)) @ wrong
    np.testing.assert_allclose(drawn.predicted.mean(0), expected, atol=0.05)


def test_intervals_are_seeded_centred_and_honest_for_a_perfect_small_class():
    def statistic(counts):
        return macro_statistics(counts, {"small": np.array([False, True])})

    confusion = np.array([[190, 10], [0, 2]])
    got = bootstrap_intervals(confusion, statistic, resamples=2000, seed=3)
    again = bootstrap_intervals(confusion, statistic, resamples=2000, seed=3)
    assert got == again
    assert bootstrap_intervals(confusion, statistic, resamples=0, seed=3) == {}
    low, high = got["small"]
    assert low < 0.7
    assert high == 1.0
    value = float(statistic(class_counts(confusion))["balanced_accuracy"])
    assert got["balanced_accuracy"][0] < value < got["balanced_accuracy"][1]
    narrow = bootstrap_intervals(confusion * 50, statistic, resamples=2000, seed=3)
    assert np.diff(narrow["balanced_accuracy"])[0] < 0.1 * np.diff(got["balanced_accuracy"])[0] * 2


def test_interval_covers_the_true_balanced_accuracy_where_classes_are_tiny():
    rng = np.random.default_rng(1)
    num_classes, recall = 12, 0.9
    images = np.resize([3, 5, 8, 20], num_classes)
    shares = np.full((num_classes, num_classes), (1 - recall) / (num_classes - 1))
    np.fill_diagonal(shares, recall)
    covered = 0
    for trial in range(150):
        confusion = rng.multinomial(images, shares)
        low, high = bootstrap_intervals(
            confusion, lambda c: macro_statistics(c, {}), resamples=200, seed=trial
        )["balanced_accuracy"]
        covered += low <= recall <= high
    assert covered / 150 > 0.9


class TestStandardError:
    def test_is_the_textbook_one_for_many_images(self) -> None:
        rng = np.random.default_rng(0)
        target = np.repeat([0, 1], 4000)
        first, second = rng.random(8000) < 0.8, rng.random(8000) < 0.7
        difference = first.astype(float) - second
        variances = [difference[target == c].var() / 4000 for c in (0, 1)]
        expected = np.sqrt(sum(variances)) / 2
        assert standard_error(first, second, target) == pytest.approx(expected, rel=1e-3)

    def test_alike_on_few_images_is_no_certainty(self) -> None:
        alike = np.ones(2, bool)
        # variance 0.5 of one image more: (0 * 2 + 0.5) / 3, of 2 images
        assert standard_error(alike, alike, np.zeros(2, int)) == pytest.approx(np.sqrt(0.5 / 6))

    def test_absent_classes_do_not_count(self) -> None:
        one, other = np.array([True, True]), np.array([True, False])
        value = standard_error(one, other, np.array([0, 0]))
        assert standard_error(one, other, np.array([3, 3])) == value


def test_class_means() -> None:
    means = class_means(np.array([1.0, 0.0, 4.0]), np.array([2, 2, 5]))
    np.testing.assert_array_equal(means, [0.5, 4.0])


def test_balanced_accuracy_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    target, called = rng.choice([0, 2, 5], 60), rng.choice([0, 2, 5], 60)
    expected = balanced_accuracy_score(target, called)
    assert balanced_accuracy(called == target, target) == pytest.approx(expected)


@given(st.lists(st.integers(0, 6), min_size=1), st.lists(st.integers(2, 9), min_size=1))
def test_area_under_roc_is_scikit_learns(negative: list[int], positive: list[int]) -> None:
    labels = [0] * len(negative) + [1] * len(positive)
    expected = roc_auc_score(labels, negative + positive)
    found = area_under_roc(np.array(negative, float), np.array(positive, float))
    assert found == pytest.approx(expected, abs=1e-12)


def test_area_under_roc_at_its_ends() -> None:
    infinite = np.array([np.inf, -np.inf])
    assert area_under_roc(infinite, np.array([np.inf])) == 0.75
    assert area_under_roc(infinite, infinite[:0]) is None
    with pytest.raises(ValueError, match="NaN"):
        area_under_roc(infinite, np.array([np.nan]))
