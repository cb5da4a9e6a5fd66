"""Gates that are divided by their start, in a bundle's graph and with 8 bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from recame.contracts import PreprocessSpec
from recame.inference.graph import DeploymentGraph
from recame.inference.quantise import quantise_onnx, sensitive_nodes
from recame.models import Architecture, MultiExpertClassifier
from recame.models.frozen_forward import export_onnx

SPEC = PreprocessSpec(32, 32, 1, 8, 255.0, (0.5,), (0.25,))


def written(start: float | None, path: Path) -> DeploymentGraph:
    """The graph of a network whose gates are no identity any more."""
    torch.manual_seed(0)
    plan = Architecture("test_resnet", shared_stages=2, pooled_stages=2, gate_start=start)
    model = MultiExpertClassifier(plan, 4, SPEC)
    model(torch.rand(16, 1, 32, 32))
    for name, parameter in model.named_parameters():
        if ".fc2." in name:
            nn.init.normal_(parameter, std=0.3)
    graph = DeploymentGraph(model.eval()).eval()
    example = torch.zeros((2, 32, 32, 1), dtype=torch.uint8)
    export_onnx(graph, example, path, output_names=["probabilities"])
    return graph


def sensitive(path: Path) -> Counter[str]:
    """How many nodes of each kind stay in full precision."""
    model = onnx.load(path)
    names = sensitive_nodes(model)
    return Counter(node.op_type for node in model.graph.node if node.name in names)


@pytest.mark.slow
def test_stay_in_full_precision_up_to_their_product(tmp_path: Path) -> None:
    for start in (None, 0.5):
        written(start, tmp_path / f"{start}.onnx")
    plain, divided = (sensitive(tmp_path / f"{start}.onnx") for start in (None, 0.5))
    assert plain["Sigmoid"] > 0
    assert divided - plain == Counter({"Div": plain["Sigmoid"]})
    assert plain - divided == Counter()


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.slow
def test_answer_as_torch_does(quantised: bool, tmp_path: Path) -> None:
    graph = written(0.3, tmp_path / "a.onnx")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 1)).astype(np.uint8)
    path = tmp_path / "a.onnx"
    if quantised:
        path = tmp_path / "int8.onnx"
        quantise_onnx(tmp_path / "a.onnx", path, images)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    with torch.no_grad():
        (expected,) = graph(torch.from_numpy(images))
    np.testing.assert_allclose(found, expected.numpy(), atol=0.1 if quantised else 1e-5)
    assert np.abs(found - expected.numpy()).max() > (1e-5 if quantised else -1)
