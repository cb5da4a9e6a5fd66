"""A bundle made by hand: a linear classifier of pixels, so that tests start in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from recame.contracts import PreprocessSpec
from recame.decisions.calibration import Calibration
from recame.export.export import export
from recame.label_space import LabelSpace
from recame.runtime.bundle import assembling, write_document

SPACE = LabelSpace(("ok", "crack", "NA"), (90, 9, 3), normal="ok")


def linear_weights(spec: PreprocessSpec, seed: int = 0) -> np.ndarray:
    """(H * W * C, classes) float32; what the hand-made graph multiplies unit pixels by."""
    shape = (spec.height * spec.width * spec.channels, SPACE.num_classes)
    weights = np.random.default_rng(seed).normal(0, 0.4, shape)
    # Each class's weights add up to nothing, so that each wins some images.
    return (weights - weights.mean(0)).astype(np.float32)


def linear_graph(
    spec: PreprocessSpec, seed: int = 0, at_white: float | None = None
) -> onnx.ModelProto:
    """Stored pixels (B, H, W, C) -> softmax of a linear map, as `probabilities`.

    Where the first pixel is white, every logit is `at_white`, if that is given.
    """
    stored = TensorProto.UINT8 if spec.bit_depth == 8 else TensorProto.UINT16
    weights = linear_weights(spec, seed)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("Flatten", ["unit"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["linear"]),
        helper.make_node("Gather", ["flat", "first"], ["corner"], axis=1),
        helper.make_node("Equal", ["corner", "white"], ["is_white"]),
        helper.make_node("Where", ["is_white", "at_white", "linear"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    # No unit pixel is 2.
    white = 2.0 if at_white is None else 1.0
    constants = [
        numpy_helper.from_array(np.float32(spec.scale), "scale"),
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([0], np.int64), "first"),
        numpy_helper.from_array(np.float32(white), "white"),
        numpy_helper.from_array(np.float32(at_white or 0.0), "at_white"),
    ]
    shape = ["batch", spec.height, spec.width, spec.channels]
    inputs = [helper.make_tensor_value_info("images", stored, shape)]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def expected_probabilities(pixels: np.ndarray, spec: PreprocessSpec, seed: int = 0) -> np.ndarray:
    """What the hand-made graph says of (B, H, W, C) pixels."""
    flat = (pixels.astype(np.float64) / spec.scale).reshape(len(pixels), -1)
    powers = np.exp(flat @ linear_weights(spec, seed))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture(scope="session")
def expected() -> Callable[..., np.ndarray]:
    """`expected(pixels, spec)`: probabilities of (B, H, W, C) pixels by the hand-made graph."""
    return expected_probabilities


@pytest.fixture(scope="session")
def write_bundle() -> Callable[..., Path]:
    """`write_bundle(folder, spec, thresholds=..., seed=..., form="onnx", calibration=...)`."""

    def write(
        folder: Path,
        spec: PreprocessSpec,
        *,
        thresholds: dict[str, Any] | None = None,
        seed: int = 0,
        form: str = "onnx",
        at_white: float | None = None,
        space: LabelSpace = SPACE,
        replace: bool = False,
        steady: bool = True,
        calibration: Calibration | None = None,
    ) -> Path:
        facts = {
            "recame": "0.1.0",
            "created": "2026-01-01T00:00:00+00:00",
            "format": form,
            "precision": "fp32",
            "label_space": space.to_dict(),
            "preprocess": spec.to_dict(),
            "graph": {
                "input": "images",
                "outputs": ["probabilities"],
                "views": 1,
                "temperature": 1.0,
                "num_experts": 1,
                "num_classes": 3,
                "attribution_grid": None,
            },
            "thresholds": thresholds or {},
            "data_fingerprint": "0" * 16,
            "run": {"seed": 0, "backbone": "linear"},
            "versions": {},
            "parity": {"batch_difference": 0.0 if steady else 1e-7},
            "max_pixels": 1_000_000,
        }
        if calibration is not None:
            facts["calibration"] = calibration.to_dict()
        with assembling(folder, replace=replace) as inside:
            graph = linear_graph(spec, seed, at_white)
            if form == "onnx":
                onnx.save(graph, inside / "model.onnx")
            else:
                import openvino as ov

                onnx.save(graph, inside.parent / "linear.onnx")
                model = ov.convert_model(inside.parent / "linear.onnx")
                ov.save_model(model, inside / "model.xml", compress_to_fp16=False)
            write_document(inside, facts)
        return folder

    return write


@pytest.fixture(scope="session")
def grey() -> PreprocessSpec:
    return PreprocessSpec(6, 5, 1, 8, 255.0, (0.5,), (0.5,))


@pytest.fixture(scope="session")
def bundle(
    write_bundle: Callable[..., Path],
    grey: PreprocessSpec,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle of grey 6 x 5 images; read only."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "linear", grey)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder of 300 grey 6 x 5 PNG files in order of their names, and their pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(1).integers(0, 256, (300, 6, 5, 1), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(folder / f"{number:03d}.png")
    return folder, pixels


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster on this machine: a head without cores, and two nodes of one."""
    pytest.importorskip("ray", reason="needs pip install 'recame[cluster]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    cluster.nodes_with_cores = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def exported_run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(finished, tmp_path_factory.mktemp("exported") / "bundle", normal="ok").path
