"""timm backbones, cut into stages, with attention in their blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recame.errors import ConfigError
from recame.models.depthwise import replace_depthwise
from recame.models.pretrained import PACKAGED_BACKBONE, Pretrained, create_timm_model
from recame.models.regional_attention import make_attention
from recame.models.vision_transformer import (
    cut_is_exact,
    cut_transformer,
    is_cuttable,
    num_stages_of,
    pooled_channels,
)

_FAMILIES = "ResNet/ResNeXt, EfficientNet/MobileNet, ConvNeXt, RegNet, ResNetV2, DenseNet, VGG, ViT"


class StagedBackbone(nn.Module):
    """A network as a list of stages.

    The stem belongs to the first stage, a final convolution or normalisation to the last.

    Args:
        stages: each maps (B, c, H, W) to the next stage's input.
        stage_channels: channels of each stage's output that feed the head.
        pooled: which ones they are; None: all.
    """

    def __init__(
        self, stages: list[nn.Sequential], stage_channels: list[int], pooled: slice | None = None
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.stage_channels, self.pooled = stage_channels, pooled

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised images to (B, c, h, w), the last stage's map."""
        for stage in self.stages:
            x = stage(x)
        return x


def build_backbone(
    name: str,
    *,
    pretrained: Pretrained = False,
    in_channels: int = 3,
    attention: str = "none",
    regions: tuple[int, int] = (2, 2),
    reduction: int = 16,
    gate_start: float | None = None,
    num_stages: int = 0,
    pooling: str = "average",
    image_size: tuple[int, int] | None = None,
    open_gates: bool = False,
) -> StagedBackbone:
    """Build a timm network, cut it into stages and put attention into it.

    Attention sits in every residual block of the ResNet family, between its last batch norm and
    the addition (timm's slot for attention), and after each stage of other families, before a
    final convolution or normalisation. With pretrained weights it starts as the identity. A vision
    transformer is cut into four groups of blocks (`recame.models.vision_transformer`), whose
    attention sees the grid of patches.

    Deviations from timm: the MobileNetV3 family's head convolution, which follows the pooling, is
    left out; ConvNeXt's final norm acts on the map, before the pooling.

    Args:
        name: a timm name, with or without a tag.
        pretrained: True (timm hub), False, `package` (EfficientNet-Lite0, no network), or a file
            of weights in timm's names (.safetensors, .pth, .pt).
        in_channels: 1 or 3; for 1 the stem's weights are summed over the colours.
        attention: `none`, `regional`, `channel` or `squeeze_excite`.
        regions: grid of the regional attention.
        reduction: of the attention's hidden width.
        gate_start: where gates start, divided by it; None: they are not divided.
        num_stages: only the first so many stages, with their weights; 0: all. What follows the
            last stage (a final convolution or norm) goes with it.
        pooling: what of a vision transformer feeds the head: the `average` of the patches, the
            class `token`, or `both`.
        image_size: height and width, for which a vision transformer's positions are resampled
            once; None: those of its weights.
        open_gates: attention starts as the identity without pretrained weights too.

    Raises:
        ConfigError: unknown name or family, a hub that cannot be reached, `package` for another
            backbone, more stages than there are, or a class token where there is none.
        CheckpointError: a file of weights is missing, damaged or of another network.
    """
    model = create_timm_model(name, pretrained, in_channels)
    replace_depthwise(model)
    start = open_gates or pretrained is not False

    def module(width: int) -> nn.Module | None:
        return make_attention(attention, width, regions, reduction, start, gate_start)

    if is_cuttable(model):
        return _staged_transformer(
            model, name, module, num_stages, pooling, image_size, in_channels
        )
    if pooling != "average":
        raise ConfigError(
            f"model.pooling={pooling}, but {name} has no class token: set model.pooling=average."
        )
    parts, tails = _cut(model, name)
    channels, out_channels = _check_cut(model, parts, tails, name, in_channels)
    if not _fill_slots(model, module):
        for part, width in zip(parts, channels, strict=True):
            if (gate := module(width)) is not None:
                part.append(gate)
    _check_num_stages(num_stages, len(parts), name)
    if 0 < num_stages < len(parts):
        stages = [nn.Sequential(*part) for part in parts[:num_stages]]
        return StagedBackbone(stages, channels[:num_stages])
    parts[-1] += tails
    head_norm = getattr(getattr(model, "head", None), "norm", None)
    if hasattr(model, "norm_pre") and head_norm is not None:
        parts[-1].append(head_norm)
    channels[-1] = out_channels
    return StagedBackbone([nn.Sequential(*part) for part in parts], channels)


def _check_num_stages(num_stages: int, present: int, name: str) -> None:
    if not 0 <= num_stages <= present:
        raise ConfigError(
            f"model.stages={num_stages}, but {name} has {present} stages: give 1 to "
            f"{present}, or 0 for all."
        )


