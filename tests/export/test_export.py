from __future__ import annotations

import errno
import importlib.util
import io
import json
import secrets
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console

import recame
from recame.decisions.temperature import calibrated
from recame.errors import ConfigError, DataError, ExportError, MissingDependencyError
from recame.export import export as export_module
from recame.export.export import export
from recame.inference.graph import DeploymentGraph
from recame.inference.parity import MAX_DIFFERENCE, check_parity
from recame.models import load_checkpoint
from recame.models.frozen_forward import export_onnx
from recame.runs.folder import RunFolder
from recame.runtime.bundle import Bundle, is_bundle, open_bundle
from recame.runtime.sessions import open_session

TRACE = export_module._trace
pytestmark = pytest.mark.usefixtures("trace_once")
ALL = ("attribution", "features", "expert_probabilities")


@pytest.fixture(scope="module")
def written(
    trace_once: None, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, str]:
    """A bundle with every output, and what was said while it was made."""
    console = Console(record=True, width=200, file=io.StringIO())
    out = tmp_path_factory.mktemp("export") / "bundle"
    bundle = export(finished, out, outputs=ALL, views=2, normal="ok", console=console)
    return bundle, console.export_text()


def test_bundle_answers_as_torch(written: tuple[Bundle, str], finished: Path) -> None:
    bundle, text = written
    assert open_bundle(bundle.path) == bundle
    names = ("probabilities", "expert_probabilities", "features", "attribution")
    assert bundle.outputs == names
    assert (bundle.views, bundle.label_space.normal) == (2, "ok")
    loaded = load_checkpoint(finished)
    session = open_session(bundle, device="cpu", threads=1, calls=1)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1)).astype(np.uint8)
    found = session.run(images)
    graph = DeploymentGraph(loaded.model, views=2, outputs=names[1:]).eval()
    expected = [each.detach().numpy() for each in graph(torch.from_numpy(images))]
    assert bundle.document["graph"]["temperature"] == 1.0
    assert bundle.temperature != 1.0
    expected[0] = calibrated(expected[0], bundle.temperature)
    for name, reference in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], reference, rtol=1e-3, atol=1e-4)
    assert list(found["attribution"].shape[1:]) == bundle.document["graph"]["attribution_grid"]
    parity = bundle.document["parity"]
    assert parity["max_difference"] <= MAX_DIFFERENCE["fp32"]
    assert (parity["agreement"], parity["source"]) == (1.0, "val")
    assert "same class 100.00%" in text
    assert f"Temperature {bundle.temperature:.3f}" in text
    assert (bundle.thresholds, bundle.release_above, bundle.escape_at_most) == ({}, None, None)
    assert bundle.document["run"]["backbone"] == "test_resnet"


