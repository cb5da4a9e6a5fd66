"""Networks written down while they run, and as ONNX graphs that answer alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from recame.contracts import PreprocessSpec
from recame.models import Architecture, MultiExpertClassifier
from recame.models.frozen_forward import quick_onnx
from recame.models.recorded_graph import Batch, Repeated, UnrecordableError, record


def answers(
    module: nn.Module, example: Tensor, batch: Tensor
) -> tuple[list[np.ndarray], onnx.ModelProto]:
    """What the module's graph says of a batch."""
    graph = quick_onnx(module.eval(), example)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch.numpy()}), onnx.load_from_string(graph)


class Outputs(nn.Module):
    def __init__(self, model: MultiExpertClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(images)
        return output.logits, output.features


def test_inference_mode_records_the_same() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Hardswish()).eval()
    batch = torch.rand(3, 3, 8, 8)
    expected, _ = answers(module, batch[:1], batch)
    with torch.inference_mode():
        found, _ = answers(module, batch[:1] + 0, batch + 0)
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize(
    ("backbone", "side", "pooled", "start"),
    [
        ("tf_efficientnet_lite0", 64, 6, None),
        ("test_resnet", 30, 3, None),
        ("test_resnet", 30, 3, 0.3),
        ("mobilenetv3_small_050", 64, 1, None),
        ("convnext_atto", 64, 1, None),
        ("test_vit", 160, 1, 0.5),
    ],
)
def test_graphs_are_the_networks(
    backbone: str, side: int, pooled: int, start: float | None
) -> None:
    torch.manual_seed(0)
    spec = PreprocessSpec(side, side, 3, 8, 255.0, (0.5,) * 3, (0.25,) * 3)
    plan = Architecture(backbone, shared_stages=2, pooled_stages=pooled, gate_start=start)
    model = MultiExpertClassifier(plan, 5, spec)
    model(torch.rand(4, 3, side, side))  # batch norms that are not the identity
    for name, parameter in model.named_parameters():
        if start is not None and ".fc2." in name:
            nn.init.normal_(parameter, std=0.3)  # gates that are not the identity either
    module = Outputs(model).eval()
    for number in (1, 5):
        batch = torch.rand(number, 3, side, side)
        found, graph = answers(module, torch.zeros(1, 3, side, side), batch)
        with torch.no_grad():
            expected = module(batch)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-4)
    # Weights keep their names, but those that one constant is made from.
    names = {constant.name for constant in graph.graph.initializer}
    convolutions = {
        f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Conv2d)
    }
    assert convolutions
    assert convolutions <= names


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def overwritten_view(images: Tensor) -> Tensor:
    doubled = images * 2
    part = doubled[:, :1]
    doubled.relu_()
    return part + 1


def overwritten_whole(images: Tensor) -> Tensor:
    doubled = (images - 0.5).mul_(2)
    flat = doubled.view(len(images), -1)
    return flat.relu_() + 1


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: x * 2 if x.mean().item() > 0.3 else x.relu(), "depend on the pixels"),
        (lambda x: x - x.mean(0, keepdim=True), "mixes images"),
        (lambda x: x + torch.rand(3, 4, 4), "on chance"),
        (lambda x: x * (len(x) + 1), "a number is 3 for 2 images, 4 for 3"),
        (lambda x: torch.cat([x, x]), "joins batches"),
        (lambda x: x.flip(2), "nothing is written for aten.flip"),
        (overwritten_view, "overwritten"),
        (lambda x: x.relu_(), "overwrites"),
        (lambda x: torch.ones(2), "does not depend on the images"),
    ],
)
def test_what_no_record_can_hold_is_refused(
    function: Callable[[Tensor], Tensor], told: str
) -> None:
    example = torch.rand(1, 3, 4, 4)
    with pytest.raises(UnrecordableError, match=told):
        quick_onnx(Function(function), example)


def test_what_is_overwritten_may_be_read_by_its_own_name() -> None:
    batch = torch.rand(3, 2, 4, 4)
    found, _ = answers(Function(overwritten_whole), batch, batch)
    np.testing.assert_allclose(found[0], overwritten_whole(batch).numpy(), atol=1e-6)


def test_stored_pixels_become_numbers() -> None:
    pixels = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8)
    module = Function(lambda x: x.to(torch.float32).permute(0, 3, 1, 2) * 0.5)
    found, graph = answers(module, pixels, pixels)
    np.testing.assert_allclose(found[0], module(pixels).numpy())
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_a_record_tells_the_batch_from_other_numbers() -> None:
    token = nn.Parameter(torch.rand(1, 1, 5))

    def with_token(images: Tensor) -> Tensor:
        words = images.reshape(len(images), 2, 5)
        return torch.cat([token.expand(len(images), -1, -1), words], 1)

    recording = record(Function(with_token), torch.rand(1, 10))
    assert recording.outputs[0].shape == (Batch(1), 3, 5)
    parts = recording.operations[-1].args[0]
    assert isinstance(parts[0], Repeated)
    batch = torch.rand(4, 10)
    found, _ = answers(Function(with_token), batch, batch)
    np.testing.assert_allclose(found[0], with_token(batch).detach().numpy())
