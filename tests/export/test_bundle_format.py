"""docs/bundle-format.md: its numbers are recame's, its fields those that an export writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

import recame
from recame.contracts import PreprocessSpec
from recame.data.decode import match_pixels
from recame.data.file_part import Box, crop
from recame.data.resize import scaled
from recame.decisions.actions import Policy
from recame.decisions.calibration import Calibration
from recame.decisions.calibrators import Calibrator
from recame.decisions.scored import class_log_odds, logits_of, release_scores
from recame.export.document import BundleDocument, document_schema, field_table
from recame.export.export import export
from recame.export.interface import interface, write_metadata
from recame.runtime.bundle import Bundle, open_bundle
from recame.runtime.sessions import open_session

pytestmark = pytest.mark.usefixtures("trace_once")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "bundle-format.md").read_text(encoding="utf-8")
EXAMPLE = {
    row[1].strip(): (row[2].strip(), row[3].strip())
    for row in re.finditer(r"^\|([^|]+)\|([^|]+)\|([^|]+)\|$", PAGE, re.MULTILINE)
}


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?", text)]


def spec(channels: int, bit_depth: int) -> PreprocessSpec:
    each = (0.5,) * channels
    return PreprocessSpec(1, 1, channels, bit_depth, 255.0, each, each)  # type: ignore[arg-type]


def test_the_numbers_of_decoding() -> None:
    deep = np.full((1, 1), 4660, np.uint16)
    assert EXAMPLE["depth"][1] == f"8 bits: {match_pixels(deep, spec(1, 8)).item()}"
    colour = np.array([[[200, 100, 50]]], np.uint8)
    assert EXAMPLE["channels"][1] == f"grey: {match_pixels(colour, spec(1, 8)).item()}"
    for step in ("shrink", "enlarge"):
        source, target = (numbers(text.split("(")[0]) for text in EXAMPLE[step])
        row = np.array([source], np.uint8)[..., None]
        assert scaled(row, 1, len(target))[0, :, 0].tolist() == target
    rows, columns = crop(Box(90, 10, 20, 30), 480, 640, 2.0)
    assert numbers(EXAMPLE["box"][1]) == [rows.start, rows.stop - 1, columns.start, 129]


def test_colour_becomes_grey_by_these_integers() -> None:
    for top, dtype, bits in ((256, np.uint8, 8), (65536, np.uint16, 16)):
        colour = np.random.default_rng(0).integers(0, top, (40, 40, 3)).astype(dtype)
        grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
        told = (colour.astype(np.int64) @ [9798, 19235, 3735] + 16384) >> 15
        assert np.array_equal(grey, told), bits


def test_resampling_is_at_most_a_level_from_the_page() -> None:
    image = np.random.default_rng(0).integers(0, 256, (45, 61, 1)).astype(np.uint8)
    for height, width in ((20, 33), (45, 20), (80, 90), (20, 90), (90, 20)):
        by_page = resampled(image[..., 0], height, width)
        away = np.abs(scaled(image, height, width)[..., 0].astype(int) - by_page)
        assert away.max() <= 1, (height, width)
        assert (away > 0).mean() < 0.3


def resampled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """In floating point, as the page tells it."""
    smaller = (min(height, image.shape[0]), min(width, image.shape[1]))
    for target, weights in ((smaller, by_area), ((height, width), linearly)):
        if image.shape != target:
            down, along = (weights(*sides) for sides in zip(image.shape, target, strict=True))
            image = np.floor(down @ image @ along.T + 0.5)
    return image


def by_area(source: int, target: int) -> np.ndarray:
    start = np.arange(target)[:, None] * source / target
    stop = start + source / target
    pixel = np.arange(source)
    inside = np.clip(np.minimum(stop, pixel + 1) - np.maximum(start, pixel), 0, None)
    return inside / inside.sum(1, keepdims=True)


def linearly(source: int, target: int) -> np.ndarray:
    place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)[:, None]
    return np.clip(1 - np.abs(place - np.arange(source)), 0, None)


def test_the_numbers_of_answering() -> None:
    p = np.array([[0.7, 0.2, 0.1]])
    plain = Calibration(0.5, {})
    cold = plain.apply(p)
    assert cold[0] == pytest.approx(numbers(EXAMPLE["calibrate by a temperature"][1]), abs=1e-6)
    moved = Calibration(
        0.5, {}, calibrator=Calibrator("bias_corrected", np.full(3, 2.0), np.arange(3.0))
    ).apply(p)
    assert moved[0] == pytest.approx(numbers(EXAMPLE["calibrate by biases"][1]), abs=1e-6)
    logits = logits_of(cold, 0.5)
    odds = class_log_odds(logits)[0]
    assert odds == pytest.approx(numbers(EXAMPLE["odds"][1]), abs=1e-6)
    acts = re.findall(r"\| act \| .*`release_above` ([\d.]+) \| `(\w+)`, `(\w+)` \|", PAGE)
    assert len(acts) == 2
    for above, action, reason in acts:
        policy = Policy(("ok", "a", "b"), 0, float(above), np.full(3, np.inf))
        acted = policy.act(logits)
        assert acted.reasons() == [reason]
        assert action == ("release" if reason == "released" else "review")
    score = release_scores(logits, 0, np.array([1.0, 1.5, 0.5]))
    assert score == pytest.approx(numbers(EXAMPLE["score"][1]), abs=1e-6)


def test_schema_and_table_are_those_of_this_version() -> None:
    """`python benchmarks/structure/bundle_format.py` writes them."""
    told = json.loads((DOCS / "bundle.schema.json").read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(document_schema()))
    assert f"<!-- fields -->\n{field_table()}<!-- end of fields -->" in PAGE


@pytest.fixture(scope="module")
def exported(trace_once: None, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("format") / "bundle"
    outputs = ("expert_probabilities", "attribution")
    return export(finished, out, outputs=outputs, views=2, normal="ok")


def test_an_export_writes_just_these_fields(exported: Bundle) -> None:
    text = (exported.path / "bundle.json").read_text(encoding="utf-8")
    document = BundleDocument.model_validate_json(text, strict=False)
    assert document.interface.input.shape == [None, 32, 32, 1]
    assert list(document.interface.outputs) == list(exported.outputs)


def test_the_interface_is_the_graph_s(exported: Bundle, defects: Path) -> None:
    told = exported.document["interface"]
    session = open_session(exported, device="cpu", threads=1, calls=1)
    shape = [2 if side is None else side for side in told["input"]["shape"]]
    found = session.run(np.zeros(shape, told["input"]["type"]))
    for name, output in told["outputs"].items():
        assert [2, *output["shape"][1:]] == list(found[name].shape), name
        assert found[name].dtype == output["type"]
        assert len(output["axes"]) == found[name].ndim
    # What the page does not tell apart, no image is told apart by.
    image = next(defects.rglob("*.png"))
    (answer,) = recame.load(exported.path).predict([image])
    pixels = np.asarray(Image.open(image))[None, ..., None]
    assert np.array_equal(session.run(pixels)["probabilities"][0], answer.probabilities)


def test_a_graph_tells_of_itself(exported: Bundle) -> None:
    graph = onnx.load(exported.model_path)
    told = {each.key: json.loads(each.value) for each in graph.metadata_props}
    names = ("label_space", "preprocess", "interface", "calibration", "data_fingerprint", "recame")
    assert told == {f"recame.{name}": exported.document[name] for name in names}
    # And of no path of the machine that exported it.
    assert b"site-packages" not in graph.SerializeToString()
    assert str(Path(recame.__file__).parent).encode() not in graph.SerializeToString()


@pytest.mark.slow
def test_so_does_one_of_openvino(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    weights = numpy_helper.from_array(np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3), "w")
    node = helper.make_node("MatMul", ["images", "w"], ["probabilities"])
    sides = (("images", 4), ("probabilities", 3))
    first, last = (helper.make_tensor_value_info(n, 1, ["batch", side]) for n, side in sides)
    graph = helper.make_graph([node], "linear", [first], [last], [weights])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "m.onnx")
    path = tmp_path / "model.xml"
    ov.save_model(ov.convert_model(tmp_path / "m.onnx"), path, compress_to_fp16=True)
    stored = path.with_suffix(".bin").read_bytes()
    write_metadata(path, {"recame.calibration": '{"temperature": 2.0}'})
    told = ov.Core().read_model(path).get_rt_info(["recame", "calibration"])
    assert told.value == '{"temperature": 2.0}'
    assert path.with_suffix(".bin").read_bytes() == stored  # still of 16 bits


def test_a_bundle_without_an_interface_is_read() -> None:
    before = open_bundle(Path(__file__).parents[1] / "fixtures" / "before" / "bundle")
    assert "interface" not in before.document
    assert before.spec.height == 16


def test_a_model_of_pieces_says_so() -> None:
    pieces = PreprocessSpec(40, 8, 1, 8, 255.0, (0.5,), (0.5,), tiles=4)
    assert interface(pieces, {})["resize"]["rule"] == "pieces"
    assert interface(spec(3, 16), {})["input"]["type"] == "uint16"
