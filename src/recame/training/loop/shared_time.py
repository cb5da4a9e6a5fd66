"""One clock for all processes: the leader counts the steps that fit, the others take its word."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from recame.training.loop.pace import KeepTime, Pace, end_after

#: Seconds of steps between two words of the leader. Each makes a GPU wait for its own work.
_BETWEEN_S = 0.5


class SharedTime(Callback):
    """Let the leader's clock decide for all processes when fine-tuning ends, at the same step.

    After some steps, of half a second or one, the leader tells two numbers: after how many steps
    training ends, and after which step it speaks next. In between every process keeps the first.

    Args:
        keep: the leader's count, or None: where it has no time to keep, and in the others.
        pace: of the module that trains.
    """

    def __init__(self, keep: KeepTime | None, pace: Pace) -> None:
        self._keep, self._pace = keep, pace
        self._kept, self._seen, self._next = False, 0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear whether there is a time to keep at all."""
        self._kept = leaders_word(trainer, [self._keep is not None])[0] > 0
        self._seen = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the leader start its clock."""
        if self._keep is not None:
            self._keep.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Let the leader count; hear its word where it is due."""
        step = trainer.global_step
        if not self._kept or step == self._seen:  # gradients of this batch wait for the next
            return
        self._seen, total = step, 0
        if self._keep is not None:
            total = self._keep.count(trainer)
        if step < self._next:
            return
        between = 1 if self._keep is None else max(1, int(_BETWEEN_S / self._keep.step_s))
        total, self._next = leaders_word(trainer, [total, step + between])
        end_after(total, trainer, self._pace)


def leaders_word(trainer: pl.Trainer, numbers: Sequence[int]) -> list[int]:
    """The whole numbers that the leader gives; every process must ask at once.

    Args:
        trainer: that trains on several processes.
        numbers: the leader's; of the others as many, of no account.
    """
    word = torch.tensor([int(n) for n in numbers], device=trainer.strategy.root_device)
    torch.distributed.broadcast(word, src=0)
    return [int(number) for number in word.tolist()]
