from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from recame.contracts import FloatArray, IntArray
from recame.decisions.calibrators import (
    METHODS,
    Calibrator,
    Method,
    fit_calibrator,
    fit_method,
)
from recame.decisions.temperature import BELIEVED, fit_temperature
from recame.errors import CheckpointError, DataError

TILT = np.array([1.8, 1.2, 0.6, -0.6, -1.2, -1.8])


def drawn(
    images: int | list[int],
    *,
    seed: int = 0,
    too_sure: float | FloatArray = 1.6,
    tilt: FloatArray | float = 0.0,
    classes: int = 6,
) -> tuple[FloatArray, IntArray]:
    """Logits of Gaussian classes, right but for a factor and an offset of each class."""
    target = np.repeat(np.arange(classes), images)
    means = np.eye(classes) * 2.3
    seen = np.random.default_rng(seed).normal(size=(len(target), classes)) + means[target]
    return seen @ means.T * too_sure + tilt, target


def balanced_log_loss(calibrator: Calibrator, logits: FloatArray, target: IntArray) -> float:
    own = calibrator.apply(logits)[np.arange(len(target)), target]
    losses = -np.log(np.maximum(own, 1e-300))
    return float(np.mean([losses[target == name].mean() for name in np.unique(target)]))


@pytest.mark.parametrize("method", METHODS)
def test_fit_is_the_minimum_that_scipy_finds(method: Method) -> None:
    logits, target = drawn([60, 30, 45], classes=3, tilt=np.array([1.0, 0.0, -1.0]))
    found = fit_method(logits, target, method)
    shares = 1 / (3 * np.bincount(target)[target])
    worth = (shares**2).sum()  # of one image
    scores = log_softmax(logits, 1)

    def parts(values: FloatArray) -> tuple[Any, Any]:
        scale = values[:3] if method == "vector" else values[:1]
        return scale, values[len(scale) :] if method != "temperature" else np.zeros(3)

    def loss(values: FloatArray) -> float:
        scale, bias = parts(values)
        own = log_softmax(scores * scale + bias, 1)[np.arange(len(target)), target]
        pull = (bias**2).sum() / 9 + (4 * ((scale - 1) ** 2).sum() if method == "vector" else 0)
        return float(-(shares @ own) + worth * pull / 2)

    start = {"temperature": [1.0], "bias_corrected": [1.0, 0, 0, 0], "vector": [1.0] * 3 + [0] * 3}
    within = [(0.25, 4.0)] * (3 if method == "vector" else 1)
    within += [(-math.inf, math.inf)] * (len(start[method]) - len(within))
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    peer = minimize(loss, start[method], bounds=within, method="L-BFGS-B", options=options)
    scale, bias = parts(peer.x)
    np.testing.assert_allclose(found.scale, np.broadcast_to(scale, 3), atol=2e-4)
    np.testing.assert_allclose(found.bias, bias, atol=2e-4)
    mine = np.concatenate([found.scale[: len(scale)], found.bias[: len(peer.x) - len(scale)]])
    assert loss(mine) <= peer.fun + 1e-9


def test_temperature_is_that_of_fit_temperature_where_images_weigh_alike() -> None:
    logits, target = drawn([200, 80, 30, 30, 25, 20])
    fitted = fit_method(logits, target, "temperature", balanced=False)
    assert 1 / fitted.scale[0] == pytest.approx(fit_temperature(logits, target), rel=2e-5)
    alike = fit_method(logits, target, "temperature")
    assert abs(alike.scale[0] - fitted.scale[0]) > 0.01
    # Twice the weight is two of the same image.
    weights = np.where(target == 5, 2.0, 1.0)
    twice = np.concatenate([logits, logits[target == 5]])
    again = np.concatenate([target, target[target == 5]])
    assert fit_temperature(logits, target, weights) == pytest.approx(
        fit_temperature(twice, again), rel=2e-5
    )


def test_a_known_tilt_is_found_and_taken_back() -> None:
    logits, target = drawn(400, tilt=TILT)
    found = fit_calibrator(logits, target)
    assert found.method == "bias_corrected"
    assert found.scale == pytest.approx(1 / 1.6, rel=0.12)
    assert found.bias - found.bias.mean() == pytest.approx(-TILT / 1.6, abs=0.3)
    np.testing.assert_allclose(
        found.apply(logits), softmax(found.scale * logits + found.bias, 1), rtol=1e-9
    )


def test_scales_of_their_own_are_taken_where_images_show_them() -> None:
    factors = np.array([0.6, 0.9, 1.3, 1.7, 2.2, 2.8])
    logits, target = drawn([400, 400, 400, 400, 400, 40], too_sure=factors, tilt=TILT)
    assert fit_calibrator(logits, target).method == "vector"
    assert fit_calibrator(logits[:-1], target[:-1]).method == "bias_corrected"  # 39 of the last


def test_what_is_chosen_is_never_much_worse_than_a_temperature() -> None:
    """Few images a class and a temperature that is all there is to find: the rich overfit."""
    fresh, truth = drawn(1500, seed=99)
    lost, vector_lost = [], []
    for seed in range(15):
        logits, target = drawn(20, seed=seed)
        plain = balanced_log_loss(fit_method(logits, target, "temperature"), fresh, truth)
        lost.append(balanced_log_loss(fit_calibrator(logits, target), fresh, truth) - plain)
        rich = fit_method(logits, target, "vector")
        vector_lost.append(balanced_log_loss(rich, fresh, truth) - plain)
    assert np.mean(vector_lost) > 0.02
    assert np.mean(lost) < 0.002
    assert max(lost) < 0.03


