"""Callbacks of fine-tuning: history file, lines on the terminal, stop on divergence, trackers."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console

from recame.errors import TrainingError
from recame.progress import say
from recame.runs.folder import RunFolder
from recame.runs.trackers import Trackers
from recame.training.loop.workings import Workings


class History(Callback):
    """Append one row per epoch to `history.csv`; a resumed run keeps the earlier rows.

    Args:
        run: its folder holds the file.
        console: prints a line for each epoch.
        workings: has measured the epoch before; its numbers are part of the row.
    """

    def __init__(self, run: RunFolder, console: Console, workings: Workings) -> None:
        self._run = run
        self._console = console
        self._workings = workings
        self._rows: list[dict[str, Any]] = []
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time, and read the rows of an interrupted run."""
        self._started = time.perf_counter()
        if self._rows or trainer.current_epoch == 0 or not trainer.is_global_zero:
            return
        if (old := self._run.history()) is not None:
            kept = old[pd.to_numeric(old["epoch"]) <= trainer.current_epoch].to_dict("records")
            self._rows = [{str(name): value for name, value in row.items()} for row in kept]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row and print it."""
        # Reading these values gathers them from all processes, so each process must do it.
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self._started
        losses = {name: value for name, value in values.items() if name.startswith("loss/")} | {
            "loss": values.get("loss_epoch", values.get("loss", float("nan")))
        }
        epoch = trainer.current_epoch + 1
        accuracy = values.get("val/balanced_accuracy") if _validated(trainer) else None
        self._rows.append(
            {
                "epoch": epoch,
                "step": trainer.global_step,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                **losses,
                **self._workings.found,
                "val/balanced_accuracy": accuracy,
                "seconds": round(seconds, 2),
            }
        )
        self._run.save_table(self._run.history_path, pd.DataFrame(self._rows))
        parts = "  ".join(
            f"{name.removeprefix('loss/')} {value:.3f}"
            for name, value in losses.items()
            if name != "loss"
        )
        shown = "" if accuracy is None else f"  val balanced accuracy {accuracy:.3f}"
        say(
            self._console,
            f"  epoch {epoch}/{trainer.max_epochs}  loss {losses['loss']:.3f} ({parts}){shown}"
            f"  {seconds:.0f} s",
        )


class StopAstray(Callback):
    """End training after the first epoch whose loss or weights are not finite; it cannot recover.

    Must run before the epoch's checkpoint is written, so that the last checkpoint is good.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the loss and the weights of the epoch.

        Raises:
            TrainingError: names the epoch and what was not finite.
        """
        metrics, epoch = trainer.callback_metrics, trainer.current_epoch + 1
        loss = float(metrics.get("loss_epoch", metrics.get("loss", 0.0)))
        if not math.isfinite(loss):
            raise TrainingError(f"the loss was {loss} in epoch {epoch} of fine-tuning")
        for name, value in pl_module.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise TrainingError(f"{name} was not finite after epoch {epoch} of fine-tuning")


class ToTrackers(Logger):
    """Pass Lightning's logs on to trackers; a tracker that fails does not end the training.

    Args:
        trackers: of the run.
    """

    name, version = "recame", ""

    def __init__(self, trackers: Trackers) -> None:
        super().__init__()
        self._trackers = trackers

    @property
    def experiment(self) -> Any:
        """The experiment of the first tracker, for callbacks that need it."""
        return getattr(next(iter(self._trackers.loggers), None), "experiment", None)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass on metrics."""
        self._trackers.figures(metrics, step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: settings are passed on at the end, when all are decided."""


def _validated(trainer: pl.Trainer) -> bool:
    return (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
