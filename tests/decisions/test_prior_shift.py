from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from recame.contracts import FloatArray, IntArray
from recame.decisions.prior_shift import (
    LEAST_APART,
    MOST_UNKNOWN,
    Known,
    PriorEstimate,
    estimate_prior,
    reweighted,
)
from recame.errors import DataError

CLASSES = 6
EQUAL = np.full(CLASSES, 1 / CLASSES)
FALLING = 50.0 ** -np.linspace(0, 1, CLASSES)
FALLING /= FALLING.sum()
RISING = FALLING[::-1].copy()

#: Seven classes, all equally far apart; the model knows six.
CORNERS = np.eye(CLASSES + 1) - 1 / (CLASSES + 1)
MEANS = CORNERS @ np.linalg.svd(CORNERS)[2][:CLASSES].T * 4 / np.sqrt(2)


def seen(target: IntArray, random: np.random.Generator) -> FloatArray:
    """Exact probabilities of Gaussian images, were all six classes equally frequent."""
    features = random.normal(size=(len(target), CLASSES)) + MEANS[target]
    return softmax(features @ MEANS[:CLASSES].T, 1)


def drawn(
    images: int, prior: FloatArray, random: np.random.Generator
) -> tuple[FloatArray, IntArray]:
    target = random.choice(CLASSES, images, p=prior)
    return seen(target, random), target


def labelled(images: int, random: np.random.Generator, prior: FloatArray = EQUAL) -> Known:
    target = np.repeat(np.arange(CLASSES), images)
    return Known(reweighted(seen(target, random), EQUAL, prior), target)


def accuracy(probabilities: FloatArray, target: IntArray) -> float:
    return float((probabilities.argmax(1) == target).mean())


def test_the_most_likely_prior_is_the_one_scipy_finds() -> None:
    random = np.random.default_rng(0)
    probabilities, _ = drawn(4000, RISING, random)
    found = estimate_prior(reweighted(probabilities, EQUAL, FALLING), FALLING)

    def loss(values: FloatArray) -> float:
        return -float(np.log(probabilities @ softmax(values)).mean())

    peer = softmax(minimize(loss, np.zeros(CLASSES), tol=1e-10).x)
    # Between the old one and the most likely, as much as 2 of its gain a free frequency allows.
    gain = 2 * len(probabilities) * (loss(np.log(FALLING)) - loss(np.log(peer)))
    share = 1 - 2 * (CLASSES - 1) / gain
    assert 0.99 < share < 1
    np.testing.assert_allclose(found.prior, share * peer + (1 - share) * FALLING, atol=2e-5)
    assert found.prior.sum() == pytest.approx(1.0)
    assert (found.images, found.refused, found.noticed_from) == (4000, "", None)
    assert 1 < found.iterations < 100


@pytest.mark.parametrize(("old", "new"), [(FALLING, RISING), (EQUAL, FALLING), (FALLING, EQUAL)])
def test_most_of_what_the_true_prior_would_win_is_won(old: FloatArray, new: FloatArray) -> None:
    random = np.random.default_rng(1)
    won = []
    for _ in range(12):
        levelled, target = drawn(1000, new, random)
        probabilities = reweighted(levelled, EQUAL, old)
        found = estimate_prior(probabilities, old)
        priors = (old, found.prior, new)
        won.append([accuracy(reweighted(probabilities, old, prior), target) for prior in priors])
    before, estimated, true = np.mean(won, 0)
    assert true - before > 0.01
    assert estimated - before >= 2 / 3 * (true - before)


@pytest.mark.parametrize("prior", [EQUAL, FALLING])
def test_little_is_lost_where_nothing_has_changed(prior: FloatArray) -> None:
    random = np.random.default_rng(2)
    lost, kept = [], 0
    for _ in range(40):
        levelled, target = drawn(200, prior, random)
        probabilities = reweighted(levelled, EQUAL, prior)
        found = estimate_prior(probabilities, prior)
        after = reweighted(probabilities, prior, found.prior)
        lost.append(accuracy(probabilities, target) - accuracy(after, target))
        kept += np.array_equal(found.prior, prior)
    assert np.mean(lost) <= 0.002
    assert kept > 30


