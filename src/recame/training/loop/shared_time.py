"""A common end for all processes: the leader computes the number of steps and sends it."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from recame.training.loop.pace import KeepTime, Pace, end_after

#: Seconds between two messages of the leader. Each makes a GPU wait for its own work.
_BETWEEN_S = 0.5


class SharedTime(Callback):
    """End fine-tuning of all processes at the same step, decided by the leader's clock.

    After some steps (half a second, at least one step) the leader sends two numbers: the number of
    steps of the training, and the step after which it sends again. Until then every process keeps
    the first number.

    Args:
        keep: the leader's time keeping; None in other processes, and without a time budget.
        pace: of the module that trains.
    """

    def __init__(self, keep: KeepTime | None, pace: Pace) -> None:
        self._keep, self._pace = keep, pace
        self._kept, self._seen, self._next = False, 0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Receive whether there is a time budget."""
        self._kept = leaders_word(trainer, [self._keep is not None])[0] > 0
        self._seen = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the leader's timing."""
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
        """Let the leader compute the number of steps; receive it when it is due."""
        step = trainer.global_step
        if not self._kept or step == self._seen:  # gradients are being accumulated
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
    """Broadcast integers from the leader; all processes must call it at the same time.

    Args:
        trainer: it trains on several processes.
        numbers: the leader's numbers; in other processes as many arbitrary ones.
    """
    word = torch.tensor([int(n) for n in numbers], device=trainer.strategy.root_device)
    torch.distributed.broadcast(word, src=0)
    return [int(number) for number in word.tolist()]
