"""Measure in each epoch, by a few numbers, whether the parts of the method have an effect."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from recame.contracts import Batch
from recame.training.loop.module import FinetuneModule


class Workings(Callback):
    """Measure on an epoch's first training batch when the epoch is over.

    This costs a forward pass of one batch per epoch, by the training weights, without augmentation
    and gradients, as in validation. If several processes train, the first one measures on its own
    batch. docs/parts.md explains the numbers. Must run before `History`, which writes them.
    """

    def __init__(self) -> None:
        self._batch: Batch | None = None
        #: The last epoch's numbers by name.
        self.found: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batch."""
        if batch_idx == 0:
            self._batch = batch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, and log the numbers."""
        batch, self._batch, self.found = self._batch, None, {}
        if batch is None or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FinetuneModule)
        with trainer.precision_plugin.val_step_context():
            numbers = pl_module.step.workings(batch)
        self.found = {f"work/{name}": float(value) for name, value in numbers.items()}
        for logger in trainer.loggers:
            logger.log_metrics(self.found, step=trainer.global_step)
