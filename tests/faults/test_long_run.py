"""A camera that never stops: a million images through one stream, and what they leave in memory."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import recame
from recame.contracts import PreprocessSpec
from recame.label_space import LabelSpace
from recame.runtime.bundle import assembling, write_document

#: Every image is one of these, in turn, so that each answer tells which image it is of.
KINDS = 251
#: Images between two looks at the memory, and looks until it has settled.
BETWEEN, SETTLING = 20_000, 5


def write_bundle(folder: Path, spec: PreprocessSpec) -> Path:
    """A graph that takes the image's first pixel for its class, of `KINDS`."""
    space = LabelSpace(tuple(f"kind {k}" for k in range(KINDS)), (1,) * KINDS)
    shape = ["batch", spec.height, spec.width, 1]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"], axis=1),
            helper.make_node("Gather", ["flat", "first"], ["kind"], axis=1),
            helper.make_node("Cast", ["kind"], ["index"], to=TensorProto.INT64),
            helper.make_node("Flatten", ["index"], ["row"], axis=0),
            helper.make_node("Squeeze", ["row", "axis"], ["rows"]),
            helper.make_node("OneHot", ["rows", "depth", "values"], ["probabilities"]),
        ],
        "first pixel",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", KINDS])],
        [
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array([0], np.int64), "axis"),
            numpy_helper.from_array(np.array(KINDS, np.int64), "depth"),
            numpy_helper.from_array(np.array([0, 1], np.float32), "values"),
        ],
    )
    facts = {
        "format": "onnx",
        "precision": "fp32",
        "label_space": space.to_dict(),
        "preprocess": spec.to_dict(),
        "graph": {
            "outputs": ["probabilities"],
            "views": 1,
            "temperature": 1.0,
            "num_experts": 1,
            "num_classes": KINDS,
        },
        "thresholds": {},
        "max_pixels": 100,
    }
    with assembling(folder) as inside:
        opset = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=9), inside / "model.onnx"
        )
        write_document(inside, facts)
    return folder


def camera(number: int) -> Iterator[np.ndarray]:
    """Images made one by one; nobody holds them all."""
    for place in range(number):
        image = np.zeros((2, 2), np.uint8)
        image[0, 0] = place % KINDS
        yield image


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def stream(number: int, folder: Path) -> list[int]:
    """Predict so many images, and look at each answer; the memory held after each `BETWEEN`."""
    spec = PreprocessSpec(2, 2, 1, 8, 255.0, (0.5,), (0.5,))
    model = recame.load(write_bundle(folder / "b", spec), threads=2, batch_size=64)
    names, held = model.label_space.names, []
    count = 0
    for found in model.stream(camera(number)):
        # In order, none twice and none left out, and the answer is that of this very image.
        assert found.image == f"#{count}"
        assert found.label == names[count % KINDS]
        count += 1
        if count % BETWEEN == 0:
            gc.collect()
            held.append(resident_bytes())
    assert count == number
    return held


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_is_constant_and_each_image_comes_once(number: int, tmp_path: Path) -> None:
    # A process of its own: other tests' leavings move the memory of this one.
    words = [sys.executable, __file__, str(number), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    held = json.loads(done.stdout)
    assert len(held) == number // BETWEEN
    if len(held) < 2 * SETTLING:
        return
    places = BETWEEN * np.arange(1, len(held) + 1)
    slope = float(np.polyfit(places[SETTLING:], held[SETTLING:], 1)[0])
    grown = (held[-1] - held[SETTLING]) / 2**20
    sys.stdout.write(f"{number:,} images: {slope:.3f} bytes each, {grown:.2f} MiB in all\n")
    # A leaked answer would be a thousand bytes and more, its name alone sixty.
    assert slope < 5


if __name__ == "__main__":
    sys.stdout.write(json.dumps(stream(int(sys.argv[1]), Path(sys.argv[2]))))