def _staged_transformer(
    model: Any,
    name: str,
    module: Callable[[int], nn.Module | None],
    num_stages: int,
    pooling: str,
    image_size: tuple[int, int] | None,
    in_channels: int,
) -> StagedBackbone:
    """A timm vision transformer in stages, if they compute what the network does."""
    _check_num_stages(num_stages, num_stages_of(model), name)
    pooled = pooled_channels(model, pooling, name)
    if image_size is not None:
        sides = zip(image_size, model.patch_embed.patch_size, strict=True)
        model.set_input_size(img_size=tuple(-(-side // patch) * patch for side, patch in sides))
    if not cut_is_exact(model, in_channels):
        raise _unsupported(name)
    stages = cut_transformer(model, module, num_stages, gate_last=pooling != "token")
    return StagedBackbone(stages, [pooled.stop - pooled.start] * len(stages), pooled)


def _cut(model: nn.Module, name: str) -> tuple[list[list[nn.Module]], list[nn.Module]]:
    """A network's modules in order, one list a stage, and what follows the last stage."""
    children = dict(model.named_children())

    def present(*names: str) -> list[nn.Module]:
        return [children[n] for n in names if n in children]

    if {"conv1", "layer1", "layer3"} <= children.keys():
        stages = present("layer1", "layer2", "layer3", "layer4")
        return _with_stem(present("conv1", "bn1", "act1", "maxpool"), stages), []
    if {"conv_stem", "blocks"} <= children.keys():
        tail = present("conv_head", "bn2") if "bn2" in children else []
        return _with_stem(
            present("conv_stem", "bn1", "act1"), list(children["blocks"].children())
        ), tail
    if {"stem", "stages"} <= children.keys():
        stages = list(children["stages"].children())
        return _with_stem(present("stem"), stages), present("norm_pre", "norm")
    if {"stem", "s1", "s4", "final_conv"} <= children.keys():
        return _with_stem(present("stem"), present("s1", "s2", "s3", "s4")), present("final_conv")
    if isinstance(children.get("features"), nn.Sequential):
        return _cut_features(model, children["features"]), []
    raise _unsupported(name)


def _with_stem(stem: list[nn.Module], stages: list[nn.Module]) -> list[list[nn.Module]]:
    return [[*stem, stages[0]], *([stage] for stage in stages[1:])]


def _cut_features(model: nn.Module, features: nn.Module) -> list[list[nn.Module]]:
    """Cut `model.features` where timm says that a resolution ends."""
    ends = {info["module"] for info in getattr(model, "feature_info", [])}
    parts: list[list[nn.Module]] = [[]]
    for name, module in features.named_children():
        # Experts share a stage's output: nobody may change it in place.
        for part in module.modules():
            if getattr(part, "inplace", False):
                part.inplace = False  # type: ignore[assignment]
        parts[-1].append(module)
        if f"features.{name}" in ends:
            parts.append([])
    return [part for part in parts if part]


def _unsupported(name: str) -> ConfigError:
    return ConfigError(
        f"Backbone {name!r} cannot be cut into stages: choose a model.backbone of a "
        f"supported family ({_FAMILIES}), for example resnet50 or {PACKAGED_BACKBONE}."
    )


@torch.no_grad()
def _check_cut(
    model: nn.Module, parts: list[list[nn.Module]], tails: list[nn.Module], name: str, channels: int
) -> tuple[list[int], int]:
    """Channels of each stage and of the end, if the stages compute what the network does."""
    model.eval()
    x = torch.linspace(-1, 1, channels * 64 * 64).view(1, channels, 64, 64)
    try:
        expected = model.forward_features(x)  # type: ignore[operator]
        widths = []
        for part in (*parts, tails):
            x = nn.Sequential(*part)(x)
            widths.append(int(x.shape[1]))
        same = x.ndim == 4 and x.shape == expected.shape and torch.allclose(x, expected, atol=1e-4)
    except (RuntimeError, TypeError, AssertionError, IndexError) as error:
        raise _unsupported(name) from error
    finally:
        model.train()
    if not same:
        raise _unsupported(name)
    return widths[:-1], widths[-1]


def _fill_slots(model: nn.Module, module: Any) -> bool:
    """Put attention into the slot of every residual block; False if the blocks have none."""
    layers = [getattr(model, f"layer{i}", None) for i in range(1, 5)]
    blocks = [block for layer in layers if isinstance(layer, nn.Module) for block in layer]  # type: ignore[attr-defined]
    norms = ["bn3" if hasattr(block, "bn3") else "bn2" for block in blocks]
    slotted = [hasattr(b, "se") and hasattr(b, n) for b, n in zip(blocks, norms, strict=True)]
    if not blocks or not all(slotted):
        return False
    for block, norm in zip(blocks, norms, strict=True):
        own, gate = block.se, module(getattr(block, norm).num_features)
        if gate is not None:
            block.se = gate if own is None else nn.Sequential(own, gate)
    return True
