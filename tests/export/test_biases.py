"""A run that has biases of classes, and its bundles, answer and decide alike."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from rich.console import Console

import recame
from recame.config import Config
from recame.contracts import Predictions
from recame.decisions import calibration
from recame.decisions.calibration import Calibration, load_calibration, save_calibration
from recame.decisions.calibrators import Calibrator, fit_method
from recame.decisions.limits import Limits
from recame.decisions.scored import class_log_odds, logits_of
from recame.errors import CheckpointError
from recame.export.export import export
from recame.files import read_json, write_json
from recame.inference.parity import MAX_DIFFERENCE
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions
from recame.training.phases import choice

KNOWN = Limits.from_dict({"unknown_false_alarm": False})
VECTOR = Calibrator("vector", np.array([0.7, 1.0, 1.2, 0.9]), np.array([-1.5, 0.0, 1.0, 1.5]))
EXPORT = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def biased(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with biases and scales of classes; read only."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("biased") / "run"))
    path = run / "decisions.json"
    fitted_on = read_json(path)["calibration"]["fitted_on"]
    save_calibration(Calibration(VECTOR.temperature, fitted_on, calibrator=VECTOR), path)
    return run


@pytest.fixture
def run(biased: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(biased, tmp_path / "run"))


@pytest.fixture(scope="module")
def fresh(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that the run has not seen."""
    counts = {"ok": 90, "scratch": 60, "dent": 60, "hole": 60}
    return write_images(tmp_path_factory.mktemp("biases") / "fresh", counts, seed=7)


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("onnx", "fp32"),
        pytest.param("onnx", "fp16", marks=pytest.mark.slow),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
    ],
)
def test_run_and_bundle_answer_alike(
    form: str, precision: str, biased: Path, finished: Path, fresh: Path, tmp_path: Path
) -> None:
    for name in ("openvino", "nncf") if form == "openvino" else ():
        pytest.importorskip(name)
    bundle = export(biased, tmp_path / "b", format=form, precision=precision)
    assert bundle.document["graph"]["temperature"] == 1.0
    assert bundle.document["calibration"] == read_json(biased / "decisions.json")["calibration"]
    models = [recame.load(path) for path in (biased, bundle.path, finished)]
    ours, theirs, before = (model.predict(fresh) for model in models)
    # By the biases another class is called for some, and the same by both.
    assert sum(a.label != b.label for a, b in zip(ours, before, strict=True)) > 5
    alike = [a.label == b.label for a, b in zip(ours, theirs, strict=True)]
    assert np.mean(alike) >= (1.0 if precision == "fp32" else 0.97)
    if precision == "int8":
        assert bundle.document["parity"]["differing"] <= 1
        return
    limit = MAX_DIFFERENCE[precision]
    found = [np.stack([each.probabilities for each in answers]) for answers in (ours, theirs)]
    np.testing.assert_allclose(found[0], found[1], atol=limit)
    if precision == "fp32":
        odds = [
            class_log_odds(logits_of(each, model.temperature))
            for each, model in zip(found, models, strict=False)
        ]
        np.testing.assert_allclose(odds[0], odds[1], atol=1e-2)
        called = [
            model.label_space.index(str(each.label))
            for model, each in zip(models[:1] * len(ours), ours, strict=True)
        ]
        np.testing.assert_array_equal(odds[0].argmax(1), called)