@pytest.mark.parametrize("format_", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8(format_: str, finished: Path, defects: Path, tmp_path: Path) -> None:
    for name in ("openvino", "nncf") if format_ == "openvino" else ():
        pytest.importorskip(name)
    bundle = export(
        finished, tmp_path / "b", format=format_, precision="int8", verify=defects, views=1
    )
    parity = bundle.document["parity"]
    assert parity["images"] == 102
    assert parity["differing"] <= 1
    assert parity["tail_classes"] == ["hole"]
    assert parity["tail_images"] == 6
    assert parity["max_difference"] > 1e-5  # it is quantised


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_fp16(format_: str, finished: Path, written: tuple[Bundle, str], tmp_path: Path) -> None:
    if format_ == "openvino":
        pytest.importorskip("openvino")
    bundle = export(finished, tmp_path / "b", format=format_, precision="fp16", views=1)
    assert bundle.document["parity"]["max_difference"] <= MAX_DIFFERENCE["fp16"]
    weights = sum(facts["bytes"] for facts in bundle.document["files"].values())
    full = sum(facts["bytes"] for facts in written[0].document["files"].values())
    assert weights < 0.8 * full


@pytest.mark.parametrize("form", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_what_is_no_number_stays_none_through_the_graph(
    form: str, finished: Path, tmp_path: Path
) -> None:
    """Of several views: whoever calibrates what the graph says leaves it none."""
    loaded = load_checkpoint(finished)
    with torch.no_grad():
        for parameter in loaded.model.head.parameters():
            parameter.fill_(torch.nan)
    graph = DeploymentGraph(loaded.model, views=2).eval()
    example = torch.zeros((2, 32, 32, 1), dtype=torch.uint8)
    export_onnx(graph, example, tmp_path / "nan.onnx", output_names=["probabilities"])
    images = np.zeros((3, 32, 32, 1), np.uint8)
    if form == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "nan.onnx")
        (found,) = session.run(None, {session.get_inputs()[0].name: images})
    else:
        openvino = pytest.importorskip("openvino")
        found = openvino.Core().compile_model(tmp_path / "nan.onnx", "CPU")(images)[0]
    assert np.isnan(found).all()
    assert np.isnan(calibrated(found, 1.5)).all()


def test_failing_check_writes_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_module._forward
    monkeypatch.setattr(
        export_module, "_forward", lambda bundle: lambda images: real(bundle)(255 - images)
    )
    with pytest.raises(ExportError, match=r"real images a probability is .*No bundle was written"):
        export(finished, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


class TestFullDisk:
    """The bundle that lies there stays, nothing half written does, and the way out is said."""

    @pytest.fixture
    def there(self, written: tuple[Bundle, str], tmp_path: Path) -> Path:
        return Path(shutil.copytree(written[0].path, tmp_path / "b"))

    def refused(self, run: Path, there: Path, told: str) -> None:
        before = open_bundle(there)
        with pytest.raises(ExportError, match=told):
            export(run, there, replace_bundle=True, views=2, normal="ok", outputs=ALL)
        assert open_bundle(there) == before
        assert [path.name for path in there.parent.iterdir()] == ["b"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
    @pytest.mark.parametrize("name", ["model.onnx", ".bundle.json.new.part"])
    def test_where_the_bundle_goes(
        self, name: str, finished: Path, there: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = export_module._convert

        def convert(fp32: Path, out: Path, *words: object) -> None:
            (out.parent / name).symlink_to("/dev/full")
            real(fp32, out, *words)  # type: ignore[arg-type]

        monkeypatch.setattr(export_module, "_convert", convert)
        monkeypatch.setattr(secrets, "token_hex", lambda _: "new")
        self.refused(finished, there, r"cannot be written \(No space left on device\)")

    def test_where_the_graph_passes_through(
        self, finished: Path, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(export_module, "export_onnx", full)
        monkeypatch.setattr(export_module, "_trace", TRACE)
        self.refused(finished, there, "The temporary folder .* set TMPDIR")


def test_wrong_words(finished: Path, tmp_path: Path) -> None:
    for words, reason in (
        ({"format": "tflite"}, "--format 'tflite'"),
        ({"precision": "int4"}, "choose fp32, fp16, int8"),
        ({"outputs": ("gates",)}, "--outputs 'gates'"),
        ({"views": 9}, "1 to 8 views"),
        ({"normal": "fine"}, "normal class 'fine' is not among"),
    ):
        with pytest.raises(ConfigError, match=reason):
            export(finished, tmp_path / "b", **words)
    assert not is_bundle(tmp_path / "b")


def test_missing_package(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "nncf" else find(name, *a)
    )
    with pytest.raises(MissingDependencyError, match=r"'nncf'.*pip install 'recame\[export\]'"):
        export(finished, tmp_path / "b", format="openvino", precision="int8")


def test_calibrated() -> None:
    probabilities = np.array([[0.8, 0.2, 0.0], [0.5, 0.25, 0.25]])
    np.testing.assert_allclose(calibrated(probabilities, 1.0), probabilities, atol=1e-12)
    np.testing.assert_allclose(calibrated(probabilities, 0.5)[1], [2 / 3, 1 / 6, 1 / 6])


def compare(found: np.ndarray, expected: np.ndarray, precision: str):
    """Parity of made-up answers to images that are their own number."""
    from recame.contracts import PreprocessSpec

    spec = PreprocessSpec(1, 1, 1, 16, 65535.0, (0.5,), (0.5,))
    images = np.arange(len(found), dtype=np.uint16).reshape(-1, 1, 1, 1)
    flat = np.full(found.shape[1], 1 / found.shape[1])

    def answers(table: np.ndarray):
        def forward(batch: np.ndarray) -> np.ndarray:
            number = batch.reshape(-1).astype(int)
            inside = number < len(table)
            rows = table[np.where(inside, number, 0)]
            return np.where(inside[:, None], rows, flat)

        return forward

    return check_parity(
        answers(found),
        answers(expected),
        images,
        np.arange(len(found)),
        np.zeros(len(found), np.int64),
        precision=precision,
        tail=(("rare", 0),),
        spec=spec,
        source="made up",
        seed=0,
    )


def test_parity_forgives_ties_alone() -> None:
    expected = np.tile([0.6, 0.4], (50, 1))
    expected[0] = [0.50002, 0.49998]
    found = expected.copy()
    found[0] = [0.49999, 0.50001]
    parity = compare(found, expected, "fp32")
    assert (parity.differing, parity.ties, parity.failures) == (1, 1, ())
    found[1] = [0.4, 0.6]
    parity = compare(found, expected, "fp32")
    assert len(parity.failures) == 2
    assert "1 of 50 images get another class" in parity.failures[1]
    assert parity.tail_agreement == pytest.approx(0.96)


def test_int8_may_lose_one_image_or_one_in_a_hundred() -> None:
    expected = np.tile([0.9, 0.1], (300, 1))
    for wrong, number, allowed in ((1, 30, True), (2, 30, False), (3, 300, True), (4, 300, False)):
        found = expected[:number].copy()
        found[:wrong] = [0.1, 0.9]
        assert (compare(found, expected[:number], "int8").failures == ()) == allowed


def test_nan_fails() -> None:
    expected = np.tile([0.9, 0.1], (30, 1))
    found = expected.copy()
    found[3] = np.nan
    assert "not finite" in compare(found, expected, "fp32").failures[0]


class TestTemperature:
    """Run and bundle answer alike, by a temperature that is fitted once."""

    @pytest.fixture
    def hot(self, finished: Path, tmp_path: Path) -> RunFolder:
        """The run with a temperature far from 1."""
        folder = RunFolder(Path(shutil.copytree(finished, tmp_path / "hot")))
        kept = json.loads(folder.decisions_path.read_text())
        kept["calibration"]["temperature"] = 3.0
        folder.decisions_path.write_text(json.dumps(kept))
        return folder

    def test_run_and_bundle_answer_alike(
        self, hot: RunFolder, finished: Path, defects: Path, tmp_path: Path
    ) -> None:
        bundle = export(hot.path, tmp_path / "b")
        assert bundle.temperature == 3.0
        images = sorted(defects.rglob("*.png"))
        of_run, of_bundle, before = (
            recame.load(path).predict(images) for path in (hot.path, bundle.path, finished)
        )
        changes = []
        for ours, theirs, other in zip(of_run, of_bundle, before, strict=True):
            assert ours.label == theirs.label == other.label
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)
            changes.append(np.abs(ours.probabilities - other.probabilities).max())
        assert max(changes) > 0.1
        fingerprints = {recame.load(path).fingerprint for path in (hot.path, finished)}
        assert len(fingerprints) == 2

    @pytest.mark.slow
    def test_other_views_are_fitted_for_the_bundle_alone(
        self, hot: RunFolder, tmp_path: Path
    ) -> None:
        kept = hot.decisions_path.read_text()
        assert export(hot.path, tmp_path / "b", views=2).temperature != 3.0
        assert hot.decisions_path.read_text() == kept

    @pytest.mark.slow
    def test_changed_settings_are_fitted_anew(
        self, hot: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        hot.save_config(hot.load_config().updated({"evaluation.views": 2}))
        recame.load(hot.path)
        assert "views 1 then, 2 now" in caplog.text
        bundle = export(hot.path, tmp_path / "b")
        assert bundle.temperature != 3.0
        kept = json.loads(hot.decisions_path.read_text())["calibration"]
        assert (kept["temperature"], kept["fitted_on"]["views"]) == (bundle.temperature, 2)

    def test_a_run_that_cannot_be_written_to(
        self, hot: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise DataError("The disk is full.")

        trained = json.loads((hot.path / "decisions.json").read_text())["calibration"]
        hot.decisions_path.unlink()
        monkeypatch.setattr(export_module, "save_calibration", full)
        heard = io.StringIO()
        bundle = export(hot.path, tmp_path / "b", console=Console(file=heard, width=300))
        assert "the run could not keep it: The disk is full." in heard.getvalue()
        assert bundle.temperature != trained["temperature"]
