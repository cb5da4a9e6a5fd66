"""`recame latency`: honest statistics, the takt, and what a fresh process needs."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from recame.cli.app import app
from recame.contracts import PreprocessSpec
from recame.data.decode import decode_image
from recame.durations import parse_duration
from recame.errors import CheckpointError, ConfigError, DataError
from recame.label_space import LabelSpace
from recame.machine import describe_machine, peak_memory_mib, usable_cores
from recame.runtime.bundle import assembling, write_document
from recame.runtime.fresh_process import ColdStart, Streaming, time_fresh
from recame.runtime.latency import (
    LatencyReport,
    example_png,
    measure_latency,
    parse_batches,
    save_latency,
)
from recame.runtime.latency_table import print_latency
from recame.runtime.timing import Timing, time_calls

SPEC = PreprocessSpec(24, 32, 1, 8, 255.0, (0.5,), (0.5,))


class FakePredictor:
    """Decides at a fixed speed: `call_ms` a call and `image_ms` an image of it."""

    def __init__(self, call_ms: float, image_ms: float) -> None:
        self.spec = SPEC
        self.call_s, self.image_s = call_ms / 1e3, image_ms / 1e3
        self.seen: list[int] = []
        self.options: dict[str, Any] = {}

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (24, 32, 1)
        self.seen.append(len(images))
        time.sleep(self.call_s + self.image_s * len(images))
        return np.full((len(images), 3), 1 / 3, np.float32)

    def predict(self, images: Sequence[bytes | Path]) -> list[SimpleNamespace]:
        try:
            arrays = [decode_image(image, SPEC, max_pixels=10**6) for image in images]
        except DataError as error:
            return [SimpleNamespace(error=str(error))]
        self.probabilities(np.stack(arrays))
        return [SimpleNamespace(error=None)]

    def describe(self) -> dict[str, Any]:
        return {"backend": "onnxruntime", "threads": 2, "batch_size": 4}


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recame.runtime.timing._WARM_UP_S", 0.001)
    monkeypatch.setattr("recame.runtime.latency._ROUNDS", 2)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakePredictor]:
    """Let every bundle be a predictor of this speed."""

    def make(call_ms: float = 1.0, image_ms: float = 0.5) -> FakePredictor:
        predictor = FakePredictor(call_ms, image_ms)

        def load(path: Path | str, **options: Any) -> FakePredictor:
            predictor.options = {"path": path, **options}
            return predictor

        monkeypatch.setattr("recame.runtime.opening.load", load)
        return predictor

    return make


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that answers by the mean brightness, without any training."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    shape: list[str | int] = ["batch", 24, 32, 1]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.array([1, 2]), "axes"),
            numpy_helper.from_array(np.array([[-0.01, 0.01]], np.float32), "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    out = tmp_path_factory.mktemp("bundle") / "brightness"
    facts = {
        "recame": "0.1.0",
        "format": "onnx",
        "precision": "fp32",
        "label_space": LabelSpace(("dark", "bright"), (5, 5)).to_dict(),
        "preprocess": SPEC.to_dict(),
        "graph": {
            "input": "images",
            "outputs": ["probabilities"],
            "views": 1,
            "temperature": 1.0,
            "num_experts": 1,
            "num_classes": 2,
            "attribution_grid": None,
        },
        "thresholds": {},
        "max_pixels": 10**6,
    }
    with assembling(out) as folder:
        onnx.save(model, folder / "model.onnx")
        write_document(folder, facts)
    return out


def report_of(
    *, one_image_ms: Sequence[float], batches: dict[int, float], **changes: Any
) -> LatencyReport:
    """A report with these durations."""
    report = LatencyReport(
        path="bundle",
        measured="2026-01-01T00:00:00+00:00",
        runtime={"backend": "onnxruntime", "threads": 2},
        machine=describe_machine(),
        spec=SPEC,
        batches={b: Timing.of([int(ms * 1e6)] * 200) for b, ms in batches.items()},
        one_image={"png": Timing.of([int(ms * 1e6) for ms in one_image_ms])},
        cold_start=None,
        streaming=None,
        load_average=0.1,
        notes=(),
    )
    return replace(report, **changes)


class TestTiming:
    def test_quantiles_are_samples_that_were_seen(self) -> None:
        timing = Timing.of([ms * 1_000_000 for ms in range(1, 201)])
        assert timing.samples == 200
        assert timing.mean_ms == pytest.approx(100.5)
        assert (timing.p50_ms, timing.p95_ms, timing.p99_ms) == (101, 191, 199)
        assert timing.max_ms == timing.bound_ms + 1 == 200

    @pytest.mark.parametrize(("samples", "p99"), [(1, None), (99, None), (100, 100)])
    def test_no_p99_from_few_samples(self, samples: int, p99: float | None) -> None:
        timing = Timing.of([ms * 1_000_000 for ms in range(1, samples + 1)])
        assert timing.p99_ms == p99
        assert timing.bound_ms == samples  # the slowest, where there is no p99

    def test_calls_go_on_for_the_time_and_are_at_least_so_many(self) -> None:
        durations = time_calls(lambda: time.sleep(0.002), 0.05)
        assert 2 <= len(durations) <= 25
        assert min(durations) >= 2_000_000
        assert len(time_calls(lambda: None, 0.0, least=7)) == 7
        assert len(time_calls(lambda: time.sleep(0.02), 0.0, least=99, most_s=0.01)) == 1


class TestTakt:
    def test_fits_by_p99_not_by_the_slowest(self) -> None:
        report = report_of(one_image_ms=[4.0] * 199 + [90.0], batches={1: 3.0, 8: 12.0, 16: 30.0})
        assert report.fits(0.020)
        assert not report.fits(0.0039)
        answer = report.answer(0.020)
        assert answer.startswith("fits: one image from bytes to decision, p99 4.00 ms <= 20 ms.")
        assert "batch of 8 takes 12.00 ms" in answer

    def test_too_few_samples_are_judged_by_the_slowest(self) -> None:
        report = report_of(one_image_ms=[4.0] * 49 + [90.0], batches={1: 3.0})
        assert not report.fits(0.020)
        assert "slowest of 50 (no p99) 90.00 ms > 20 ms" in report.answer(0.020)

    def test_a_batch_may_keep_up_where_one_image_does_not(self) -> None:
        report = report_of(one_image_ms=[4.0] * 200, batches={1: 3.0, 8: 12.0, 16: 16.0})
        answer = report.answer(0.0016)
        assert "does not fit" in answer
        assert "batches of 8, inference keeps up" in answer
        assert "(667 images/s)" in answer
        assert "No batch size keeps up" in report.answer(0.0001)

    def test_own_files_count_where_there_are_any(self) -> None:
        files = {"png": Timing.of([10**6] * 100), "files": Timing.of([9 * 10**6] * 100)}
        report = report_of(one_image_ms=[1], batches={1: 1}, one_image=files)
        assert report.deciding.p50_ms == 9
        assert not report.fits(0.005)

    def test_it_is_a_sentence_and_a_table(self) -> None:
        report = report_of(one_image_ms=[2], batches={1: 1, 4: 2})
        assert "one image 2.00 ms (p50), within 2.00 ms; 2,000 images/s in batches of 4" in str(
            report
        )
        assert report.to_frame()["images_per_s"].tolist() == [1000.0, 2000.0]


class TestMeasuring:
    def test_measures_what_was_asked(self, fake: Callable[..., FakePredictor]) -> None:
        predictor = fake(call_ms=1.0, image_ms=0.5)
        said: list[str] = []
        report = measure_latency(
            "bundle",
            batches=(1, 4),
            seconds=0.1,
            threads=1,
            fresh_processes=False,
            on_progress=said.append,
        )
        assert predictor.options == {
            "path": "bundle",
            "batch_size": 4,
            "threads": 1,
            "device": "auto",
        }
        assert set(predictor.seen) == {1, 4}
        assert list(report.batches) == [1, 4]
        assert report.batches[1].p50_ms >= 1.5
        assert report.batches[4].p50_ms >= 3.0
        assert report.images_per_s(4) == pytest.approx(4e3 / report.batches[4].mean_ms)
        assert report.one_image["png"].samples >= 100  # it goes on until p99 has its samples
        assert report.one_image["png"].p50_ms > 1.5
        assert said[0] == "loading"
        assert "inference, batch 4, round 2 of 2" in said
        assert report.cold_start is report.streaming is None

    def test_too_few_samples_are_said(self, fake: Callable[..., FakePredictor]) -> None:
        fake(call_ms=2.0)
        report = measure_latency("b", batches=(1,), seconds=0.02, fresh_processes=False)
        assert report.batches[1].p99_ms is None
        assert any(f"batch 1: {report.batches[1].samples}" in note for note in report.notes)

    def test_a_busy_machine_is_said(
        self, fake: Callable[..., FakePredictor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        predictor = fake(call_ms=0.2, image_ms=0.0)
        pauses = iter([0.0] * 19 + [0.02])

        def hindered(images: np.ndarray) -> np.ndarray:
            nonlocal pauses
            pause = next(pauses, None)
            if pause is None:
                pauses = iter([0.0] * 19 + [0.02])
            time.sleep(pause or 0.0002)
            return np.full((len(images), 3), 1 / 3, np.float32)

        monkeypatch.setattr(predictor, "probabilities", hindered)
        monkeypatch.setattr("recame.runtime.latency.load_average", lambda: 7.5)
        report = measure_latency("b", batches=(1,), seconds=0.3, fresh_processes=False)
        assert report.load_average == 7.5
        assert "load average 7.5 on" in report.notes[0]
        assert report.notes[1].startswith("p99 is more than 3 times p50 (batch 1: ")

    def test_own_files_without_unreadable_ones(
        self, fake: Callable[..., FakePredictor], tmp_path: Path
    ) -> None:
        fake(call_ms=0.1, image_ms=0.0)
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(example_png(SPEC, number))
        (tmp_path / "broken.png").write_bytes(b"no image")
        report = measure_latency(
            "b", batches=(1,), seconds=0.02, images=tmp_path, fresh_processes=False
        )
        assert list(report.one_image) == ["png", "files"]
        assert report.one_image["files"].samples >= 100

    def test_a_folder_without_readable_images(
        self, fake: Callable[..., FakePredictor], tmp_path: Path
    ) -> None:
        fake()
        (tmp_path / "broken.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"broken\.png: not an image"):
            measure_latency("b", batches=(1,), seconds=0.02, images=tmp_path)

    @pytest.mark.parametrize(("batches", "seconds"), [((), 1.0), ((0,), 1.0), ((1,), 0.0)])
    def test_nothing_to_measure(
        self, fake: Callable[..., FakePredictor], batches: tuple[int, ...], seconds: float
    ) -> None:
        fake()
        with pytest.raises(ConfigError, match="batch sizes must be 1 or more"):
            measure_latency("b", batches=batches, seconds=seconds)


class TestBundle:
    def test_a_fresh_process_needs_no_torch(self, bundle: Path) -> None:
        report = measure_latency(bundle, batches=(1, 2), seconds=0.1, threads=1)
        start, stream = report.cold_start, report.streaming
        assert start is not None
        assert stream is not None
        assert not start.torch
        assert start.total_s == pytest.approx(
            start.import_s + start.load_s + start.predict_s, rel=0.5
        )
        assert start.process_s > start.total_s
        assert start.peak_mib is not None
        assert 20 < start.peak_mib < 300
        assert stream.images > 64
        assert stream.peak_mib is not None
        assert stream.peak_mib < 300
        assert stream.runtime["backend"] == report.runtime["backend"] == "onnxruntime"
        assert "batch_size" not in report.runtime  # it was whatever was asked for

    def test_verb_answers_with_its_exit_code(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measured(path: Path, **asked: Any) -> LatencyReport:
            assert (path, asked["batches"], asked["threads"]) == (bundle, (1, 8), 1)
            return report_of(one_image_ms=[4.0] * 200, batches={1: 3.0, 8: 12.0})

        monkeypatch.setattr("recame.runtime.latency.measure_latency", measured)
        out = tmp_path / "latency.json"
        words = ["latency", str(bundle), "--batches", "8,1", "--threads", "1"]
        kept = CliRunner().invoke(app, [*words, "--takt", "20ms", "--json", str(out)])
        assert kept.exit_code == 0
        assert "Takt 20ms: fits: one image from bytes to decision, p99 4.00 ms" in kept.stdout
        assert json.loads(out.read_text())["takt"] == {
            "takt_s": 0.02,
            "fits": True,
            "answer": report_of(one_image_ms=[4.0] * 200, batches={1: 3.0, 8: 12.0}).answer(0.02),
        }
        missed = CliRunner().invoke(app, [*words, "--takt", "2ms"])
        assert missed.exit_code == 1
        assert "does not fit" in missed.stdout
        assert CliRunner().invoke(app, words).exit_code == 0

    def test_a_failing_process_says_why(self, bundle: Path, tmp_path: Path) -> None:
        options = {"threads": 0}
        with pytest.raises(CheckpointError, match=r"A new process cannot use .*threads=0"):
            time_fresh(bundle, example_png(SPEC), options, 0.1, lambda _: None)


class TestReport:
    def test_json_holds_everything(self, tmp_path: Path) -> None:
        report = report_of(
            one_image_ms=[4.0] * 200,
            batches={1: 3.0, 8: 12.0},
            cold_start=ColdStart(3, 0.1, 0.2, 0.01, 0.31, 0.4, 120.0, torch=False),
            streaming=Streaming(1000, 500.0, 150.0, {"batch_size": 16}),
        )
        save_latency(report, tmp_path / "new" / "latency.json", takt_s=0.001)
        document = json.loads((tmp_path / "new" / "latency.json").read_text())
        assert document["schema"] == 1
        assert document["batches"][1]["batch"] == 8
        assert document["batches"][1]["images_per_s"] == pytest.approx(8 / 0.012)
        assert document["one_image"]["png"]["p99_ms"] == 4
        assert document["cold_start"]["peak_mib"] == 120
        assert document["streaming"]["images_per_s"] == 500
        assert document["takt"]["fits"] is False
        assert PreprocessSpec.from_dict(document["preprocess"]) == SPEC
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["latency.json"]

    def test_json_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        report = report_of(one_image_ms=[4.0], batches={1: 3.0})
        with pytest.raises(DataError, match="Choose another place for --json"):
            save_latency(report, tmp_path / "file" / "latency.json")

    @pytest.mark.parametrize("width", [60, 80, 100])
    def test_no_figure_is_cut(self, width: int) -> None:
        report = report_of(
            one_image_ms=[1234.5] * 50,
            batches={1: 23.45, 64: 1234.5},
            cold_start=ColdStart(3, 0.1, 0.2, 0.01, 0.31, 0.4, 188.0, torch=False),
            streaming=Streaming(123_456, 512.0, 150.0, {"batch_size": 16, "parallel_batches": 2}),
        )
        text = io.StringIO()
        print_latency(report, Console(file=text, width=width))
        lines = text.getvalue().splitlines()
        table = lines[lines.index(next(line for line in lines if "Latency, ms" in line)) :]
        assert "…" not in text.getvalue()
        assert max(map(len, table)) <= width
        for figure in ("23.45", "1234.50", "188 MiB", "512 images/s", "0.31 s"):
            assert figure in text.getvalue()
        assert all(name in text.getvalue() for name in ("p50", "p95", "p99", "max", "images/s"))

    def test_printed_within_a_hundred_columns(self) -> None:
        report = report_of(
            one_image_ms=[4.0] * 50,
            batches={1: 3.0, 64: 1234.5},
            cold_start=ColdStart(3, 0.1, 0.2, 0.01, 0.31, 0.4, None, torch=True),
            streaming=Streaming(123_456, 512.0, 150.0, {"batch_size": 16, "parallel_batches": 2}),
            notes=("The machine was busy.",),
        )
        text = io.StringIO()
        print_latency(report, Console(file=text, width=100))
        lines = text.getvalue().splitlines()
        assert max(map(len, lines)) <= 100
        row = next(line for line in lines if "bytes to decision, a PNG" in line)
        assert "too few" in row
        assert any(re.search(r"batch 64 .* 52 ", line) for line in lines)
        assert "(2 x batch 16)" in text.getvalue()
        assert "150 MiB" in text.getvalue()
        assert "unknown" in text.getvalue()
        assert "The machine was busy." in text.getvalue()


@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (3, 8), (1, 16), (3, 16)])
def test_the_example_is_decoded_at_its_own_size(channels: Any, bit_depth: Any) -> None:
    means = (0.5,) * channels
    spec = PreprocessSpec(20, 30, channels, bit_depth, 2.0**bit_depth - 1, means, means)
    pixels = decode_image(example_png(spec), spec, max_pixels=600)
    assert (pixels.shape, pixels.dtype) == ((20, 30, channels), spec.dtype)
    assert pixels.mean() / spec.scale == pytest.approx(0.5, abs=0.02)
    assert example_png(spec) == example_png(spec) != example_png(spec, seed=1)


@pytest.mark.parametrize(
    ("text", "sizes"), [("1", (1,)), ("8, 1,8", (1, 8)), ("64,32,1", (1, 32, 64))]
)
def test_batches(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_batches(text) == sizes


@pytest.mark.parametrize("text", ["", "0", "1,two", "1,-2", "1.5"])
def test_wrong_batches(text: str) -> None:
    with pytest.raises(ConfigError, match="is no batch size"):
        parse_batches(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20ms", 0.02),
        ("1230ms", 1.23),
        ("1s500ms", 1.5),
        ("90s", 90),
        ("15m", 900),
        ("1h30m", 5400),
        ("0.5s", 0.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "ms", "0ms", "-1s", "20 ms", "5x", "1m2m"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["10", "20", "0", "1h30", "1.5"])
def test_a_number_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{text}' ends in a number without a unit.*{text}ms"):
        parse_duration(text)


def test_the_machine() -> None:
    machine = describe_machine()
    assert machine["cores"] == usable_cores() >= 1
    assert machine["versions"]["numpy"] == np.__version__
    assert machine["processor"]
    held = peak_memory_mib()
    assert held is not None
    assert 20 < held < 100_000
