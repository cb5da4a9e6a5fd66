from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from recame.decisions.temperature import fit_temperature
from recame.metrics.calibration import expected_calibration_error, reliability_bins


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 100))
def test_ece_agrees_with_torchmetrics(seed, num_classes, images):
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(size=(images, num_classes))).astype(np.float32)
    target = rng.integers(0, num_classes, images)
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(target), num_classes, n_bins=15
    )
    got = expected_calibration_error(probabilities, target)
    assert got == pytest.approx(float(expected), abs=1e-5)


def test_reliability_bins_by_hand():
    probabilities = np.array([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [1.0, 0.0]])
    table = reliability_bins(probabilities, np.array([0, 1, 1, -1]), bins=2)
    assert table["images"].tolist() == [0, 3]
    assert table["confidence"][1] == pytest.approx(0.7)
    assert table["accuracy"][1] == pytest.approx(2 / 3)
    assert np.isnan(table["gap"][0])
    assert expected_calibration_error(probabilities, np.array([-1, -1, -1, -1])) == 0.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature):
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(20_000, 4)) * 2
    draws = rng.random((len(honest), 1))
    target = (softmax(honest).cumsum(1) < draws).sum(1).clip(0, 3)
    assert fit_temperature(honest * temperature, target) == pytest.approx(temperature, rel=0.05)
    log_probabilities = np.log(softmax(honest * temperature))
    assert fit_temperature(log_probabilities, target) == pytest.approx(temperature, rel=0.05)


def test_temperature_stays_finite_at_the_limits():
    logits = np.array([[np.float32(0), -np.inf], [-np.inf, 0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.05, rel=1e-2)
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(20, rel=1e-2)
    assert fit_temperature(logits, np.array([-1, -1])) == 1.0