@pytest.mark.parametrize("new", [EQUAL, FALLING])
def test_unknown_images_are_refused_and_known_ones_are_not(new: FloatArray) -> None:
    random = np.random.default_rng(3)
    refused = np.zeros(2)
    for _ in range(60):
        known = labelled(150, random, FALLING)
        for disturbed in (False, True):
            levelled, _ = drawn(1000, new, random)
            if disturbed:
                levelled[:100] = seen(np.full(100, CLASSES), random)
            lot = reweighted(levelled, EQUAL, FALLING)
            found = estimate_prior(lot, FALLING, known=known)
            refused[int(disturbed)] += "flatter than those of any mixture" in found.refused
            if found.refused:
                assert found.prior.tolist() == FALLING.tolist()
                assert (found.low.tolist(), found.high.tolist()) == ([0] * 6, [1] * 6)
    assert refused[0] <= 0.05 * 60
    assert refused[1] >= 0.9 * 60


def test_the_share_said_to_be_noticed_is() -> None:
    random = np.random.default_rng(4)
    known = labelled(100, random)
    clean = estimate_prior(drawn(500, EQUAL, random)[0], EQUAL, known=known)
    assert clean.noticed_from is not None
    assert 0.08 < clean.noticed_from < 0.2
    more = estimate_prior(drawn(5000, EQUAL, random)[0], EQUAL, known=labelled(500, random))
    assert more.noticed_from is not None
    assert more.noticed_from < clean.noticed_from / 1.5

    unknown, refused = round(500 * clean.noticed_from), 0
    for _ in range(100):
        lot, _ = drawn(500, EQUAL, random)
        lot[:unknown] = seen(np.full(unknown, CLASSES), random)
        refused += bool(estimate_prior(lot, EQUAL, known=labelled(100, random)).refused)
    assert 80 <= refused <= 98


def test_intervals_hold_the_true_prior_as_often_as_they_say() -> None:
    random = np.random.default_rng(5)
    held = []
    for _ in range(150):
        found = estimate_prior(drawn(600, FALLING, random)[0], EQUAL)
        held.append((found.low <= FALLING) & (found.high >= FALLING))
        assert (found.low <= found.prior).all()
        assert (found.prior <= found.high).all()
    assert 0.9 < np.mean(held) < 0.98
    large = estimate_prior(drawn(20_000, FALLING, random)[0], EQUAL)
    # Almost the error of counting, were the classes seen.
    width, counted = large.high[0] - large.low[0], np.sqrt(FALLING[0] * (1 - FALLING[0]) / 20_000)
    assert 1.0 < width / (2 * 1.96 * counted) < 1.2


def test_unknown_images_told_from_elsewhere_are_refused() -> None:
    lot, _ = drawn(300, RISING, np.random.default_rng(6))
    found = estimate_prior(lot, EQUAL, unknown_share=0.08)
    assert found.refused.startswith("8.0% of the images are of no known class")
    assert found.prior.tolist() == EQUAL.tolist()
    assert not estimate_prior(lot, EQUAL, unknown_share=MOST_UNKNOWN).refused
    assert estimate_prior(lot, EQUAL, unknown_share=float("nan")).refused


def test_classes_that_are_called_alike_are_refused() -> None:
    lot, _ = drawn(300, RISING, np.random.default_rng(7))
    confusion = np.eye(CLASSES, dtype=np.int64) * 50
    assert not estimate_prior(lot, EQUAL, confusion=confusion).refused
    mixed = confusion.copy()
    mixed[1, [1, 4]] = mixed[4, [4, 1]] = 29, 21
    # Two classes, mixed evenly but for 16 %, which is the singular value as well.
    found = estimate_prior(lot, EQUAL, confusion=mixed, names=["ok", "dent", "a", "b", "rust", "c"])
    assert "dent and rust get the same predictions except for 16% of them" in found.refused
    assert "0.16" in found.refused
    mixed[1, [1, 4]] = mixed[4, [4, 1]] = 31, 19
    assert LEAST_APART < 0.24
    assert not estimate_prior(lot, EQUAL, confusion=mixed).refused
    confusion[3] = 0
    assert "how class 3 is predicted" in estimate_prior(lot, EQUAL, confusion=confusion).refused


def test_confusion_is_counted_from_known_images_where_none_is_given() -> None:
    random = np.random.default_rng(8)
    lot, _ = drawn(300, EQUAL, random)
    known = labelled(60, random)
    blind = known.probabilities.copy()
    blind[:, [2, 5]] = blind[:, [2, 5]].mean(1, keepdims=True)
    found = estimate_prior(lot, EQUAL, known=Known(blind, known.target))
    assert "class 2 and class 5 get the same predictions" in found.refused
    assert "smallest singular value of the confusion 0.00" in found.refused
    without = known.target != 4
    few = Known(known.probabilities[without], known.target[without])
    assert "how class 4 is predicted" in estimate_prior(lot, EQUAL, known=few).refused


