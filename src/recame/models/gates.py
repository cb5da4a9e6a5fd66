"""The attention layers and gates of a network, stage by stage."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import ExpertOutput
from recame.models import MultiExpertClassifier, RegionalChannelAttention


def attention_layers(
    model: MultiExpertClassifier,
) -> list[tuple[int, int | None, RegionalChannelAttention]]:
    """(stage from 1, expert, the stage's last attention layer)."""
    shared = len(model.trunk)
    places: list[tuple[int, int | None, nn.Module]] = [
        (number, None, stage) for number, stage in enumerate(model.trunk, 1)
    ]
    for expert, tail in enumerate(model.tails):
        assert isinstance(tail, nn.ModuleList)
        places += [(number, expert, stage) for number, stage in enumerate(tail, shared + 1)]
    found = []
    for number, owner, stage in places:
        layers = [m for m in stage.modules() if isinstance(m, RegionalChannelAttention)]
        if layers:
            found.append((number, owner, layers[-1]))
    return found


def expert_stages(model: MultiExpertClassifier, expert: int) -> list[nn.Module]:
    """An expert's stages, from the images on."""
    tail = model.tails[expert]
    assert isinstance(tail, nn.ModuleList)
    return [*model.trunk, *tail]


def forward_with_gates(model: MultiExpertClassifier, images: Tensor) -> tuple[ExpertOutput, Tensor]:
    """A forward, and the mean gates of each gated stage and region on the way.

    Args:
        model: with regional or channel attention.
        images: (B, C, H, W) in [0, 1].

    Returns:
        The model's output, and (B, S, R): of the last attention of each stage that has one, the
        mean over channels and experts for each of the grid's R regions.
    """
    layers = gated_stages(model)
    rows, cols = _grid(model)
    read: dict[int, list[Tensor]] = {stage: [] for stage in layers}

    def reader(stage: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, RegionalChannelAttention)
        gates = module.gates(inputs[0]).mean(1)
        if gates.shape[1:] != (rows, cols):  # a map smaller than the grid
            gates = functional.interpolate(gates[:, None], (rows, cols))[:, 0]
        read[stage].append(gates.flatten(1))

    handles = [
        layer.register_forward_pre_hook(partial(reader, stage))
        for stage, found in layers.items()
        for layer in found
    ]
    try:
        output: ExpertOutput = model(images)
    finally:
        for handle in handles:
            handle.remove()
    means = [torch.stack(gates).mean(0) for gates in read.values()]
    return output, torch.stack(means, 1)


def gated_stages(model: MultiExpertClassifier) -> dict[int, list[RegionalChannelAttention]]:
    """For each stage with attention its last attention module, one for each expert's own stage."""
    num_shared = len(model.trunk)
    found: dict[int, list[RegionalChannelAttention]] = {}
    for first, stages in ((0, model.trunk), *((num_shared, tail) for tail in model.tails)):
        assert isinstance(stages, nn.ModuleList)
        for number, stage in enumerate(stages, first):
            inside = [m for m in stage.modules() if isinstance(m, RegionalChannelAttention)]
            if inside:
                found.setdefault(number, []).append(inside[-1])
    return found


def _grid(model: MultiExpertClassifier) -> tuple[int, int]:
    plan = model.architecture
    return plan.regions if plan.attention == "regional" else (1, 1)
