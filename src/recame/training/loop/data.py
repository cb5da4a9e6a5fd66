"""The data of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from recame.contracts import Batch


@dataclass(frozen=True)
class FinetuneData:
    """The data to train and validate on.

    Attributes:
        train: dataset that gives whole batches of the training split.
        sampler: makes the sampler of batches from `rank` and `world_size` of a process.
        val: the same for the validation split, or None if there is none.
    """

    train: Dataset[Batch]
    sampler: partial[Any]
    val: DataLoader[Batch] | None

    def __deepcopy__(self, memo: dict[int, Any]) -> FinetuneData:
        """Return itself, so that copies of the module (for the moving average) share the images."""
        return self
