from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recame.contracts import Predictions
from recame.decisions.calibration import (
    Calibration,
    calibrated_predictions,
    decided_by,
    fit_calibration,
    load_calibration,
    save_calibration,
    why_plain,
)
from recame.decisions.calibrators import Calibrator
from recame.decisions.scored import class_log_odds, logits_of
from recame.decisions.temperature import calibrated, fit_temperature
from recame.errors import CheckpointError
from recame.files import read_json, write_json

ANSWERS = {"views": 2, "weighting": "mean", "weights_sha256": "f00d"}
OF_VAL = {"split": "val", "images": 480, **ANSWERS}
BIASES = Calibrator("bias_corrected", np.full(3, 0.5), np.array([-2.0, 0.5, 1.5]))
VECTOR = Calibrator("vector", np.array([0.4, 1.0, 2.5]), np.array([-2.0, 0.5, 1.5]))


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
    assert load_calibration(tmp_path / "decisions.json", ANSWERS, 2) == found
    # As the versions before wrote it.
    assert read_json(tmp_path / "decisions.json") == {
        "schema": 1,
        "calibration": {
            "temperature": found.temperature,
            "fitted_on": found.fitted_on,
            "note": "",
        },
    }


def test_what_is_no_number_is_left_out() -> None:
    predictions = val(accuracy=0.8, sure=0.95)
    silent = np.full((40, 2), np.nan, np.float32)
    logits = np.log(np.concatenate([predictions.probabilities, silent]))
    target = np.concatenate([predictions.target, np.zeros(40, np.int64)])
    assert fit_temperature(logits, target) == pytest.approx(np.log(19) / np.log(4), abs=1e-3)


def test_what_nobody_should_believe_is_bounded() -> None:
    found = fit_calibration(val(accuracy=1.0, sure=0.9), ANSWERS)
    assert found.temperature == 0.25
    assert "too few or too many errors" in found.sentence()


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
    assert load_calibration(path, ANSWERS, 2) is None  # as a run of the version before
    save_calibration(Calibration(2.0, {"split": "val", "images": 3, **ANSWERS}), path)
    assert load_calibration(path, {**ANSWERS, name: value}, 2) is None
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
        {"schema": 1, "calibration": [1.5]},
        {"schema": 1, "calibration": {"temperature": 2.0, "fitted_on": {"images": "many"}}},
        {"schema": 1, "calibration": {"temperature": 2.0, "fitted_on": {}, "calibrator": 1}},
    ],
)
def test_a_damaged_file_is_refused(values: dict, tmp_path: Path) -> None:
    write_json(tmp_path / "decisions.json", values)
    with pytest.raises(CheckpointError, match=r"decisions.json"):
        load_calibration(tmp_path / "decisions.json", ANSWERS, 2)


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
    assert load_calibration(path, ANSWERS, 2) is None
    words = f"{path} is missing, which the run's training wrote: probabilities are not calibrated"
    assert (words in caplog.text, "recame export" in caplog.text) == (told, told)


def of(calibrator: Calibrator) -> Calibration:
    return Calibration(calibrator.temperature, OF_VAL, calibrator=calibrator)


def answers(num: int = 400, classes: int = 3, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 6, (num, classes))
    powers = np.exp(logits)
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def tilted(images: int, tilt: float, seed: int = 0) -> Predictions:
    """So many images of each of three classes; the network favours the first."""
    target = np.repeat(np.arange(3), images)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(target), 3)) + 2.0 * np.eye(3)[target]
    powers = np.exp(2.0 * logits + tilt * np.array([1.0, 0.0, -1.0]))
    probabilities = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    table = pd.DataFrame({"image": np.arange(len(target)).astype(str)})
    return Predictions(table, probabilities, probabilities[:, None], target)


@pytest.mark.parametrize("calibrator", [BIASES, VECTOR], ids=["bias_corrected", "vector"])
def test_biases_are_kept_and_read(calibrator: Calibrator, tmp_path: Path) -> None:
    path, found = tmp_path / "decisions.json", of(calibrator)
    save_calibration(found, path)
    kept = read_json(path)
    assert kept["schema"] == 3  # versions before refuse it, and would calibrate by a temperature
    assert kept["calibration"]["method"] == calibrator.method
    read = load_calibration(path, ANSWERS, 3)
    assert read is not None
    assert (read.to_dict(), read.balanced) == (found.to_dict(), True)
    np.testing.assert_array_equal(read.apply(answers()), found.apply(answers()))
    save_calibration(Calibration(2.0, OF_VAL), path)  # fitted anew, to a temperature
    assert read_json(path)["schema"] == 1
    assert "bias" not in read_json(path)["calibration"]


