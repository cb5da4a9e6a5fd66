"""The runtimes behind one call: same figures, and refusals that say which package is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recame.contracts import PreprocessSpec
from recame.decisions.calibration import Calibration
from recame.decisions.calibrators import Calibrator
from recame.errors import CheckpointError, ConfigError, MissingDependencyError
from recame.export.export import export
from recame.inference.torch_session import TorchSession
from recame.runtime import sessions
from recame.runtime.bundle import open_bundle
from recame.runtime.opening import load
from recame.runtime.sessions import open_session

VECTOR = Calibrator("vector", np.array([0.5, 1.0, 2.0]), np.array([-2.0, 0.5, 1.0]))


@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize(("threads", "calls"), [(1, 1), (2, 2)])
def test_both_runtimes_say_the_same(
    form: str,
    threads: int,
    calls: int,
    write_bundle: Callable[..., Path],
    expected: Callable[..., np.ndarray],
    grey: PreprocessSpec,
    tmp_path: Path,
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    bundle = open_bundle(write_bundle(tmp_path / "b", grey, form=form))
    session = open_session(bundle, device="cpu", threads=threads, calls=calls)
    assert (session.backend, session.device) == (
        {"onnx": "onnxruntime", "openvino": "openvino"}[form],
        "cpu",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 1), dtype=np.uint8)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(session.run, [pixels[:4], pixels[4:], pixels]))
    got = np.concatenate([answers[0]["probabilities"], answers[1]["probabilities"]])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected(pixels, grey), atol=1e-5)
    np.testing.assert_allclose(answers[2]["probabilities"], got, atol=1e-6)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("calibrator", [None, VECTOR], ids=["temperature", "vector"])
def test_what_stands_beside_the_graph_calibrates(
    form: str,
    calibrator: Calibrator | None,
    write_bundle: Callable[..., Path],
    expected: Callable[..., np.ndarray],
    grey: PreprocessSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    temperature = 2.0 if calibrator is None else calibrator.temperature
    calibration = Calibration(temperature, {"split": "val"}, calibrator=calibrator)
    monkeypatch.setitem(sessions._PIXELS_AT_ONCE, "fp32", 3 * 6 * 5)
    folder = write_bundle(tmp_path / "b", grey, form=form, calibration=calibration)
    model = load(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 1), dtype=np.uint8)
    wanted = calibration.apply(expected(pixels, grey))
    assert np.abs(wanted - expected(pixels, grey)).max() > 0.1
    for found in (  # OpenVINO runs nine in parts, and two as they are
        open_session(open_bundle(folder), device="cpu", threads=2, calls=1).run(pixels)[
            "probabilities"
        ],
        model.run(pixels)["probabilities"],
        np.concatenate([model.probabilities(pixels[:2]), model.probabilities(pixels[2:])]),
        np.stack([each.probabilities for each in model.predict([p[..., 0] for p in pixels])]),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (model.calibration, model.temperature) != (None, 1.0)


@pytest.mark.parametrize("form", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_an_image_has_one_answer_in_any_batch(
    form: str, finished: Path, exported_run: Path, tmp_path: Path
) -> None:
    path = exported_run
    if form == "openvino":
        pytest.importorskip("openvino")
        path = export(finished, tmp_path / "bundle", format=form, normal="ok").path
    bundle = open_bundle(path)
    shape = (34, bundle.spec.height, bundle.spec.width, bundle.spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    answers = set()
    for threads in (1, 2, 4):
        session = open_session(bundle, device="cpu", threads=threads, calls=1)
        assert session.steady
        for size in (1, 2, 3, 7, 8, 16, 32, 33):
            found = [
                session.run(images[at : at + size])["probabilities"]
                for at in range(0, len(images), size)
            ]
            answers.add(np.concatenate(found).tobytes())
    assert len(answers) == 1


@pytest.mark.parametrize(("threads", "calls"), [(1, 1), (2, 1), (2, 2), (8, 1)])
def test_large_batches_run_in_parts_that_stay_in_order(
    threads: int,
    calls: int,
    write_bundle: Callable[..., Path],
    expected: Callable[..., np.ndarray],
    grey: PreprocessSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setitem(sessions._PIXELS_AT_ONCE, "fp32", 3 * 6 * 5)
    bundle = open_bundle(write_bundle(tmp_path / "b", grey, form="openvino"))
    session = open_session(bundle, device="cpu", threads=threads, calls=calls)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 1), dtype=np.uint8)
    lengths = [40, 3, 4, 7, 1, 0, 39]  # 3 images are a part
    outputs, sizes = session._outputs, []

    def noted(results: object) -> dict[str, np.ndarray]:
        found = outputs(results)
        sizes.append(len(found["probabilities"]))
        return found

    monkeypatch.setattr(session, "_outputs", noted)
    with ThreadPoolExecutor(calls) as pool:
        answers = list(pool.map(session.run, [pixels[:length] for length in lengths]))
    whole = expected(pixels, grey)
    for length, answer in zip(lengths, answers, strict=True):
        np.testing.assert_allclose(answer["probabilities"], whole[:length], atol=1e-5)
    assert max(sizes) == 3
    assert sizes.count(0) == lengths.count(0)  # no core is given an empty part


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("tensorrt", "needs ONNX Runtime's TensorrtExecutionProvider.*onnxruntime-gpu tensorrt"),
        ("cuda", "needs ONNX Runtime's CUDAExecutionProvider.*pip install onnxruntime-gpu"),
        ("tpu", "device='tpu' is unknown to an ONNX bundle: choose auto, cpu, cuda, tensorrt"),
    ],
)
def test_onnx_devices_that_are_not_there(
    device: str, told: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=told):
        open_session(open_bundle(bundle), device=device, threads=1, calls=1)
    assert open_session(open_bundle(bundle), device="auto", threads=1, calls=1).device == "cpu"


def test_a_provider_that_gives_way_is_an_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
    import onnxruntime as ort

    plain = ort.InferenceSession
    cpu_only = {"providers": names[1:]}
    monkeypatch.setattr(ort, "InferenceSession", lambda path, **k: plain(path, **{**k, **cpu_only}))
    with pytest.raises(ConfigError, match=r"fell back to CPUExecutionProvider.*onnxruntime-gpu"):
        open_session(open_bundle(bundle), device="cuda", threads=1, calls=1)
    assert open_session(open_bundle(bundle), device="auto", threads=1, calls=1).device == "cpu"


def test_openvino_has_no_cuda(
    write_bundle: Callable[..., Path], grey: PreprocessSpec, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    bundle = open_bundle(write_bundle(tmp_path / "b", grey, form="openvino"))
    with pytest.raises(ConfigError, match=r"unknown to OpenVINO.*CUDA and TensorRT need an ONNX"):
        open_session(bundle, device="cuda", threads=1, calls=1)


@pytest.mark.parametrize(
    ("form", "package", "extra"),
    [("onnx", "onnxruntime", "runtime"), ("openvino", "openvino", "runtime-openvino")],
)
def test_missing_runtime_names_its_extra(
    form: str,
    package: str,
    extra: str,
    write_bundle: Callable[..., Path],
    grey: PreprocessSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    bundle = open_bundle(write_bundle(tmp_path / "b", grey, form=form))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'recame\[{extra}\]'"):
        open_session(bundle, device="cpu", threads=1, calls=1)


def test_a_graph_that_cannot_be_read(bundle: Path) -> None:
    opened = replace(open_bundle(bundle), files={"model.onnx": b"no graph"})
    with pytest.raises(CheckpointError, match=r"ONNX Runtime .* cannot open"):
        open_session(opened, device="cpu", threads=1, calls=1)


class TestRunFolder:
    def test_experts_and_ensemble(self, finished: Path) -> None:
        from recame.inference.predict import predict_cached
        from recame.models import load_checkpoint

        session = TorchSession(finished, device="cpu", threads=1)
        pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
        got = session.run(pixels)
        loaded = load_checkpoint(finished)
        experts, ensemble, _ = predict_cached(
            loaded.model,
            pixels,
            np.arange(5),
            spec=loaded.spec,
            num_views=1,
            batch_size=5,
            device="cpu",
        )
        np.testing.assert_allclose(got["probabilities"], ensemble, atol=1e-6)
        np.testing.assert_allclose(got["expert_probabilities"], experts, atol=1e-6)

    def test_many_images_ahead_make_a_graph_that_says_the_same(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("recame.models.frozen_forward.GRAPH_PIXELS", 100 * 32 * 32)
        pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
        session = TorchSession(finished, device="cpu", threads=1)
        before = session.run(pixels)["probabilities"]
        session.expect(100)
        after = session.run(pixels)["probabilities"]
        assert session._forward._forward.uses_graph
        np.testing.assert_allclose(after, before, atol=1e-5)

    @pytest.mark.parametrize(
        ("device", "told"),
        [("tensorrt", "TensorRT needs an ONNX bundle"), ("npu", "choose auto, cpu, cuda")],
    )
    def test_unknown_devices(self, device: str, told: str, finished: Path) -> None:
        with pytest.raises(ConfigError, match=told):
            TorchSession(finished, device=device, threads=1)

    @pytest.mark.parametrize(
        ("facts", "told"),
        [
            (None, "holds no run and no bundle"),
            ({"schema": 99, "state": "finished"}, "schema 99"),
            ({"schema": 1, "state": "fine-tuning"}, "is not finished.*--resume"),
            ([], "is damaged"),
        ],
    )
    def test_no_finished_run(self, facts: object, told: str, tmp_path: Path) -> None:
        if facts is not None:
            (tmp_path / "run.json").write_text(json.dumps(facts), encoding="utf-8")
        with pytest.raises(CheckpointError, match=told):
            TorchSession(tmp_path, device="cpu", threads=1)


FIRST_CALLS = """
import builtins, sys, threading, time
import numpy as np
from pathlib import Path
from recame.runtime import open_bundle
from recame.runtime.sessions import open_session

bundle = open_bundle(Path(sys.argv[1]))
session = open_session(bundle, device="cpu", threads=2, calls=2)
whole = builtins.__import__

def slow(name, *rest, **more):
    if name.startswith("numpy"):
        time.sleep(0.3)  # as long as it takes the second thread to arrive
    return whole(name, *rest, **more)

builtins.__import__ = slow
images = np.zeros((1, 6, 5, 1), np.uint8)
threads = [threading.Thread(target=session.run, args=(images,), daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
print([thread.is_alive() for thread in threads])
"""


def test_the_first_two_calls_do_not_wait_for_each_other(
    write_bundle: Callable[..., Path], grey: PreprocessSpec, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    bundle = write_bundle(tmp_path / "b", grey, form="openvino")
    command = [sys.executable, "-c", FIRST_CALLS, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[False, False]"
