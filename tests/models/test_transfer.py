from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from recame.contracts import PreprocessSpec
from recame.errors import ConfigError
from recame.models import Architecture, MultiExpertClassifier, continued

SPEC = PreprocessSpec(32, 32, 1, 8, 255.0, (0.4,), (0.2,))
VIT = {"stages": 2, "shared_stages": 1}


def plan(backbone: str = "test_resnet", **changes: Any) -> Architecture:
    return Architecture(backbone, **{"shared_stages": 3, **changes})


def trained(architecture: Architecture, num_classes: int = 3) -> MultiExpertClassifier:
    """A network whose weights are nobody's start, gates and adapters included."""
    torch.manual_seed(0)
    model = MultiExpertClassifier(architecture, num_classes, SPEC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return model.eval()


def taken(
    source: MultiExpertClassifier, num_classes: int = 5, **changes: Any
) -> MultiExpertClassifier:
    torch.manual_seed(1)
    architecture = plan(source.architecture.backbone, **changes)
    return continued(source, architecture, num_classes, SPEC).eval()


def pooled(model: MultiExpertClassifier, side: int = 32) -> Tensor:
    images = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model.pooled(images)


def test_experts_are_taken_in_order_and_the_first_again() -> None:
    source = trained(plan())
    model = taken(source, num_experts=3)
    expected = pooled(source)
    assert not torch.equal(expected[:, 0], expected[:, 1])
    assert torch.equal(pooled(model), expected[:, [0, 1, 0]])
    assert model.head.classifier.weight.shape[:2] == (3, 5)


@pytest.mark.parametrize("shared", [0, 1, 3, 4])
def test_fewer_experts_are_the_last(shared: int) -> None:
    source = trained(plan())
    model = taken(source, num_experts=1, shared_stages=shared)
    assert torch.equal(pooled(model)[:, 0], pooled(source)[:, 1])


def test_tails_are_not_put_on_stages_they_never_saw() -> None:
    source = trained(plan(shared_stages=1))
    model = taken(source, shared_stages=3)
    assert torch.equal(pooled(model), pooled(source)[:, [1, 1]])
    assert model.tails_identical()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("none", "regional"), ("regional", "none"), ("channel", "squeeze_excite")],
)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
def test_other_attention_starts_open(theirs: str, ours: str, backbone: str) -> None:
    stages = VIT if backbone == "test_vit" else {"stages": 1, "shared_stages": 1}
    source = trained(plan(backbone, attention=theirs, **stages))
    if theirs != "none":  # what is left behind
        plain = taken(source, attention="none", **stages)
        assert not torch.allclose(pooled(plain), pooled(source))
        source = plain
    model = taken(source, attention=ours, **stages)
    # A gate of 0.9975 for each block of a stage.
    torch.testing.assert_close(pooled(model), pooled(source), rtol=0.03, atol=0.03)
    first, theirs_first = model.stages(0)[0], source.stages(0)[0]
    assert torch.equal(next(first.parameters()), next(theirs_first.parameters()))


@pytest.mark.parametrize(("theirs", "ours"), [(0.5, None), (None, 0.5), (0.5, 0.9)])
def test_gates_that_are_divided_otherwise_are_left_behind(
    theirs: float | None, ours: float | None
) -> None:
    stages = {"stages": 1, "shared_stages": 1}
    source = trained(plan(gate_start=theirs, **stages))
    same = taken(source, gate_start=theirs, **stages)
    assert torch.equal(pooled(same), pooled(source)[:, [0, 1]])
    plain = taken(source, attention="none", **stages)
    model = taken(source, gate_start=ours, **stages)
    torch.testing.assert_close(pooled(model), pooled(plain), rtol=0.03, atol=0.03)
    weights = [w for name, w in model.named_parameters() if name.endswith("fc2.weight")]
    assert weights
    assert not any(weight.any() for weight in weights)


def test_the_source_may_be_longer_but_not_shorter() -> None:
    source = trained(plan())
    model = taken(source, stages=2, shared_stages=1)
    assert torch.equal(
        model.stages(1)[1].state_dict()["0.0.conv1.weight"],
        source.stages(1)[1].state_dict()["0.0.conv1.weight"],
    )
    with pytest.raises(ConfigError, match=r"2 stages .* 4 with .*Set model\.stages=2"):
        taken(model)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("adapter", "adapter"),
        ("lora", "lora"),
        ("lora", "full"),
        ("full", "adapter"),
        ("bias", "lora"),
    ],
)
def test_adapters(theirs: str, ours: str) -> None:
    if "lora" in (theirs, ours):
        pytest.importorskip("peft")
    rank = 3 if theirs == "adapter" else None
    source = trained(plan("test_vit", tuning=theirs, tuning_rank=rank, **VIT))
    model = taken(source, 200, tuning=ours, **VIT)
    torch.testing.assert_close(pooled(model), pooled(source))
    assert model.architecture.tuning_rank == rank
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.endswith("attn.qkv.weight") for name in learning) == (ours == "full")


def test_adapters_are_not_dropped() -> None:
    source = trained(plan("test_vit", tuning="adapter", tuning_rank=3, **VIT))
    with pytest.raises(ConfigError, match=r"model\.tuning=adapter model\.tuning_rank=3"):
        taken(source, **VIT)


def test_positions_follow_the_size() -> None:
    source = trained(plan("test_vit", **VIT))
    torch.manual_seed(1)
    larger = PreprocessSpec(64, 64, 1, 8, 255.0, (0.4,), (0.2,))
    model = continued(source, source.architecture, 3, larger).eval()
    torch.testing.assert_close(pooled(model, 64), pooled(source, 64))


def test_another_backbone() -> None:
    source = trained(plan(stages=1, shared_stages=1))
    with pytest.raises(ConfigError, match=r"a test_resnet, .*model\.backbone=resnet10t"):
        continued(source, plan("resnet10t"), 3, SPEC)
