from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from recame.contracts import FloatArray, IntArray, Predictions
from recame.decisions.scored import defect_weights, logits_of, release_scores
from recame.label_space import LabelSpace
from recame.metrics.evaluation import Evaluation, evaluate_predictions
from recame.metrics.operating_point import escapes_at, normal_odds

COUNTS = (900, 60, 6)
SPACE = LabelSpace(("ok", "open", "short"), COUNTS, normal="ok")


def drawn(images: int, seed: int = 0) -> tuple[FloatArray, IntArray]:
    """Probabilities that know something, and classes of which the normal one is the most."""
    rng = np.random.default_rng(seed)
    target = rng.choice(3, size=images, p=(0.7, 0.2, 0.1))
    logits = rng.normal(size=(images, 3)) + 2 * np.eye(3)[target]
    powers = np.exp(logits)
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32), target


def judged(space: LabelSpace, probabilities: FloatArray, target: IntArray) -> Evaluation:
    table = pd.DataFrame({"image": [str(place) for place in range(len(target))]})
    return evaluate_predictions(
        Predictions(table, probabilities, probabilities[:, None], target), space, bootstrap=50
    )


def test_images_have_the_order_by_which_tune_lets_them_pass() -> None:
    probabilities, _ = drawn(400)
    weights = defect_weights(np.array(COUNTS, float), 0, (1, 2))
    released = release_scores(logits_of(probabilities), 0, weights)
    odds = normal_odds(probabilities, 0, COUNTS)
    assert (np.argsort(odds) == np.argsort(released)).all()
    assert (np.argsort(odds) != np.argsort(probabilities[:, 0])).any()


def test_no_other_threshold_that_keeps_the_overkill_lets_fewer_defects_pass() -> None:
    probabilities, target = drawn(500)
    score = normal_odds(probabilities, 0, COUNTS)
    share = np.array(COUNTS) / np.bincount(target)
    for overkill in (0.01, 0.02, 0.1, 0.5):
        escapes = [
            (share[target] * (target != 0) * (score >= threshold)).sum() / (60 + 6)
            for threshold in np.unique(score)
            if (score[target == 0] < threshold).mean() <= overkill
        ]
        assert escapes_at(score, target, 0, COUNTS, overkill) == pytest.approx(min(escapes))


def test_a_share_that_is_a_whole_number_of_images_is_used_up() -> None:
    score = np.concatenate([np.arange(700), [6.5]])
    target = np.array([0] * 700 + [1])
    # Seven of 700 are 1 %; 0.01 x 700 is 6.999... to a computer.
    assert escapes_at(score, target, 0, (10, 1), 0.01) == 0.0
    assert escapes_at(score, target, 0, (10, 1), 0.009) == 1.0


def test_an_image_that_can_be_no_defect_comes_first_and_no_number_is_lost() -> None:
    odds = normal_odds(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.float32), 0, COUNTS)
    assert odds.tolist() == [math.inf, 0.0]


def test_defects_that_nobody_trained_on_weigh_alike() -> None:
    probabilities = np.array([[0.5, 0.4, 0.1]], np.float32)
    assert normal_odds(probabilities, 0, (9, 0, 0)) == pytest.approx([0.5 / 0.25])
    score, target = np.array([2.0, 3.0, 1.0]), np.array([0, 1, 2])
    assert escapes_at(score, target, 0, (9, 0, 0), 0.01) == 0.5


def test_an_evaluation_tells_it_with_an_interval() -> None:
    probabilities, target = drawn(400)
    found = judged(SPACE, probabilities, target).headline
    one, two = (found[f"escapes_at_{percent}_overkill"] for percent in (1, 2))
    for estimate in (one, two):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.value is not None
        assert 0 < estimate.low < estimate.value < estimate.high < 1
    assert two.value <= one.value  # type: ignore[operator]


@pytest.mark.parametrize("kept", [0, 1])
def test_without_a_defect_or_without_a_normal_image_there_is_no_value(kept: int) -> None:
    probabilities, target = drawn(60)
    rows = (target == 0) == (kept == 0)
    found = judged(SPACE, probabilities[rows], target[rows]).headline["escapes_at_1_overkill"]
    assert (found.value, found.low, found.high) == (None, None, None)
