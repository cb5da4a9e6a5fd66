"""Losses that are said to bear wrong labels, for `objective.loss`: are they better for a default?

    recame train DATA --set objective.loss.class_path=robust_losses.Smoothed ...

With a `PYTHONPATH` that holds this folder. Each is balanced softmax by its strength tau, summed
over the experts, with nothing else of the method beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from recame.contracts import ExpertOutput, LossResult
from recame.losses import TrainingLoss


class Smoothed(TrainingLoss):
    """Cross-entropy of targets that lie partly on the other classes.

    `share` 0 is plain balanced softmax. With `neighbours` the share lies on the classes beside the
    true one in `order` alone: for degrees of one thing.

    Args:
        counts: (C,) training images.
        num_experts: E.
        prior: (C,) how often the sampler shows each class, up to a factor.
        share: of the target that lies on other classes.
        tau: strength of the logit adjustment.
        order: (C,) class indices from the least degree to the largest; None: no order.
    """

    def __init__(
        self,
        counts: Sequence[int],
        num_experts: int,
        prior: Tensor,
        *,
        share: float = 0.1,
        tau: float = 1.5,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(len(counts))
        self.register_buffer("shift", tau * (prior / prior.sum()).clamp_min(1e-8).log())
        near = torch.ones(len(counts), len(counts))
        if order is not None:
            rank = torch.argsort(torch.as_tensor(order))
            near = ((rank[:, None] - rank[None]).abs() == 1).float()
        near.fill_diagonal_(0)
        spread = share * near / near.sum(1, keepdim=True)
        self.register_buffer("targets", spread + (1 - share) * torch.eye(len(counts)))

    def forward(self, output: ExpertOutput, target: Tensor) -> LossResult:
        """Summed over the experts, the mean over the batch."""
        log = (output.logits.float() + self.shift).log_softmax(-1)
        total = -(self.targets[target][:, None] * log).sum((1, 2)).mean()
        return LossResult(total, {"base": total.detach()})


class Generalised(TrainingLoss):
    """Generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018): `(1 - p ** q) / q`.

    Args:
        counts: (C,) training images.
        num_experts: E.
        prior: (C,) how often the sampler shows each class, up to a factor.
        q: in (0, 1]; towards 0 it is cross-entropy, 1 is the absolute error.
        tau: strength of the logit adjustment.
    """

    def __init__(
        self,
        counts: Sequence[int],
        num_experts: int,
        prior: Tensor,
        *,
        q: float = 0.5,
        tau: float = 1.5,
    ) -> None:
        super().__init__(len(counts))
        self.q = q
        self.register_buffer("shift", tau * (prior / prior.sum()).clamp_min(1e-8).log())

    def forward(self, output: ExpertOutput, target: Tensor) -> LossResult:
        """Summed over the experts, the mean over the batch."""
        own = one_hot(target, self.num_classes)[:, None]
        right = ((output.logits.float() + self.shift).softmax(-1) * own).sum(-1)
        total = ((1 - right.clamp_min(1e-7) ** self.q) / self.q).sum(1).mean()
        return LossResult(total, {"base": total.detach()})
