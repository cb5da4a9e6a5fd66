"""Start a new network from a trained one: its stages, with a new head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from recame.contracts import PreprocessSpec
from recame.errors import ConfigError
from recame.models.adapters import AdaptedMlp, rank_of
from recame.models.architecture import Architecture
from recame.models.experts import MultiExpertClassifier
from recame.models.regional_attention import RegionalChannelAttention
from recame.models.vision_transformer import PatchEmbedding


def continued(
    source: MultiExpertClassifier,
    architecture: Architecture,
    num_classes: int,
    spec: PreprocessSpec,
) -> MultiExpertClassifier:
    """A new network whose stages start from a trained one, with a newly initialised head.

    Its experts take the source's experts in order, and further ones take the first again. If there
    are fewer experts, they take the last ones. If they share stages that the source's experts do
    not share, all take the last expert: an expert branch fits only its own first stages, and in an
    ensemble the first expert has only seen the pretraining. LoRA's products are part of the weights
    that are taken.

    Args:
        source: any network of recame; is not changed.
        architecture: of the new network. Attention of the same kind is taken too; other attention
            starts as the identity. Adapters are kept, with the source's rank if this is open.
        num_classes: C of the new network.
        spec: of the new network, with the same number of channels. With the source's `mean` and
            `std` the stages see the inputs that they were trained on.

    Raises:
        ConfigError: the source has another backbone, fewer stages, or adapters that the new network
            does not have.
    """
    assert spec.channels == source.spec.channels
    if source.architecture.tuning == "lora":
        source = source.merged()
    theirs = source.architecture
    if architecture.backbone.partition(".")[0] != theirs.backbone.partition(".")[0]:
        raise ConfigError(
            f"model.pretrained holds a {theirs.backbone}, whose weights do not fit "
            f"model.backbone={architecture.backbone}: set model.backbone=auto, or another "
            "model.pretrained."
        )
    if architecture.tuning == theirs.tuning == "adapter" and architecture.tuning_rank is None:
        architecture = replace(architecture, tuning_rank=rank_of(source))
    model = MultiExpertClassifier(architecture, num_classes, spec, open_gates=True)
    if not take_stages(model, source, _donors(model, source)):
        stages = f"model.stages={theirs.stages}, " if theirs.stages else ""
        raise ConfigError(
            f"The {theirs.backbone} of model.pretrained does not fit this one: it has "
            f"{source.num_stages} stages and model.tuning={theirs.tuning}, and {model.num_stages} "
            f"with model.tuning={architecture.tuning} are asked for. Set {stages}"
            f"model.tuning={theirs.tuning} model.tuning_rank={rank_of(source) or 'auto'}."
        )
    return model


@torch.no_grad()
def take_stages(
    model: MultiExpertClassifier, source: MultiExpertClassifier, experts: Sequence[int]
) -> bool:
    """Copy the weights of another network's first stages into a network.

    Attention is copied if both have the same; else the network keeps its own. It also keeps its
    LoRA layers, and adapters that the source does not have.

    Args:
        model: changed in place, if the weights fit.
        source: without LoRA.
        experts: index of the source's expert for each expert; shared stages come from the first.

    Returns:
        Whether the weights fit; if not, nothing is changed.
    """
    ours, theirs = model.architecture, source.architecture
    assert theirs.tuning != "lora"
    if ours.backbone.partition(".")[0] != theirs.backbone.partition(".")[0]:
        return False
    attention, adapters = ours.same_attention(theirs), theirs.tuning == "adapter"
    pairs: list[tuple[Tensor, Tensor]] = []
    # Copy the first expert last, so that shared stages come from it.
    for expert, donor in reversed(list(enumerate(experts))):
        own, others = model.stages(expert), source.stages(donor)[: model.num_stages]
        grid = next((m.grid for m in own[0].modules() if isinstance(m, PatchEmbedding)), None)
        targets = list(_weights(own, grid, attention=attention, adapters=adapters))
        found = list(_weights(others, grid, attention=attention, adapters=adapters))
        if [(name, t.shape) for name, t in targets] != [(name, t.shape) for name, t in found]:
            return False
        pairs += [(t, value) for (_, t), (_, value) in zip(targets, found, strict=True)]
    for target, value in pairs:
        target.copy_(value)
    return True


def _donors(model: MultiExpertClassifier, source: MultiExpertClassifier) -> list[int]:
    """For each expert of the model, the source's expert whose stages it takes."""
    count, present = model.num_experts, source.num_experts
    if source.architecture.shared_stages < model.architecture.shared_stages:
        return [present - 1] * count
    first = max(0, present - count)
    return [first + e if first + e < present else 0 for e in range(count)]


def _weights(
    stages: Sequence[nn.Module],
    grid: tuple[int, int] | None,
    *,
    attention: bool,
    adapters: bool,
) -> Iterator[tuple[str, Tensor]]:
    """Weights and statistics in order, each with the last part of its name.

    The earlier parts of a name depend on whether attention was inserted.
    """
    modules = nn.ModuleList(stages)
    skipped: list[str] = []
    positions: dict[str, Tensor | None] = {}
    for name, module in modules.named_modules():
        if isinstance(module, RegionalChannelAttention) and not attention:
            skipped.append(f"{name}.")
        elif isinstance(module, AdaptedMlp) and not adapters:
            skipped += [f"{name}.{part}" for part in ("down.", "up.", "scale")]
        elif name.rpartition(".")[2].startswith("lora_"):
            skipped.append(f"{name}.")
        elif isinstance(module, PatchEmbedding) and grid is not None:
            positions[f"{name}.pos_embed"] = module.positions(grid)
    for name, tensor in modules.state_dict().items():
        if not name.startswith(tuple(skipped)):
            resampled = positions.get(name)
            yield name.rpartition(".")[2], tensor if resampled is None else resampled
