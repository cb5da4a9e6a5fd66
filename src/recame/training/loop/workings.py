"""Whether the method's parts do anything: a few numbers an epoch, beside the loss they cost."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from recame.contracts import Batch
from recame.training.loop.module import FinetuneModule


class Workings(Callback):
    """Look at an epoch's first training batch when the epoch is over.

    The images are seen as validation sees them, without augmentation and without a gradient, by
    the weights that train: a forward of one batch an epoch. Of several processes the first one
    looks at its own. What each number means is told in docs/parts.md. Must come before `History`,
    which writes them down.
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
        """Look at it, and tell the loggers."""
        batch, self._batch, self.found = self._batch, None, {}
        if batch is None or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FinetuneModule)
        with trainer.precision_plugin.val_step_context():
            numbers = pl_module.step.workings(batch)
        self.found = {f"work/{name}": float(value) for name, value in numbers.items()}
        for logger in trainer.loggers:
            logger.log_metrics(self.found, step=trainer.global_step)
