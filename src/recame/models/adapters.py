"""Lightweight fine-tuning: which parts of a pretrained backbone learn, and adapters for it."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from recame.errors import ConfigError, MissingDependencyError
from recame.models.backbone import StagedBackbone
from recame.models.regional_attention import RegionalChannelAttention
from recame.models.vision_transformer import TransformerStage

#: Least width of adapters if `rank` is open. LIFT's rule gives 1 for a handful of classes: enough
#: for photographs, too little for images unlike those that the backbone has seen.
MIN_RANK = 4

_LORA_TARGETS = re.compile(r".*\.blocks\.\d+\.(attn\.(qkv|[qkv]_proj|proj)|mlp\.fc\w+)")


class AdaptedMlp(nn.Module):
    """A block's MLP with a parallel bottleneck (Chen et al., AdaptFormer, NeurIPS 2022, eq. 4).

    `mlp(x) + scale * up(relu(down(x)))`; `up` starts at 0, so the output does not change at first.
    Deviations: `scale` is learnt, as in LIFT; the input is normalised by the block's own frozen
    norm; a block's layer scale (DINOv2) multiplies both branches.

    Args:
        mlp: maps (..., C) to (..., C).
        width: C.
        rank: of the bottleneck.
    """

    def __init__(self, mlp: nn.Module, width: int, rank: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        self.scale = nn.Parameter(torch.full((1,), 0.1))
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.mlp(x) + self.scale * self.up(self.down(x).relu())  # type: ignore[no-any-return]


def tune(backbone: StagedBackbone, kind: str, rank: int | None, num_classes: int) -> None:
    """Freeze a backbone's weights and insert adapters; the outputs do not change.

    Regional attention, which no pretrained backbone has, learns with every kind.

    Args:
        backbone: with its pretrained weights.
        kind: `full` (everything learns); `lora` (Hu et al., ICLR 2022, on every linear layer of
            the blocks, by peft, scaled by 1); `adapter` (`AdaptedMlp` in every block); `bias` (Ben
            Zaken et al., BitFit, ACL 2022); `head` (nothing).
        rank: of LoRA or of the adapters' bottleneck; None: `lift_rank`.
        num_classes: C.

    Raises:
        ConfigError: the kind is unknown, or the backbone has no transformer blocks to adapt.
        MissingDependencyError: peft is not installed, for `lora`.
    """
    if kind not in {"full", "lora", "adapter", "bias", "head"}:
        raise ConfigError(
            f"Unknown model.tuning={kind!r}: choose full, lora, adapter, bias or head."
        )
    if kind == "full":
        return
    backbone.requires_grad_(False)
    if kind == "lora":
        _insert_lora(backbone, rank, num_classes)
    elif kind == "adapter":
        _insert_adapters(backbone, rank, num_classes)
    elif kind == "bias":
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    for module in backbone.modules():
        if isinstance(module, RegionalChannelAttention):
            module.requires_grad_(True)


def lift_rank(num_classes: int, width: int, weights_per_rank: int) -> int:
    """Largest power-of-two rank with no more adapter weights than a linear classifier has.

    For adapters with 2 C weights per rank in each of L blocks this is LIFT's 2^floor(log2(K / 2L))
    (Shi et al., ICML 2024), here at least `MIN_RANK`. LIFT uses the same number for LoRA; here
    LoRA's own weights are counted, so it stays as light.

    Args:
        num_classes: K.
        width: C.
        weights_per_rank: number of weights per rank, of all adapters together.

    Examples:
        >>> lift_rank(1000, 768, 12 * 2 * 768), lift_rank(6, 768, 12 * 2 * 768)
        (32, 4)
    """
    affordable = num_classes * width / weights_per_rank
    return max(MIN_RANK, 1 << max(0, math.floor(math.log2(affordable))))


def rank_of(model: nn.Module) -> int | None:
    """The rank of a network's adapters or LoRA layers; None if it has none."""
    first = (".mlp.down.weight", ".lora_A.default.weight")
    return next((len(p) for name, p in model.named_parameters() if name.endswith(first)), None)


def merge_lora(model: nn.Module) -> None:
    """Add LoRA's products to their base weights, in place, and remove the LoRA layers.

    Raises:
        MissingDependencyError: peft is not installed.
    """
    layer_type = _peft().tuners.lora.LoraLayer
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, layer_type):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def _insert_lora(backbone: StagedBackbone, rank: int | None, num_classes: int) -> None:
    found = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear)
        and _LORA_TARGETS.fullmatch(name)
        # EVA uses the weight of a fused projection without its layer, and would bypass LoRA.
        and not (
            name.endswith("qkv")
            and getattr(backbone.get_submodule(name.rpartition(".")[0]), "q_bias", None) is not None
        )
    }
    width = _width(backbone, "lora", bool(found))
    weights = sum(m.in_features + m.out_features for m in found.values())
    chosen, peft = rank or lift_rank(num_classes, width, weights), _peft()
    settings = peft.LoraConfig(r=chosen, lora_alpha=chosen, target_modules=list(found))
    peft.inject_adapter_in_model(settings, backbone)


def _insert_adapters(backbone: StagedBackbone, rank: int | None, num_classes: int) -> None:
    stages = [m for m in backbone.modules() if isinstance(m, TransformerStage)]
    blocks = [block for stage in stages for block in stage.blocks]
    found = bool(blocks) and all(isinstance(getattr(b, "mlp", None), nn.Module) for b in blocks)
    width = _width(backbone, "adapter", found)
    chosen = rank or lift_rank(num_classes, width, 2 * width * len(blocks))
    for block in blocks:
        block.mlp = AdaptedMlp(block.mlp, width, chosen)  # type: ignore[arg-type]


def _width(backbone: StagedBackbone, kind: str, found: bool) -> int:
    """Width C of a transformer whose blocks can take adapters."""
    widths = [m.width for m in backbone.modules() if isinstance(m, TransformerStage)]
    if not found or not widths:
        raise ConfigError(
            f"model.tuning={kind} adapts the blocks of a vision transformer, and this backbone has "
            "no known ones: choose one such as vit_base_patch16_clip_224 (model.backbone), or "
            "model.tuning=full, bias or head."
        )
    return widths[0]


def _peft() -> Any:
    try:
        import peft
        import peft.tuners.lora
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingDependencyError("peft", "lift", "for model.tuning=lora") from error
    return peft
