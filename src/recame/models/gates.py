"""The attention layers and gates of a network, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import ExpertOutput
from recame.models import MultiExpertClassifier, RegionalChannelAttention


def attention_layers(
    model: MultiExpertClassifier,
) -> list[tuple[int, int | None, RegionalChannelAttention]]:
    """(stage, expert, the stage's last attention layer); shared stages first, without expert."""
    parts = [(None, 0, model.trunk), *((e, len(model.trunk), t) for e, t in enumerate(model.tails))]
    return [
        (number, expert, layers[-1])
        for expert, first, part in parts
        for number, stage in enumerate(part.children(), first)
        if (layers := [m for m in stage.modules() if isinstance(m, RegionalChannelAttention)])
    ]


def gate_grid(model: MultiExpertClassifier) -> tuple[int, int]:
    """Rows and columns of a model's regions; (1, 1) for attention over the whole map."""
    plan = model.architecture
    return plan.regions if plan.attention == "regional" else (1, 1)


@contextmanager
def reading_gates(layers: Sequence[RegionalChannelAttention]) -> Iterator[list[list[Tensor]]]:
    """Collect the gates (B, C, R, S) of each layer for every batch within the block."""
    read: list[list[Tensor]] = [[] for _ in layers]

    def read_gates(found: list[Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, RegionalChannelAttention)
        found.append(module.gates(inputs[0]))

    handles = [
        layer.register_forward_pre_hook(partial(read_gates, found))
        for layer, found in zip(layers, read, strict=True)
    ]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def forward_with_gates(model: MultiExpertClassifier, images: Tensor) -> tuple[ExpertOutput, Tensor]:
    """A forward pass, and the mean gates of each gated stage and region.

    Args:
        model: with regional or channel attention.
        images: (B, C, H, W) in [0, 1].

    Returns:
        The model's output, and mean gates (B, S, R): from the last attention of each of the S
        stages that have one, the mean over channels and experts for each of the grid's R regions.
    """
    layers, grid = attention_layers(model), gate_grid(model)
    with reading_gates([layer for _, _, layer in layers]) as read:
        output: ExpertOutput = model(images)
    stages: dict[int, list[Tensor]] = {}
    for (stage, _, _), (gates,) in zip(layers, read, strict=True):
        means = gates.mean(1, keepdim=True)
        if means.shape[2:] != grid:  # a map smaller than the grid
            means = functional.interpolate(means, grid)
        stages.setdefault(stage, []).append(means.flatten(1))
    return output, torch.stack([torch.stack(of).mean(0) for of in stages.values()], 1)


def every_attention(model: nn.Module) -> list[RegionalChannelAttention]:
    """All attention layers of a network, not only the last one of each stage."""
    return [m for m in model.modules() if isinstance(m, RegionalChannelAttention)]


def gate_spread(gates: Sequence[Tensor]) -> dict[str, Tensor]:
    """Measure whether gates have an effect: their mean, spread, and variation between images.

    Args:
        gates: (B, C, R, S) of each layer, at least one; all gates have equal weight.

    Returns:
        () each: `gate_mean`; `gate_std`, over layers, channels, regions and images;
        `gate_varies`, the standard deviation over images, averaged over all other axes.
    """
    flat = torch.cat([layer.float().flatten() for layer in gates])
    varies = torch.cat([layer.float().std(0, correction=0).flatten() for layer in gates])
    return {
        "gate_mean": flat.mean(),
        "gate_std": flat.std(correction=0),
        "gate_varies": varies.mean(),
    }
