"""timm backbones that are cut into stages, with attention in their blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recame.config import as_size
from recame.errors import ConfigError
from recame.models.cutting import Cut, cut_into_stages
from recame.models.depthwise import replace_depthwise
from recame.models.pretrained import (
    PACKAGED_BACKBONE,
    Pretrained,
    create_timm_model,
    register_backbone,
)
from recame.models.regional_attention import make_attention
from recame.models.vision_transformer import (
    cut_is_exact,
    cut_transformer,
    is_cuttable,
    num_stages_of,
    pooled_channels,
)
from recame.models.whole_network import as_one_stage
from recame.plugins import Plugin

#: Sides of the image on which a network is tried, and of images that most timm networks expect.
_SIDE, _NATIVE = 64, 224


class StagedBackbone(nn.Module):
    """A network as a list of stages.

    The stem belongs to the first stage, a final convolution or normalisation to the last.

    Args:
        stages: each maps (B, c, H, W) to the next stage's input.
        stage_channels: number of channels of each stage's output that feed the head.
        pooled: which channels these are; None: all.
    """

    def __init__(
        self, stages: list[nn.Sequential], stage_channels: list[int], pooled: slice | None = None
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.stage_channels, self.pooled = stage_channels, pooled

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) normalised images to (B, c, h, w), the last stage's output."""
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
    origin: Plugin | None = None,
) -> StagedBackbone:
    """Build a timm network, cut it into stages and insert attention.

    In the ResNet family, attention sits in every residual block, between its last batch norm and
    the addition (timm's slot for attention). In other families it follows each stage, before a
    final convolution or normalisation. With pretrained weights it starts as the identity. A vision
    transformer is cut into four groups of blocks (`recame.models.vision_transformer`), whose
    attention sees the grid of patches. A network that cannot be cut is one stage
    (`recame.models.whole_network`), followed by attention if its output is a map.

    Deviations from timm: the MobileNetV3 family's head convolution, which follows the pooling, is
    left out; ConvNeXt's final norm acts on the map, before the pooling.

    Args:
        name: a timm name, with or without a tag.
        pretrained: True (timm hub), False, `package` (EfficientNet-Lite0, no network), or a file
            of weights in timm's names (.safetensors, .pth, .pt).
        in_channels: 1 or 3; for 1 the stem's weights are summed over the colours.
        attention: `none`, `regional`, `channel` or `squeeze_excite`.
        regions: grid of the regional attention.
        reduction: factor that reduces the attention's hidden width.
        gate_start: start value of gates, which are divided by it; None: they are not divided.
        num_stages: number of first stages that are used, with their weights; 0: all. A final
            convolution or norm after the last stage is dropped with it.
        pooling: input of the head for a vision transformer: the `average` of the patches, the
            class `token`, or `both`.
        image_size: height and width; a vision transformer's positions are resampled to it once.
            None: the size of its weights.
        open_gates: whether attention starts as the identity also without pretrained weights.
        origin: object that registers a custom backbone with timm.

    Raises:
        ConfigError: unknown name, a hub that cannot be reached, `package` for another backbone,
            more stages than exist, a class token for a network without one, images of a size that
            the network does not take, or attention on a network without an output map.
        CheckpointError: a file of weights is missing, damaged or of another network.
        PluginError: a custom backbone cannot be imported.
    """
    register_backbone(origin)
    own_arguments = {} if origin is None else origin.init_args

    def make(**more: Any) -> nn.Module:
        made = create_timm_model(name, pretrained, in_channels, {**own_arguments, **more})
        replace_depthwise(made)
        return made

    model = make()
    start = open_gates or pretrained is not False

    def module(width: int) -> nn.Module | None:
        return make_attention(attention, width, regions, reduction, start, gate_start)

    if is_cuttable(model) and (image_size is None or _fits(model, image_size)):
        staged = _staged_transformer(model, name, module, num_stages, pooling, in_channels)
        if staged is not None:
            return staged
    if pooling != "average":
        raise ConfigError(
            f"model.pooling={pooling}, but {name} has no class token: set model.pooling=average."
        )
    size = (_SIDE, _SIDE)
    cut = cut_into_stages(model, in_channels, size)
    if cut is None:
        model, size = _taking(model, make, name, in_channels, image_size)
        cut = cut_into_stages(model, in_channels, size)
    if cut is None:
        return _whole(model, name, module, num_stages, in_channels, size)
    return _staged(model, name, cut, module, num_stages)


