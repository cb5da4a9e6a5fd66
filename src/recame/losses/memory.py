"""The memory of an objective: what it keeps from earlier batches."""

from __future__ import annotations

import torch
from torch import nn

from recame.contracts import ExpertOutput, ensemble_logits
from recame.losses.hard_category import Confusion
from recame.losses.metric import unit_features
from recame.losses.prototypes import Prototypes
from recame.losses.training_loss import Labels, wide


class Memory(nn.Module):
    """The confusion matrix and the class prototypes of an objective.

    Args:
        confusion: None if the objective uses none.
        prototypes: None if the objective uses none.
    """

    def __init__(self, confusion: Confusion | None, prototypes: Prototypes | None) -> None:
        super().__init__()
        self.confusion, self.prototypes = confusion, prototypes

    @property
    def in_use(self) -> bool:
        """Whether there is anything to remember."""
        return self.confusion is not None or self.prototypes is not None

    @torch.no_grad()
    def remember(self, output: ExpertOutput, labels: Labels) -> None:
        """Update the memory with a batch.

        A mixed image counts for each of its labels with that label's weight, as in the loss. An
        image with logits or features that are not finite is skipped.

        Args:
            output: logits (B, E, C) and features (B, E, D) of any float dtype.
            labels: class indices (B,) in [0, C) and their weight, a number or (B,).
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            logits, features = wide(output.logits), unit_features(output.features)
            finite = logits.isfinite().all(2).all(1) & features.isfinite().all(2).all(1)
            target = torch.cat([indices for indices, _ in labels])
            weight = torch.cat([finite * (logits.new_ones(()) * share) for _, share in labels])
            if self.confusion is not None:
                probabilities = ensemble_logits(logits).softmax(1).nan_to_num(0.0)
                self.confusion.remember(probabilities.repeat(len(labels), 1), target, weight)
            if self.prototypes is not None:
                seen = features.nan_to_num(0.0).repeat(len(labels), 1, 1)
                self.prototypes.remember(seen, target, weight)

    def forget(self) -> None:
        """Reset: no prototypes, and a uniform matrix."""
        for part in (self.confusion, self.prototypes):
            if part is not None:
                part.forget()
