"""What a loss that trains experts offers, and the sum that its terms become."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from recame.contracts import ExpertOutput, LossResult
from recame.errors import PluginError
from recame.plugins import Plugin

#: Class indices (B,) of a batch and their weight, one number or (B,); a mixed batch has two.
Labels = Sequence[tuple[Tensor, Tensor | float]]


class TrainingLoss(nn.Module):
    """What trains experts: the `Objective`, or a loss of one's own under the same interface.

    A loss may have a memory, which is part of a checkpoint where it lies in persistent buffers.
    `forward` leaves it as it is: what has been shown is told by `remember`, once a step, so that a
    mixed batch, whose loss is asked for each of its labels, is remembered once.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @property
    def remembers(self) -> bool:
        """Whether it has a memory, and must be told what has been shown."""
        return False

    def set_deferred(self, active: bool) -> None:
        """Called at each epoch's start: whether deferred re-weighting has begun."""

    def remember(self, output: ExpertOutput, labels: Labels) -> None:
        """Take a training batch into the memory; called after its loss, if there is a memory.

        Args:
            output: logits (B, E, C) and features (B, E, D), of all processes where several train.
            labels: class indices (B,) in [0, C) and their weight in [0, 1].
        """

    def forget(self) -> None:
        """Begin anew, as if nothing had been shown."""

    def workings(self, output: ExpertOutput, target: Tensor) -> dict[str, Tensor]:
        """Whether the terms do anything on a batch: () numbers by name; none unless overridden.

        Args:
            output: logits (B, E, C) and features (B, E, D).
            target: (B,) class indices in [0, C).
        """
        return {}

    def forward(self, output: ExpertOutput, target: Tensor) -> LossResult:
        """The loss of one batch.

        Args:
            output: logits (B, E, C) and features (B, E, D).
            target: (B,) class indices in [0, C).
        """
        raise NotImplementedError


#: Makes a loss from the (C,) training counts, the number of experts and the (C,) prior that the
#: sampler shows.
LossFactory = Callable[[Sequence[int], int, Tensor], TrainingLoss]


def own_loss(
    plugin: Plugin, counts: Sequence[int], num_experts: int, prior: Tensor
) -> TrainingLoss:
    """What `objective.loss` names, made with what a `LossFactory` gets and its `init_args`.

    Raises:
        PluginError: it cannot be imported or made, or is no `TrainingLoss`.
    """
    made = plugin.make("objective.loss", counts, num_experts, prior)
    if not isinstance(made, TrainingLoss):
        raise PluginError(
            f"objective.loss names {plugin.class_path}, which makes a {type(made).__name__}: "
            "training asks more of a loss than that; derive it from recame.losses.TrainingLoss."
        )
    return made


def weighted_total(weights: dict[str, float], terms: dict[str, Tensor]) -> LossResult:
    """The sum of the terms that were computed, each times its weight, and these parts."""
    weighted = {name: weight * terms[name] for name, weight in weights.items() if name in terms}
    total = torch.stack(list(weighted.values())).sum()
    return LossResult(total, {name: term.detach() for name, term in weighted.items()})


def wide(values: Tensor) -> Tensor:
    """Values in float32 at least: what a loss computes in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
