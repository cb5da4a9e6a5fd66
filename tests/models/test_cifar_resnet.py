from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from recame.contracts import PreprocessSpec
from recame.errors import CheckpointError, ConfigError
from recame.models import Architecture, MultiExpertClassifier, build_backbone


@pytest.mark.parametrize(("name", "millions"), [("resnet20_cifar", 0.27), ("resnet32_cifar", 0.46)])
def test_sizes_are_the_published_ones(name: str, millions: float) -> None:
    build_backbone(name)  # makes the names known to timm
    model = timm.create_model(name, num_classes=10)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_three_stages_each_half_as_fine() -> None:
    backbone = build_backbone("resnet32_cifar", attention="regional")
    assert backbone.stage_channels == [16, 32, 64]
    maps, sides = torch.zeros(1, 3, 32, 32), []
    for stage in backbone.eval().stages:
        maps = stage(maps)
        sides.append(maps.shape[-1])
    assert sides == [32, 16, 8]
    gates = [m for m in backbone.modules() if type(m).__name__ == "RegionalChannelAttention"]
    assert len(gates) == 15  # in every residual block


def test_experts_part_after_the_first_stage() -> None:
    spec = PreprocessSpec(32, 32, 1, 8, 255.0, (0.5,), (0.5,))
    plan = Architecture("resnet20_cifar", num_experts=3, shared_stages=1, attention="none")
    output = MultiExpertClassifier(plan, 10, spec)(torch.rand(2, 1, 32, 32))
    assert output.logits.shape == (2, 3, 10)


def test_weights_of_a_file(tmp_path: Path) -> None:
    build_backbone("resnet20_cifar")
    model = timm.create_model("resnet20_cifar", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    taken = build_backbone("resnet20_cifar", pretrained=tmp_path / "own.pth", in_channels=1)
    stem = taken.stages[0][0].weight
    torch.testing.assert_close(stem, model.conv1.weight.sum(1, keepdim=True))
    with pytest.raises(CheckpointError, match="do not fit backbone 'resnet32_cifar'"):
        build_backbone("resnet32_cifar", pretrained=tmp_path / "own.pth")


def test_there_are_no_weights() -> None:
    with pytest.raises(ConfigError, match="no pretrained weights for 'resnet32_cifar'"):
        build_backbone("resnet32_cifar", pretrained=True)
