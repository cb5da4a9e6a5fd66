from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from recame.errors import CheckpointError, ConfigError
from recame.models import (
    RegionalChannelAttention,
    StagedBackbone,
    build_backbone,
    pretrained_mean_std,
)
from recame.models.whole_network import as_one_stage


def gates(backbone: torch.nn.Module) -> list[RegionalChannelAttention]:
    return [m for m in backbone.modules() if isinstance(m, RegionalChannelAttention)]


@pytest.mark.parametrize(
    ("name", "channels", "num_gates"),
    [
        ("resnet10t", [64, 128, 256, 512], 4),
        ("resnet18", [64, 128, 256, 512], 8),
        ("seresnet18", [64, 128, 256, 512], 8),
        ("convnext_atto", [40, 80, 160, 320], 4),
        ("mobilenetv3_small_050", [8, 16, 24, 24, 48, 288], 6),
        ("tf_efficientnet_lite0", [16, 24, 40, 80, 112, 192, 1280], 7),
        ("regnetx_002", [24, 56, 152, 368], 4),
        ("densenet121", [64, 256, 512, 1024, 1024], 5),
    ],
)
def test_families(name: str, channels: list[int], num_gates: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, attention="regional").eval()
    assert backbone.stage_channels == channels
    assert len(gates(backbone)) == num_gates
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for stage, width in zip(backbone.stages, channels, strict=True):
            x = stage(x)
            assert x.shape[:2] == (1, width)
    assert torch.isfinite(x).all()


def test_resnet_gates_sit_between_the_last_norm_and_the_addition() -> None:
    torch.manual_seed(0)
    plain = build_backbone("resnet10t").eval()
    torch.manual_seed(0)
    gated = build_backbone("resnet10t", attention="regional").eval()
    for gate in gates(gated):
        torch.nn.init.zeros_(gate.fc2.weight)
        torch.nn.init.constant_(gate.fc2.bias, -50.0)
    for backbone in (plain, gated):
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
    block = gated.stages[0][-1][0]
    x = torch.rand(1, 64, 8, 8)
    # A closed gate leaves the residual alone.
    torch.testing.assert_close(block(x), block.downsample(x) if block.downsample else x)
    other = plain.stages[0][-1][0]
    assert not torch.allclose(other(x), block(x))


@pytest.mark.parametrize("kind", ["channel", "squeeze_excite", "none"])
def test_other_attentions(kind: str) -> None:
    backbone = build_backbone("mobilenetv3_small_050", attention=kind, reduction=4)
    assert [g.regions for g in gates(backbone)] == [(1, 1)] * (0 if kind == "none" else 6)


def test_stages_compute_what_timm_does() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0).eval()
    torch.manual_seed(0)
    backbone = build_backbone("resnet10t").eval()
    backbone.load_state_dict(
        dict(zip(backbone.state_dict(), model.state_dict().values(), strict=True))
    )
    x = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(backbone(x), model.forward_features(x))


@pytest.fixture(scope="module")
def packaged() -> StagedBackbone:
    return build_backbone("tf_efficientnet_lite0", pretrained="package")


def test_packaged_weights(packaged: StagedBackbone) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    grey = build_backbone("tf_efficientnet_lite0", pretrained="package", in_channels=1)
    with torch.no_grad():
        expected = packaged.eval()(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.eval()(x), expected, rtol=1e-3, atol=1e-4)
    # Trained statistics, not those of a random start.
    assert packaged.stages[0][1].running_var.std() > 0.1


def test_attention_leaves_pretrained_features_as_they_are(packaged: StagedBackbone) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    gated = build_backbone("tf_efficientnet_lite0", pretrained="package", attention="regional")
    with torch.no_grad():
        before, after = packaged.eval()(x).flatten(), gated.eval()(x).flatten()
    assert torch.cosine_similarity(before, after, dim=0) > 0.99


def test_package_is_one_backbone_only() -> None:
    for act in (
        lambda: build_backbone("resnet18", pretrained="package"),
        lambda: pretrained_mean_std("resnet18", "package", 3),
    ):
        with pytest.raises(ConfigError, match=r"tf_efficientnet_lite0.*'resnet18'.*true.*false"):
            act()