def test_a_policy_beside_it_is_kept_with_the_schema_that_both_need(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    write_json(path, {"schema": 2, "policy": {}, "calibration": {}})
    save_calibration(of(BIASES), path)
    assert read_json(path)["schema"] == 3
    save_calibration(Calibration(2.0, OF_VAL), path)
    assert (read_json(path)["schema"], read_json(path)["policy"]) == (2, {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bias": [0.0, 1.0]}, "scales and .* biases"),
        ({"bias": [0.0, 1.0, float("nan")]}, "must be numbers"),
        ({"scale": [0.5, 0.5, 0.0]}, "scales above 0"),
        ({"scale": [0.5, 0.5]}, "scales and .* biases"),
        ({"scale": [0.5, 0.5], "bias": [0.0, 0.0]}, "2 class biases and scales .* of 3"),
        ({"method": "isotonic"}, "isotonic"),
        ({"temperature": 1.0}, "does not agree with that of the scales"),
    ],
)
def test_damaged_biases_are_refused(change: dict, told: str, tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    values = {"schema": 3, "calibration": {**of(BIASES).to_dict(), **change}}
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"decisions.json.*{told}.*Remove it"):
        load_calibration(path, ANSWERS, 3)
    left = {name: value for name, value in of(BIASES).to_dict().items() if name not in change}
    write_json(path, {"schema": 3, "calibration": left})
    with pytest.raises(CheckpointError, match=r"decisions\.json"):
        load_calibration(path, ANSWERS, 3)


@pytest.mark.parametrize("calibrator", [BIASES, VECTOR], ids=["bias_corrected", "vector"])
def test_the_best_score_is_that_of_the_class_that_is_called(calibrator: Calibrator) -> None:
    found, before = of(calibrator), answers()
    after = found.apply(before)
    assert after.dtype == np.float32
    assert after.sum(1) == pytest.approx(1, abs=1e-6)
    assert (after.argmax(1) != before.argmax(1)).mean() > 0.05  # biases call some otherwise
    scores = logits_of(after, found.temperature)
    np.testing.assert_array_equal(scores.argmax(1), after.argmax(1))
    np.testing.assert_array_equal(class_log_odds(scores).argmax(1), after.argmax(1))
    expected = calibrator.apply(np.log(before.astype(np.float64)))
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_the_mean_scale_is_what_scores_undo() -> None:
    """Of the same scale for all classes the scores are the logits with their biases at it."""
    logits = np.log(answers().astype(np.float64))
    scores = logits_of(of(BIASES).apply(answers()), of(BIASES).temperature)
    apart = scores - (logits + BIASES.bias * 2)
    assert np.abs(apart - apart.mean(1, keepdims=True)).max() < 1e-4
    assert VECTOR.temperature == pytest.approx((0.4 * 1.0 * 2.5) ** (-1 / 3))


def test_an_answer_that_says_nothing_stays_one() -> None:
    rows = np.array([[1 / 3] * 3, [np.nan, 0.5, 0.5], [0.2, 0.3, 0.5]], np.float32)
    found = of(VECTOR).apply(rows)
    assert found[0].tolist() == rows[0].tolist()
    assert np.isnan(found[1]).all()
    assert found[2].argmax() == 2
    assert of(VECTOR).apply(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_biases_are_taken_where_images_ask_for_them() -> None:
    asks, silent = tilted(150, tilt=2.5), tilted(150, tilt=0.0, seed=1)
    found = fit_calibration(asks, ANSWERS)
    assert found.calibrator is not None
    assert found.calibrator.method == "bias_corrected"
    assert found.fitted_on == {"split": "val", "images": 450, **ANSWERS}
    words = found.sentence()
    assert words.startswith(f"Temperature {found.temperature:.3f} and a bias for each class, from")
    assert words.endswith("450 images of val: probabilities are those of equally frequent classes.")
    assert of(VECTOR).sentence().startswith("A scale and a bias for each class, from 480 images")
    # What asks for a temperature gets the one that it has always got.
    plain = fit_calibration(silent, ANSWERS)
    logits = np.log(silent.probabilities.astype(np.float64))
    assert (plain.calibrator, plain.note) == (None, "")
    assert plain.temperature == round(fit_temperature(logits, silent.target), 6)


def test_copies_of_one_wafer_ask_for_nothing() -> None:
    few = tilted(3, tilt=0.0, seed=4)
    rows = np.arange(9).repeat(20)
    table = pd.DataFrame({"image": np.arange(180).astype(str)})
    probabilities = few.probabilities[rows]
    copied = Predictions(table, probabilities, probabilities[:, None], few.target[rows])
    assert fit_calibration(copied, ANSWERS).balanced
    groups = [("wafer", int(row)) for row in rows]
    assert not fit_calibration(copied, ANSWERS, groups=groups).balanced


def test_images_that_may_have_to_promise_are_asked_for_a_temperature_alone() -> None:
    assert why_plain(None, set_aside=False) == why_plain("ok", set_aside=True) == ""
    asks, reason = tilted(150, tilt=2.5), why_plain("ok", set_aside=False)
    found = fit_calibration(asks, ANSWERS, plain=reason)
    assert (found.calibrator, found.note, found.balanced) == (None, reason, False)
    assert found.sentence().endswith(
        "450 images of val (only a temperature, since these images may have to promise limits; "
        "data.calibrate sets other images aside for that)."
    )
    assert found.to_dict().keys() == {"temperature", "fitted_on", "note"}


def test_decisions_hold_for_their_biases() -> None:
    assert decided_by(ANSWERS, None) == ANSWERS
    assert decided_by(ANSWERS, Calibration(2.0, OF_VAL)) == ANSWERS  # as of the versions before
    one, other = (decided_by(ANSWERS, of(each)) for each in (BIASES, VECTOR))
    assert one.keys() == other.keys() == {*ANSWERS, "calibration"}
    assert one["calibration"] != other["calibration"]
