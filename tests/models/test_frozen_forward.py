from __future__ import annotations

import errno
import tempfile

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recame.contracts import PreprocessSpec
from recame.errors import DataError
from recame.models import Architecture, FrozenForward, MultiExpertClassifier, frozen_forward
from recame.models.recorded_graph import UnrecordableError


class Features(nn.Module):
    """The network's logits and trunk map: a tuple, as the users of the forward have it."""

    def __init__(self, model: MultiExpertClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(images).logits, self.model.trunk_features(images)[0]


@pytest.fixture
def module() -> Features:
    torch.manual_seed(0)
    spec = PreprocessSpec(32, 32, 3, 8, 255.0, (0.5,) * 3, (0.25,) * 3)
    model = MultiExpertClassifier(Architecture("test_resnet", shared_stages=3), 5, spec)
    model(torch.rand(8, 3, 32, 32))  # batch norms that are not the identity
    return Features(model)


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 32, 32, generator=generator)


def test_graph_is_the_eager_forward(
    module: Features, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = FrozenForward(module, images, num_images=6)
    monkeypatch.setattr(frozen_forward, "GRAPH_PIXELS", 0)
    graph = FrozenForward(module, images, num_images=6)
    assert (eager.uses_graph, graph.uses_graph) == (False, True)
    for number in (6, 1, 3):  # any batch, also in channels-last memory
        batch = images[:number].contiguous(memory_format=torch.channels_last)
        for ours, theirs in zip(graph(batch), eager(batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_large_batch_passes_a_graph_in_parts(
    module: Features, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_forward, "GRAPH_PIXELS", 0)
    graph = FrozenForward(module, images, num_images=6)
    whole = graph(images)
    sizes: list[int] = []
    session = graph._session

    class Watched:
        get_inputs = session.get_inputs

        def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            sizes.append(len(inputs["images"]))
            return list(session.run(names, inputs))

    graph._session = Watched()
    for most, expected in ((4, [4, 2]), (6, [6]), (0, [1] * 6)):
        monkeypatch.setattr(frozen_forward, "_PART_PIXELS", most * 32 * 32)
        sizes.clear()
        for ours, theirs in zip(graph(images), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert sizes == expected


def test_path_depends_on_the_work_alone(
    module: Features, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_forward, "_session_or_none", lambda *_, **__: object())
    pixels = frozen_forward.GRAPH_PIXELS
    enough = -(-pixels // 32**2)
    assert FrozenForward(module, images, num_images=enough).uses_graph
    assert not FrozenForward(module, images, num_images=enough - 1).uses_graph
    monkeypatch.setattr(frozen_forward, "graph_runtime_available", lambda: False)
    assert not FrozenForward(module, images, num_images=enough).uses_graph


def test_a_graph_is_recorded_and_exported_only_where_much_lies_ahead(
    module: Features, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []
    monkeypatch.setattr(frozen_forward, "_program", lambda *_: exported.append(1) or 1 / 0)
    monkeypatch.setattr(frozen_forward, "GRAPH_PIXELS", 0)
    assert FrozenForward(module, images, num_images=6).uses_graph
    assert not exported

    def refuse(*_: object) -> bytes:
        raise UnrecordableError("nothing is written for aten.new.default")

    monkeypatch.setattr(frozen_forward, "quick_onnx", refuse)
    assert not FrozenForward(module, images, num_images=6).uses_graph
    assert not exported
    monkeypatch.setattr(frozen_forward, "EXPORT_PIXELS", 0)
    assert not FrozenForward(module, images, num_images=6).uses_graph
    assert exported == [1]


def test_a_record_that_answers_otherwise_is_not_used(
    module: Features, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = frozen_forward.quick_onnx

    def of_another(module: nn.Module, example: Tensor) -> bytes:
        return plain(Doubled(module).eval(), example)

    monkeypatch.setattr(frozen_forward, "GRAPH_PIXELS", 0)
    monkeypatch.setattr(frozen_forward, "quick_onnx", of_another)
    forward = FrozenForward(module, images, num_images=6)
    assert not forward.uses_graph
    torch.testing.assert_close(forward(images)[0], module(images)[0])


class Doubled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(2 * output for output in self.module(images))


def test_eager_outputs_can_be_trained_on(module: Features, images: Tensor) -> None:
    logits, maps = FrozenForward(module, images, num_images=6)(images)
    assert not module.training
    assert not logits.is_inference()
    assert not maps.requires_grad
    weight = nn.Parameter(torch.ones(()))
    (weight * maps).sum().backward()
    torch.testing.assert_close(weight.grad, maps.sum())


def test_autocast_gives_float32_close_to_exact(module: Features, images: Tensor) -> None:
    exact, _ = FrozenForward(module, images, num_images=6)(images)
    rough, _ = FrozenForward(module, images, num_images=6, precision="bf16")(images)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.3


class Unexportable(nn.Module):
    """Its path depends on the pixels, which no graph can hold."""

    def forward(self, images: Tensor) -> Tensor:
        return images * 2 if images.mean().item() > 0.3 else images


def test_a_network_without_graph_runs_eagerly(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frozen_forward, "GRAPH_PIXELS", 0)
    monkeypatch.setattr(frozen_forward, "EXPORT_PIXELS", 0)
    forward = FrozenForward(Unexportable(), images, num_images=6)
    assert not forward.uses_graph
    assert "cannot become a graph" in caplog.text
    torch.testing.assert_close(forward(images)[0], images * 2)


def test_a_full_temporary_disk_changes_no_answer(
    module: Features, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frozen_forward, "GRAPH_PIXELS", 0)
    before = FrozenForward(module, images, num_images=6)(images)
    for name in ("mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, name, full)
    forward = FrozenForward(module, images, num_images=6)
    assert forward.uses_graph
    for ours, theirs in zip(forward(images), before, strict=True):
        assert torch.equal(ours, theirs)


class Starved(nn.Module):
    """Its machine gives out, directly or below what the exporter makes of it."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError("none left"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_machine_that_gives_out_is_not_a_network_without_graph(
    error: Exception, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_forward, "GRAPH_PIXELS", 0)
    with pytest.raises(DataError, match="memory or disk give out"):
        FrozenForward(Starved(error), images, num_images=6)