def _staged(
    model: nn.Module,
    name: str,
    cut: Cut,
    module: Callable[[int], nn.Module | None],
    num_stages: int,
) -> StagedBackbone:
    """A network that was cut, with attention in the slots of its blocks or after its stages."""
    parts, channels = cut.parts, cut.channels
    if not _fill_slots(model, module):
        for part, width in zip(parts, channels, strict=True):
            if (gate := module(width)) is not None:
                part.append(gate)
    _check_num_stages(num_stages, len(parts), name)
    if 0 < num_stages < len(parts):
        stages = [nn.Sequential(*part) for part in parts[:num_stages]]
        return StagedBackbone(stages, channels[:num_stages])
    parts[-1] += cut.tail
    head_norm = getattr(getattr(model, "head", None), "norm", None)
    if hasattr(model, "norm_pre") and head_norm is not None:
        parts[-1].append(head_norm)
    channels[-1] = cut.out_channels
    return StagedBackbone([nn.Sequential(*part) for part in parts], channels)


def _whole(
    model: nn.Module,
    name: str,
    module: Callable[[int], nn.Module | None],
    num_stages: int,
    in_channels: int,
    size: tuple[int, int],
) -> StagedBackbone:
    """A network of one stage, with attention behind it where it leaves a map."""
    _check_num_stages(num_stages, 1, name)
    try:
        stage, width = as_one_stage(model, in_channels, size)
    except Exception as error:
        raise ConfigError(
            f"Backbone {name!r} gives no features that a classifier can be put on "
            f"({_told(error)}): choose another model.backbone, for example resnet50 or "
            f"{PACKAGED_BACKBONE}."
        ) from error
    gate = module(width)
    if gate is not None and stage.layout == "pooled":
        raise ConfigError(
            f"model.attention weighs places of a map, and {name} leaves none before its own "
            "pooling: set model.attention=none, or choose another model.backbone."
        )
    return StagedBackbone([nn.Sequential(stage, *([] if gate is None else [gate]))], [width])


def _taking(
    model: nn.Module,
    make: Callable[..., nn.Module],
    name: str,
    in_channels: int,
    image_size: tuple[int, int] | None,
) -> tuple[nn.Module, tuple[int, int]]:
    """The network, and an image size that it takes: a small one, else the images', else its own.

    A network for images of one fixed size is built again for `image_size`.

    Raises:
        ConfigError: the network does not take images of that size.
    """
    if _takes(model, in_channels, (_SIDE, _SIDE)) is None:
        return model, (_SIDE, _SIDE)
    settings = getattr(model, "default_cfg", None) or {}
    native = tuple(settings.get("input_size", (3, _NATIVE, _NATIVE))[1:])
    size = image_size or native
    if (reason := _takes(model, in_channels, size)) is None:
        return model, size
    try:
        other = make(img_size=size)
        reason = _takes(other, in_channels, size)
    except Exception as error:  # noqa: BLE001 - not every family has the argument
        other, reason = model, _told(error)
    if reason is None:
        return other, size
    raise ConfigError(
        f"{name} does not take images of {size[0]} x {size[1]} pixels ({reason}): set data.size="
        f"{as_size(native)}, the size that it is made for, or choose another model.backbone."
    )


@torch.no_grad()
def _takes(model: Any, in_channels: int, size: tuple[int, int]) -> str | None:
    """None if a network takes images of a size, else the reason why not."""
    model.eval()
    try:
        model.forward_features(torch.zeros(1, in_channels, *size))
    except Exception as error:  # noqa: BLE001 - they refuse in any way
        return _told(error)
    finally:
        model.train()
    return None


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _fits(model: Any, image_size: tuple[int, int]) -> bool:
    """Let a vision transformer take images of a size; False if its positions cannot follow."""
    sides = zip(image_size, model.patch_embed.patch_size, strict=True)
    try:
        model.set_input_size(img_size=tuple(-(-side // patch) * patch for side, patch in sides))
    except Exception:  # noqa: BLE001 - families differ in what they can resample
        return False
    return True


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
    in_channels: int,
) -> StagedBackbone | None:
    """A timm vision transformer in stages; None if these compute something else."""
    _check_num_stages(num_stages, num_stages_of(model), name)
    pooled = pooled_channels(model, pooling, name)
    if not cut_is_exact(model, in_channels):
        return None
    stages = cut_transformer(model, module, num_stages, gate_last=pooling != "token")
    return StagedBackbone(stages, [pooled.stop - pooled.start] * len(stages), pooled)


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