@pytest.mark.slow
def test_users_of_the_graph_calibrate_as_the_page_says(
    biased: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export(biased, tmp_path / "bundle")
    model = recame.load(bundle.path)
    spec = model.spec
    shape = (20, spec.height, spec.width, spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    session = onnxruntime.InferenceSession(bundle.model_path)
    raw = session.run(["probabilities"], {"images": pixels})[0]
    assert np.abs(raw - model.probabilities(pixels)).max() > 0.05  # the graph alone is not
    (block,) = re.findall(r"```python\n(.*?)```", EXPORT.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(block, scope)
    np.testing.assert_allclose(scope["calibrated"](raw), model.probabilities(pixels), atol=1e-6)
    # Of a temperature too.
    document = read_json(bundle.path / "bundle.json")
    document["calibration"] = {"temperature": 2.5, "fitted_on": {}, "note": ""}
    write_json(bundle.path / "bundle.json", document)
    wanted = Calibration(2.5, {}).apply(raw)
    np.testing.assert_allclose(scope["calibrated"](raw), wanted, atol=1e-6)


def test_both_verbs_write_one_table(run: Path, fresh: Path, tmp_path: Path) -> None:
    recame.tune(run, fresh, KNOWN, normal="ok")
    found = recame.evaluate(run, report=False)
    one = load_predictions(run / "evaluation" / "test" / "predictions.parquet").predictions
    table = one.table.drop(columns="image").rename(columns={"path": "image"})
    table[["image"]].to_csv(tmp_path / "lot.csv", index=False)
    recame.predict(run, tmp_path / "lot.csv", out=tmp_path / "out.parquet")
    other = load_predictions(tmp_path / "out.parquet").predictions
    assert one.table["action"].tolist() == other.table["action"].tolist()
    assert one.table["reason"].tolist() == other.table["reason"].tolist()
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    names = list(recame.load(run).label_space.names)
    called = one.probabilities.argmax(1)
    released = (one.table["action"] == "release").to_numpy()
    assert set(called[released].tolist()) <= {names.index("ok")}
    assert found.outcome is not None
    assert found.evaluation.confusion.sum(0).tolist() == np.bincount(called, minlength=4).tolist()


def test_the_report_says_of_what_probabilities_speak(run: Path) -> None:
    recame.evaluate(run)
    for name in ("report.html", "report.md"):
        text = (run / "evaluation" / "test" / name).read_text("utf-8")
        assert "A scale and a bias for each class, from " in text
        assert "probabilities are those of equally frequent classes" in text


def all_are(split: str, run: Path) -> None:
    """Let all images that trained or tested a run be of a split, so that there are enough."""
    manifest = pd.read_csv(run / "manifest.csv", dtype={"image": str, "path": str})
    moved = manifest["split"].replace({"train": split, "test": split})
    RunFolder(run).save_manifest(manifest.assign(split=moved))


class TestPromises:
    """Images that fitted biases promise nothing; others do."""

    @pytest.mark.slow
    def test_val_that_fitted_them_gives_an_estimate(
        self, run: Path, finished: Path, tmp_path: Path
    ) -> None:
        all_are("val", run)
        found = recame.tune(run, limits=KNOWN, normal="ok")
        limits = [promise for promise in found.promises if promise.limit is not None]
        assert limits
        assert not any(promise.holds for promise in found.promises)
        assert all("Class biases were fitted" in promise.why for promise in limits)
        words = " ".join(found.sentences())
        assert "Estimated: at most" in words
        assert "promised: Class biases were fitted to these images of val" in words
        assert "hold together" not in words
        # So does the bundle, whose calibration is the run's.
        bundle = export(run, tmp_path / "bundle", normal="ok").path
        assert not any(
            promise.holds for promise in recame.tune(bundle, limits=KNOWN, run=run).promises
        )
        # A temperature alone leaves val its promises.
        plain = Path(shutil.copytree(finished, tmp_path / "plain"))
        all_are("val", plain)
        own = recame.tune(plain, limits=KNOWN, normal="ok").promises
        assert any(promise.holds for promise in own)

    @pytest.mark.slow
    def test_images_that_were_set_aside_promise(self, run: Path, tmp_path: Path) -> None:
        all_are("calibrate", run)
        found = recame.tune(run, limits=KNOWN, normal="ok")
        assert any(promise.holds for promise in found.promises)
        bundle = export(run, tmp_path / "bundle", normal="ok").path
        tuned = recame.tune(bundle, limits=KNOWN, run=run)
        assert any(promise.holds for promise in tuned.promises)

    def test_so_do_others(self, run: Path, fresh: Path) -> None:
        found = recame.tune(run, fresh, KNOWN, normal="ok")
        assert all(promise.holds for promise in found.promises)
        assert read_json(run / "decisions.json")["schema"] == 4
        model = recame.load(run)
        assert model.decisions is not None
        released = [each for each in model.predict(fresh) if each.action == "release"]
        assert released
        assert {each.label for each in released} == {"ok"}
        escapes = sum(Path(each.image).parent.name != "ok" for each in released)
        assert escapes == sum(promise.beyond for promise in found.promises)

    def test_decisions_hold_for_their_biases(
        self, run: Path, fresh: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        recame.tune(run, fresh, KNOWN, normal="ok")
        path = run / "decisions.json"
        fitted_on = read_json(path)["calibration"]["fitted_on"]
        other = Calibrator("vector", VECTOR.scale, VECTOR.bias + np.eye(4)[0])
        save_calibration(Calibration(other.temperature, fitted_on, calibrator=other), path)
        assert recame.load(run).decisions is None
        assert "other weights, views or class biases" in caplog.text
        save_calibration(Calibration(VECTOR.temperature, fitted_on, calibrator=VECTOR), path)
        assert recame.load(run).decisions is not None
        assert recame.evaluate(run, report=False).outcome is not None


def test_damaged_biases_are_refused(run: Path) -> None:
    path = run / "decisions.json"
    values = read_json(path)
    values["calibration"]["bias"] = values["calibration"]["bias"][:3]
    values["calibration"]["scale"] = values["calibration"]["scale"][:3]
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"decisions\.json cannot be read"):
        recame.load(run)


class TestFitting:
    """Training and export try biases where val need not promise anything."""

    @pytest.fixture(autouse=True)
    def tried(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The groups of each time that biases are tried, which are taken whatever images say."""
        seen: list[Any] = []

        def richest(scores: np.ndarray, target: np.ndarray, groups: Any) -> Calibrator:
            seen.append(groups)
            return fit_method(scores, target, "vector")

        monkeypatch.setattr(calibration, "fit_calibrator", richest)
        return seen

    @pytest.mark.parametrize(
        ("normal", "splits", "balanced"),
        [
            (None, ("train", "val"), True),
            ("ok", ("train", "val"), False),
            ("ok", ("train", "val", "calibrate"), True),
        ],
    )
    def test_by_training(
        self,
        normal: str | None,
        splits: tuple[str, ...],
        balanced: bool,
        tried: list[Any],
        tmp_path: Path,
    ) -> None:
        target = np.arange(60) % 3
        rng = np.random.default_rng(0)
        powers = np.exp(rng.normal(size=(60, 3)) + 2 * np.eye(3)[target])
        probabilities = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
        table = pd.DataFrame({"image": [f"{n}.png" for n in range(60)], "lot": np.arange(60) // 3})
        val = Predictions(table, probabilities, probabilities[:, None], target)
        answers = {"views": 1, "weighting": "mean", "weights_sha256": "f00d"}
        path = tmp_path / "decisions.json"
        ongoing: Any = SimpleNamespace(
            data=SimpleNamespace(splits=splits, label_space=SimpleNamespace(normal=normal)),
            folder=SimpleNamespace(answers=lambda _: answers, decisions_path=path),
            config=Config().updated({"data.group_by": "lot"}),
            console=Console(quiet=True),
        )
        assert choice._calibrate(ongoing, val).balanced == balanced
        kept = load_calibration(path, answers, 3)
        assert kept is not None
        assert (kept.balanced, bool(kept.note)) == (balanced, not balanced)
        assert read_json(path)["schema"] == (3 if balanced else 1)
        assert tried == ([table["lot"].tolist()] if balanced else [])

    def test_by_a_whole_run(
        self,
        defects: Path,
        tiny_config: Callable[..., Config],
        tmp_path: Path,
    ) -> None:
        config = tiny_config(probe__steps=8, finetune__epochs=1, data__val_fraction=0.3)
        run = recame.train(defects, config, out=tmp_path / "run").path
        kept = read_json(run / "decisions.json")
        assert kept["calibration"]["method"] == "vector"
        assert recame.load(run).calibration is not None
        figures = json.loads((run / "metrics.json").read_text())["val"]
        again = recame.evaluate(run, split="val", report=False).evaluation
        assert again.to_dict()["balanced_accuracy"] == figures["balanced_accuracy"]

    @pytest.mark.slow
    def test_by_export(self, finished: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(finished, tmp_path / "run"))
        (run / "decisions.json").unlink()
        named = export(run, tmp_path / "named", normal="ok", views=2)  # for the bundle alone
        assert named.calibration is not None
        assert not named.calibration.balanced
        assert "only a temperature" in named.calibration.note
        bundle = export(run, tmp_path / "bundle")
        assert bundle.calibration is not None
        assert bundle.calibration.balanced
        kept = recame.load(run).calibration
        assert kept is not None
        assert kept.to_dict() == bundle.calibration.to_dict()
        # Who has named the normal class since may ask val for promises.
        recame.tune(run, limits=KNOWN, normal="ok")
        again = export(run, tmp_path / "again", views=2)
        assert again.calibration is not None
        assert not again.calibration.balanced
