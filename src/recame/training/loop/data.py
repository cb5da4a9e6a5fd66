"""What fine-tuning trains and validates on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from recame.contracts import Batch
from recame.training.loop.trunk import TrunkCache
from recame.training.student.teacher import Teacher


@dataclass(frozen=True)
class FinetuneData:
    """What the phase trains and validates on.

    Attributes:
        train: whole batches of the training split.
        sampler: makes the sampler of batches; takes the `rank` and `world_size` of a process.
        val: whole batches of the validation split, or None if there is none.
        scale: what a stored pixel is divided by.
        trunk: the frozen trunk's outputs, if only the experts' tails train; each batch's `index`
            then numbers the images of this cache.
        teacher: judges each batch too, if a student is trained.
    """

    train: Dataset[Batch]
    sampler: Callable[..., Sampler[list[int]]]
    val: DataLoader[Batch] | None
    scale: float
    trunk: TrunkCache | None = None
    teacher: Teacher | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FinetuneData:
        """Itself: a copy of the module, as the moving average makes, shares its images."""
        return self