def test_too_few_images_of_any_class_get_a_temperature_alone() -> None:
    logits, target = drawn([400, 400, 400, 400, 400, 19], tilt=TILT)
    assert fit_calibrator(logits, target).method == "temperature"
    logits, target = drawn([400, 400, 400, 400, 400, 20], tilt=TILT)
    assert fit_calibrator(logits, target).method == "bias_corrected"
    missing = target != 3
    without = fit_calibrator(logits[missing], target[missing])
    assert without.method == "temperature"
    assert np.isfinite(without.apply(logits)).all()


def test_copies_in_a_group_are_no_evidence() -> None:
    """Twenty copies of one image a class, as the pieces of one wafer, look like twenty images."""
    logits, target = drawn(3, seed=4)
    wafers = [("wafer", int(row)) for row in np.arange(len(target)).repeat(20)]
    copied, labels = logits.repeat(20, 0), target.repeat(20)
    assert fit_calibrator(copied, labels).method != "temperature"
    assert fit_calibrator(copied, labels, wafers).method == "temperature"
    one_a_class = [f"lot {name}" for name in labels]
    assert fit_calibrator(copied, labels, one_a_class).method == "temperature"


def test_the_same_images_in_groups_of_one_decide_as_without_groups() -> None:
    logits, target = drawn(60, tilt=TILT)
    alone = fit_calibrator(logits, target)
    named = fit_calibrator(logits, target, [f"image {row}" for row in range(len(target))])
    assert alone.to_dict() == named.to_dict()


@pytest.mark.parametrize("method", METHODS)
def test_perfect_separation_is_bounded(method: Method) -> None:
    target = np.repeat(np.arange(3), 30)
    for margin in (1.0, 8.0, 800.0):
        logits = np.eye(3)[target] * margin
        found = fit_method(logits, target, method)
        assert 1.0 <= found.scale.min() <= found.scale.max() <= 1 / BELIEVED[0]
        assert method == "vector" or found.scale == pytest.approx(1 / BELIEVED[0])
        assert np.abs(found.bias).max() < 1e-6
        assert fit_method(-logits, target, method).scale.min() >= 1 / BELIEVED[1]


def test_rows_without_numbers_or_labels_change_nothing() -> None:
    logits, target = drawn(30, tilt=TILT)
    silent = np.full((40, 6), np.nan)
    silent[20:] = math.inf
    unlabelled = drawn(10, seed=5)[0]
    more = np.concatenate([silent, logits, unlabelled])
    labels = np.concatenate([np.zeros(40, np.int64), target, np.full(60, -1)])
    groups = [*["none"] * 40, *range(len(target)), *["none"] * 60]
    assert (
        fit_calibrator(more, labels, groups).to_dict() == fit_calibrator(logits, target).to_dict()
    )
    found = fit_calibrator(logits, target).apply(more)
    assert np.isnan(found[:40]).all()
    assert found[40:].sum(1) == pytest.approx(1.0)


def test_what_tells_nothing_leaves_everything() -> None:
    logits, target = drawn(30)
    empty: Callable[[int], tuple[FloatArray, IntArray]] = lambda classes: (  # noqa: E731
        np.empty((0, classes)),
        np.empty(0, np.int64),
    )
    for scores, labels in (empty(6), (np.ones((9, 1)), np.zeros(9, np.int64)), empty(1)):
        found = fit_calibrator(scores, labels)
        assert found.to_dict() == {
            "method": "temperature",
            "scale": [1.0] * scores.shape[1],
            "bias": [0.0] * scores.shape[1],
        }
    alone = fit_calibrator(logits[target == 2], target[target == 2])
    np.testing.assert_allclose(alone.apply(logits), softmax(logits, 1), rtol=1e-12)
    assert fit_method(*empty(6), "vector").scale.tolist() == [1.0] * 6


def test_an_offset_of_a_row_and_a_probability_of_zero_are_harmless() -> None:
    found = Calibrator("vector", np.array([0.5, 1.0, 2.0]), np.array([0.3, 0.0, -0.3]))
    logits = np.array([[1.0, 2.0, 3.0], [900.0, 0.0, -math.inf]])
    np.testing.assert_allclose(found.apply(logits), found.apply(logits + 250), rtol=1e-9)
    assert found.apply(logits)[1].tolist() == [1.0, 0.0, 0.0]
    assert found.apply(logits.astype(np.float16)).dtype == np.float32
    assert found.apply(np.empty((0, 3))).shape == (0, 3)


def test_json_and_back() -> None:
    logits, target = drawn(40, tilt=TILT)
    found = fit_calibrator(logits, target)
    again = Calibrator.from_dict(json.loads(json.dumps(found.to_dict())))
    np.testing.assert_array_equal(again.apply(logits), found.apply(logits))
    assert again.method == found.method


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "isotonic"}, "isotonic"),
        ({"scale": [1.0]}, r"\(1,\) scales and \(2,\) biases"),
        ({"scale": [1.0, 0.0]}, "scales above 0"),
        ({"bias": [0.0, math.nan]}, "must be numbers"),
        ({"bias": "many"}, "cannot|The calibrator cannot be read"),
        ({"scale": [10**400, 1.0]}, "The calibrator cannot be read"),
    ],
)
def test_damage_is_named(change: dict[str, Any], words: str) -> None:
    whole = {"method": "vector", "scale": [1.0, 2.0], "bias": [0.0, 0.0]}
    with pytest.raises(CheckpointError, match=words):
        Calibrator.from_dict({**whole, **change})
    with pytest.raises(CheckpointError, match="bias"):
        Calibrator.from_dict({"method": "vector", "scale": [1.0]})


def test_other_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(4, 5\), but the calibrator has 3"):
        Calibrator("temperature", np.ones(3), np.zeros(3)).apply(np.zeros((4, 5)))
