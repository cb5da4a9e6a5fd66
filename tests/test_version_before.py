"""What the version before the rooms left is still read, continued, and answers alike.

`fixtures/before` holds a finished run of 48 images and two epochs, its bundle, the same run killed
in its second epoch, the images, and what that version said of five of them (`expected.json`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import recame
from recame.runs.folder import RunFolder

BEFORE = Path(__file__).parent / "fixtures" / "before"


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A copy of all that was left, whose files say where its images lie now."""
    folder = tmp_path / "before"
    shutil.copytree(BEFORE, folder)
    for name in ("run", "interrupted"):
        for path in (folder / name / "run.json", folder / name / "manifest.csv"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("IMAGES", str(folder / "images")), encoding="utf-8")
    return folder


def test_its_settings_are_read(left: Path) -> None:
    config = recame.load_config(left / "run" / "config.yaml")
    assert config.objective.tau == (1.0, 2.0)
    folder = RunFolder.open(left / "run")
    # Every stage learnt, no view was asked what it is worth, no image was set aside, and the norms
    # kept ImageNet's statistics.
    as_then = {
        "finetune.frozen_stages": 0,
        "evaluation.least_images_per_s": None,
        "data.calibrate": 0.0,
        "probe.adapt_batch_norm": 0.0,
    }
    assert folder.load_config() == config.updated(as_then)
    assert folder.asked().objective.tau == "auto"


@pytest.mark.parametrize("name", ["run", "bundle"])
def test_it_answers_as_then(name: str, left: Path) -> None:
    expected = json.loads((left / "expected.json").read_text(encoding="utf-8"))
    images = [left / "images" / image for image in expected["images"]]
    answers = recame.load(left / name).predict(images)
    assert [answer.label for answer in answers] == [label for label, _ in expected[name]]
    got = np.stack([answer.probabilities for answer in answers])
    np.testing.assert_allclose(got, [p for _, p in expected[name]], atol=1e-5)


def test_its_run_is_judged_and_reported(left: Path) -> None:
    then = json.loads((left / "run" / "metrics.json").read_text(encoding="utf-8"))["test"]
    files = recame.report(left / "run")  # from the predictions that were left
    said = json.loads(files.json.read_text(encoding="utf-8"))
    assert said["evaluation"]["balanced_accuracy"] == then["balanced_accuracy"]
    evaluated = recame.evaluate(left / "run").evaluation
    assert evaluated.headline["balanced_accuracy"].value == pytest.approx(
        then["balanced_accuracy"]["value"]
    )
    assert evaluated.confusion.tolist() == then["confusion"]["counts"]


def test_its_interrupted_run_goes_on_to_the_same_end(left: Path) -> None:
    run = recame.train(left / "images", out=left / "interrupted", resume=True)
    assert run.finished
    ended, whole = (load_file(left / n / "model.safetensors") for n in ("interrupted", "run"))
    assert ended.keys() == whole.keys()
    for name, weights in whole.items():
        np.testing.assert_allclose(ended[name], weights, rtol=1e-3, atol=1e-4, err_msg=name)


def test_its_run_is_exported(left: Path) -> None:
    from recame.export.export import export

    export(left / "run", out=left / "again")
    then, now, run = (recame.load(left / name) for name in ("bundle", "again", "run"))
    images = sorted((left / "images").rglob("*.png"))
    for a, b in zip(then.predict(images), now.predict(images), strict=True):
        assert a.label == b.label
        # That bundle holds a threshold; the run was never tuned.
        assert (a.action == "automatic") <= (a.label != "ok")
        assert b.action == "automatic"
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-4)
    # The temperature that export fits is the run's from then on.
    for a, b in zip(run.predict(images), now.predict(images), strict=True):
        assert a.label == b.label
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-4)
