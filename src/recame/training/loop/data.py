"""What fine-tuning trains and validates on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from recame.contracts import Batch


@dataclass(frozen=True)
class FinetuneData:
    """What the phase trains and validates on.

    Attributes:
        train: whole batches of the training split.
        sampler: makes the sampler of batches; takes the `rank` and `world_size` of a process.
        val: whole batches of the validation split, or None if there is none.
    """

    train: Dataset[Batch]
    sampler: partial[Any]
    val: DataLoader[Batch] | None

    def __deepcopy__(self, memo: dict[int, Any]) -> FinetuneData:
        """Itself: a copy of the module, as the moving average makes, shares its images."""
        return self
