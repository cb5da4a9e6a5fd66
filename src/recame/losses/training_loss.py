"""The interface of a loss that trains experts, and the weighted sum of its terms."""

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
    """Base class of losses that train experts: `Objective`, or a custom loss.

    A loss may have a memory, which is part of a checkpoint if it lies in persistent buffers.
    `forward` does not change it; `remember` does, once per step. So a mixed batch, whose loss is
    computed for each of its labels, is remembered once.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @property
    def remembers(self) -> bool:
        """Whether it has a memory, so that `remember` must be called."""
        return False

    def set_deferred(self, active: bool) -> None:
        """Called at each epoch's start: whether deferred re-weighting has begun."""

    def remember(self, output: ExpertOutput, labels: Labels) -> None:
        """Update the memory with a training batch; called after its loss, if there is a memory.

        Args:
            output: logits (B, E, C) and features (B, E, D), of all processes if several train.
            labels: class indices (B,) in [0, C) and their weight in [0, 1].
        """

    def forget(self) -> None:
        """Reset the memory to its start."""

    def workings(self, output: ExpertOutput, target: Tensor) -> dict[str, Tensor]:
        """Measures of whether the terms have an effect: () numbers by name; none by default.

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


#: Makes a loss from the (C,) training counts, the number of experts and the (C,) prior of the
#: sampler.
LossFactory = Callable[[Sequence[int], int, Tensor], TrainingLoss]


def own_loss(
    plugin: Plugin, counts: Sequence[int], num_experts: int, prior: Tensor
) -> TrainingLoss:
    """Build the loss that `objective.loss` names, from the arguments of a `LossFactory`.

    Raises:
        PluginError: it cannot be imported or built, or is not a `TrainingLoss`.
    """
    made = plugin.make("objective.loss", counts, num_experts, prior)
    if not isinstance(made, TrainingLoss):
        raise PluginError(
            f"objective.loss names {plugin.class_path}, which makes a {type(made).__name__}: "
            "training needs more methods; derive the class from recame.losses.TrainingLoss."
        )
    return made


def weighted_total(weights: dict[str, float], terms: dict[str, Tensor]) -> LossResult:
    """The weighted sum of the computed terms, and these weighted terms as its parts."""
    weighted = {name: weight * terms[name] for name, weight in weights.items() if name in terms}
    total = torch.stack(list(weighted.values())).sum()
    return LossResult(total, {name: term.detach() for name, term in weighted.items()})


def wide(values: Tensor) -> Tensor:
    """Values in at least float32, the precision of a loss."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