def test_missing_hub_names_two_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        build_backbone("resnet10t", pretrained=True)
    assert "model.pretrained=/path/to/weights.safetensors" in str(caught.value)
    assert "model.backbone=tf_efficientnet_lite0 model.pretrained=package" in str(caught.value)


def test_unreachable_hub_gives_up_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append((url, timeout))
            raise ConnectionError

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="Either give a local file"):
        build_backbone("resnet10t", pretrained=True)
    assert asked == [(constants.ENDPOINT, 5.0)]
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("num_classes", [0, 7])
def test_weights_from_a_file(suffix: str, num_classes: int, tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=num_classes)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    backbone = build_backbone("resnet10t", pretrained=path, in_channels=1, attention="regional")
    stem = backbone.stages[0][0][0].weight
    torch.testing.assert_close(stem, model.conv1[0].weight.sum(1, keepdim=True))
    last = backbone.stages[-1][0][0]
    torch.testing.assert_close(last.conv2.weight, model.layer4[0].conv2.weight)
    assert last.se.fc2.bias.tolist() == [3.0] * 512


def test_wrong_weights_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No weights file"):
        build_backbone("resnet10t", pretrained=tmp_path / "none.pth")
    for name, content in (("a.pth", b"text"), ("a.safetensors", b"text"), ("b.pth", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            build_backbone("resnet10t", pretrained=path)
        assert "weights_only" not in str(caught.value)
    path = tmp_path / "empty.pth"
    torch.save({}, path)
    with pytest.raises(CheckpointError, match="no table of named tensors"):
        build_backbone("resnet10t", pretrained=path)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), path)
    with pytest.raises(CheckpointError, match="do not fit backbone 'resnet10t'"):
        build_backbone("resnet10t", pretrained=path)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"'resnet5O'.*resnet50"):
        build_backbone("resnet5O")
    with pytest.raises(ConfigError, match="'hf-hub:some/where'"):
        build_backbone("hf-hub:some/where")
    with pytest.raises(ConfigError, match=r"'resnet18.none'.*resnet18\.a1_in1k"):
        build_backbone("resnet18.none")
    with pytest.raises(ConfigError, match=r"no pretrained weights for 'resnet10x'|Unknown"):
        build_backbone("resnet10x", pretrained=True)


def test_normalisation_of_the_weights() -> None:
    mean, std = pretrained_mean_std("tf_efficientnet_lite0", "package", 3)
    assert mean == pytest.approx((127 / 255,) * 3)
    assert std == pytest.approx((128 / 255,) * 3)
    assert pretrained_mean_std("resnet18", True, 3)[0] == (0.485, 0.456, 0.406)
    mean, std = pretrained_mean_std("resnet18", False, 1)
    assert mean == pytest.approx((0.449,), abs=1e-6)
    assert std == pytest.approx((0.226,), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "num_stages"),
    [
        ("edgenext_xx_small", (64, 96), 4),
        ("swin_s3_tiny_224", (64, 64), 4),
        ("mixer_s32_224", (64, 64), 1),
    ],
)
def test_what_no_family_is_known_of(name: str, size: tuple[int, int], num_stages: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, attention="regional", image_size=size).eval()
    assert len(backbone.stage_channels) == num_stages
    assert len(gates(backbone)) == num_stages
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        found = backbone(x)
    assert found.shape[:2] == (2, backbone.stage_channels[-1])
    assert bool(found.isfinite().all())


def test_a_whole_network_gives_what_timm_pools() -> None:
    torch.manual_seed(0)
    model = timm.create_model("levit_128s", num_classes=0).eval()
    stage, width = as_one_stage(model, 3, (224, 224))
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = model.eval().forward_head(model.forward_features(x), pre_logits=True)
        found = stage(x).mean((2, 3))
    assert found.shape == (2, width)
    torch.testing.assert_close(found, expected)


def test_only_the_attention_of_a_network_without_maps_is_refused() -> None:
    name, size = "cait_xxs24_224", (64, 64)
    with pytest.raises(ConfigError, match=r"cait.* leaves none .*model\.attention=none"):
        build_backbone(name, attention="regional", image_size=size)
    assert build_backbone(name, image_size=size).stage_channels == [192]


def test_a_size_that_a_network_does_not_take() -> None:
    with pytest.raises(ConfigError, match=r"does not take images of 64 x 64 .*data\.size=256"):
        build_backbone("halonet_h1", image_size=(64, 64))
