from __future__ import annotations

import numpy as np
import pytest

from recame.contracts import FloatArray, IntArray
from recame.inference import separability
from recame.inference.separability import Judged, gain, judge

NONE = np.zeros((0, 5)), np.zeros(0, np.int64)


def drawn(counts: list[int], apart: float, seed: int = 0) -> tuple[FloatArray, IntArray]:
    """Features (N, 5) of classes that lie so far apart, each along an axis of its own."""
    rng = np.random.default_rng(seed)
    target = np.repeat(np.arange(len(counts)), counts)
    return rng.normal(size=(len(target), 5)) + apart * np.eye(5)[target], target


def test_leaving_out_is_training_again_without_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(separability, "_RIDGES", np.array([0.3]))
    features, target = drawn([9, 5, 4], 1.0)
    left_out, _ = separability._ridge_scores(features, target, features[:0], 3)
    # The same solution by its normal equations, image by image.
    ours = (features - features.mean(0)) / features.std(0)
    kernel = ours @ ours.T / 5 + 1.0
    weight = len(target) / (3 * np.bincount(target)[target])
    root = np.sqrt(weight)[:, None]
    ridge = 0.3 * np.linalg.eigvalsh(root * kernel * root.T).mean()
    wanted = np.eye(3)[target] - 1 / 3
    for image in range(len(target)):
        kept = np.arange(len(target)) != image
        system = kernel[np.ix_(kept, kept)] + np.diag(ridge / weight[kept])
        expected = kernel[image, kept] @ np.linalg.solve(system, wanted[kept])
        np.testing.assert_allclose(left_out[image], expected, atol=1e-9)


def test_the_best_ridge_is_found_also_among_hundreds_of_classes_of_two_images() -> None:
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(150), 2)
    train = 0.35 * rng.normal(size=(150, 200))[target] + rng.normal(size=(300, 200))

    def error(ridges: FloatArray) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(separability, "_RIDGES", ridges)
            left_out, _ = separability._ridge_scores(train, target, train[:0], 150)
        return float(((np.eye(150)[target] - 1 / 150 - left_out) ** 2).sum())

    found, weakest = error(separability._RIDGES), error(separability._RIDGES[:1])
    assert found == min(error(np.array([each])) for each in separability._RIDGES) < weakest


def test_one_image_a_class_takes_the_middle_ridge() -> None:
    features, target = drawn([1] * 4, 1.0)
    middle = separability._RIDGES[len(separability._RIDGES) // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separability, "_RIDGES", np.array([middle]))
        expected = separability._ridge_scores(features, target, features + 0.1, 4)[1]
    found = separability._ridge_scores(features, target, features + 0.1, 4)[1]
    np.testing.assert_allclose(found, expected)


def test_classes_that_lie_apart_are_told_apart() -> None:
    near, far = (judge(*drawn([60, 12, 5], apart), *NONE, 3, enough=1) for apart in (0.5, 6.0))
    assert far.accuracy > 0.95
    assert near.accuracy < 0.75
    assert far.mean_loss < near.mean_loss
    better, error = gain(near, far)
    assert better > 2 * error > 0
    assert gain(far, near)[0] == pytest.approx(-better)
    assert gain(near, near)[0] == 0


def test_noise_gives_nothing_to_be_had() -> None:
    features, target = drawn([40, 40, 40], 0.0)
    judged = judge(features, target, *NONE, 3, enough=1)
    assert judged.accuracy < 0.5
    assert judged.mean_loss == pytest.approx(2 / 3, abs=0.03)  # that of equal probabilities


def test_val_judges_where_it_has_enough_of_a_class() -> None:
    train, val = drawn([30, 20, 2], 2.0), drawn([10, 3, 3], 2.0, seed=1)
    judged = judge(*train, *val, 3, enough=10)
    # Of class 0 those of val alone; of class 1 train's too; a class of two is never left out.
    assert np.bincount(judged.target).tolist() == [10, 3 + 20, 3]
    assert len(judged.right) == len(judged.loss) == 36


def test_nothing_to_judge() -> None:
    judged = judge(*drawn([2, 2], 1.0), *NONE, 2, enough=1)
    assert len(judged.target) == 0


def test_two_images_that_fare_alike_prove_little() -> None:
    target = np.array([0, 0, 1, 1])
    right = np.ones(4, bool)
    first = Judged(target, right, np.full(4, 0.9))
    second = Judged(target, right, np.full(4, 0.5))
    better, error = gain(first, second)
    assert better == pytest.approx(0.4)
    # No spread within a class, but one image more that differs as much: 0.4^2 / 3 over 2 images.
    assert error == pytest.approx(np.sqrt(2 * 0.4**2 / 3 / 2) / 2)
