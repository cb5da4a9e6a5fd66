from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recame.contracts import Predictions
from recame.decisions.calibration import (
    Calibration,
    calibrated,
    calibrated_predictions,
    fit_calibration,
    fit_temperature,
    load_calibration,
    save_calibration,
)
from recame.errors import CheckpointError
from recame.files import write_json

ANSWERS = {"views": 2, "weighting": "mean", "weights_sha256": "f00d"}


def val(accuracy: float, sure: float, num: int = 200) -> Predictions:
    """Predictions of two classes, right in a share of the images and equally sure of all."""
    target = np.zeros(num, np.int64)
    wrong = np.arange(num) >= accuracy * num
    probabilities = np.where(wrong[:, None], [1 - sure, sure], [sure, 1 - sure]).astype(np.float32)
    table = pd.DataFrame({"image": np.arange(num).astype(str)})
    return Predictions(table, probabilities, probabilities[:, None], target)


def test_confidence_becomes_the_share_of_right_answers(tmp_path: Path) -> None:
    predictions = val(accuracy=0.8, sure=0.95)
    found = fit_calibration(predictions, ANSWERS)
    assert found.temperature == pytest.approx(np.log(19) / np.log(4), abs=1e-3)
    assert found.fitted_on == {"split": "val", "images": 200, **ANSWERS}
    assert found.sentence() == "Temperature 2.124, from 200 images of val."
    after = calibrated_predictions(predictions, found)
    assert after.probabilities.max(1) == pytest.approx(0.8, abs=1e-4)
    np.testing.assert_array_equal(after.expert_probabilities, predictions.expert_probabilities)
    save_calibration(found, tmp_path / "decisions.json")
    assert load_calibration(tmp_path / "decisions.json", ANSWERS) == found


def test_what_is_no_number_is_left_out() -> None:
    predictions = val(accuracy=0.8, sure=0.95)
    silent = np.full((40, 2), np.nan, np.float32)
    logits = np.log(np.concatenate([predictions.probabilities, silent]))
    target = np.concatenate([predictions.target, np.zeros(40, np.int64)])
    assert fit_temperature(logits, target) == pytest.approx(np.log(19) / np.log(4), abs=1e-3)


def test_what_nobody_should_believe_is_bounded() -> None:
    found = fit_calibration(val(accuracy=1.0, sure=0.9), ANSWERS)
    assert found.temperature == 0.25
    assert "too few errors" in found.sentence()


def test_without_val_it_is_one() -> None:
    found = fit_calibration(None, ANSWERS)
    assert found.temperature == 1.0
    assert found.sentence() == "Temperature 1: the run has no val split to calibrate it on."


@pytest.mark.parametrize(
    ("name", "value"), [("views", 8), ("weighting", "stability"), ("weights_sha256", "beef")]
)
def test_other_answers_are_left_as_they_are(
    name: str, value: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "decisions.json"
    assert load_calibration(path, ANSWERS) is None  # as a run of the version before
    save_calibration(Calibration(2.0, {"split": "val", "images": 3, **ANSWERS}), path)
    assert load_calibration(path, {**ANSWERS, name: value}) is None
    assert f"{name} {ANSWERS[name]} then, {value} now" in caplog.text
    assert "recame export" in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        {"schema": 1},
        {"schema": 1, "calibration": {"temperature": 2.0}},
        {"schema": 1, "calibration": {"temperature": "hot", "fitted_on": {}}},
        {"schema": 1, "calibration": {"temperature": -1.0, "fitted_on": {}}},
        {"schema": 2, "calibration": {}},
    ],
)
def test_a_damaged_file_is_refused(values: dict, tmp_path: Path) -> None:
    write_json(tmp_path / "decisions.json", values)
    with pytest.raises(CheckpointError, match=r"decisions.json"):
        load_calibration(tmp_path / "decisions.json", ANSWERS)


def test_equal_temperature_and_no_image_change_nothing() -> None:
    probabilities = np.array([[0.25, 0.75]], np.float32)
    assert calibrated(probabilities, 1.0) is probabilities
    assert calibrated(np.zeros((0, 0), np.float32), 2.0).shape == (0, 0)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"state": "finished", "tables": {}}, True),
        ({"state": "finished"}, False),  # a version that wrote none
        ({"state": "training", "tables": {}}, False),  # not yet
    ],
)
def test_a_file_that_is_lost_is_told(
    facts: dict, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(tmp_path / "run.json", {"schema": 1, **facts})
    path = tmp_path / "decisions.json"
    assert load_calibration(path, ANSWERS) is None
    words = f"{path} is missing, which the run's training wrote: probabilities are as the network"
    assert (words in caplog.text, "recame export" in caplog.text) == (told, told)