def test_what_is_no_number_or_has_no_label_changes_nothing() -> None:
    random = np.random.default_rng(9)
    lot, known = drawn(400, RISING, random)[0], labelled(80, random)
    whole = estimate_prior(lot, EQUAL, known=known)
    silent = np.full((50, CLASSES), np.nan)
    more = Known(
        np.concatenate([known.probabilities, silent, lot]),
        np.concatenate([known.target, np.zeros(50, np.int64), np.full(len(lot), -1)]),
    )
    again = estimate_prior(np.concatenate([silent, lot]), EQUAL, known=more)
    assert again.to_dict() == whole.to_dict()
    assert json.loads(json.dumps(whole.to_dict()))["images"] == 400


def test_a_lot_without_images_keeps_the_prior() -> None:
    for lot in (np.empty((0, CLASSES)), np.full((9, CLASSES), np.nan)):
        found = estimate_prior(lot, FALLING, known=labelled(30, np.random.default_rng(0)))
        assert found.refused == "the lot holds no image with probabilities"
        assert found.prior.tolist() == FALLING.tolist()


def test_a_class_that_was_never_there_stays_away() -> None:
    random = np.random.default_rng(10)
    lot, known = drawn(400, RISING, random)[0], labelled(80, random)
    six = estimate_prior(lot, EQUAL, known=known)

    def with_a_seventh(probabilities: FloatArray) -> FloatArray:
        return np.insert(probabilities * 0.9, 2, 0.1, axis=1)

    target = known.target + (known.target >= 2)
    seven = estimate_prior(
        with_a_seventh(lot),
        np.insert(EQUAL, 2, 0.0),
        known=Known(with_a_seventh(known.probabilities), target),
    )
    assert seven.prior[2] == seven.low[2] == seven.high[2] == 0.0
    np.testing.assert_allclose(np.delete(seven.prior, 2), six.prior, atol=1e-6)
    assert seven.noticed_from == pytest.approx(six.noticed_from)


def test_a_single_class_is_all_there_is() -> None:
    known = Known(np.ones((30, 1)), np.zeros(30, np.int64))
    found = estimate_prior(np.ones((5, 1)), np.ones(1), known=known)
    expected = PriorEstimate(np.ones(1), np.ones(1), np.ones(1), 5, 1)
    assert found.to_dict() == expected.to_dict()


def test_reweighted_is_bayes_rule() -> None:
    random = np.random.default_rng(11)
    levelled, _ = drawn(50, EQUAL, random)
    there = reweighted(levelled, EQUAL, FALLING)
    np.testing.assert_allclose(
        there, levelled * FALLING / (levelled @ FALLING)[:, None], rtol=1e-12
    )
    np.testing.assert_allclose(reweighted(there, FALLING, EQUAL), levelled, rtol=1e-9)
    assert reweighted(levelled.astype(np.float32), EQUAL, FALLING).dtype == np.float32


def test_reweighted_names_no_class_where_none_is_left() -> None:
    rows = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [np.nan, 0.2, 0.8]])
    found = reweighted(rows, np.array([0.2, 0.4, 0.4]), np.array([0.0, 0.5, 0.5]))
    assert found[0].tolist() == [0.0, 1.0, 0.0]
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ([0.5, 0.5], r"shape \(2,\), the probabilities \(4, 3\)"),
        ([0.5, 0.6, -0.1], "is no prior"),
        ([0.5, 0.5, 0.5], "sum to 1"),
        ([0.5, np.nan, 0.5], "is no prior"),
    ],
)
def test_what_is_no_prior_is_refused(prior: list[float], words: str) -> None:
    probabilities = np.full((4, 3), 1 / 3)
    with pytest.raises(DataError, match=words):
        estimate_prior(probabilities, np.array(prior))
    with pytest.raises(DataError, match=words):
        reweighted(probabilities, np.full(3, 1 / 3), np.array(prior))


def test_a_prior_that_was_rounded_is_one() -> None:
    probabilities = np.array([[0.2, 0.3, 0.5]])
    rounded = np.array([0.3333, 0.3333, 0.3333])
    assert reweighted(probabilities, rounded, np.full(3, 1 / 3)) == pytest.approx(probabilities)
    assert estimate_prior(probabilities, rounded).prior.sum() == pytest.approx(1.0)
