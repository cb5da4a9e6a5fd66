"""How far fine-tuning is, and how many epochs the time allows: the plan follows the clock."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

#: Of an epoch that fits but for this share of it, the reserve of the plan pays the rest.
_LATE_SHARE = 0.3


class Pace:
    """Share of the training that is done; how many steps it has may change on the way.

    The learning rate follows it: whatever a change leaves, it falls from where it is to its end.

    Attributes:
        warmup: steps over which the learning rate rises; a change leaves them as they are.
    """

    def __init__(self) -> None:
        self.warmup = 1
        self._num_steps = 1
        self._since = (0, 0.0)
        self._taken_up = False

    def begin(self, num_steps: int, warmup: int = 1) -> None:
        """Plan the steps; those of a checkpoint that was taken up stand."""
        if not self._taken_up:
            self._num_steps, self.warmup = max(1, num_steps), warmup

    def done(self, step: int) -> float:
        """The share in [0, 1] that is done before a step."""
        first, share = self._since
        left = max(1, self._num_steps - first)
        return min(1.0, share + (1.0 - share) * ((step - first) / left))

    def change(self, step: int, num_steps: int) -> None:
        """Let training end after other steps than planned, seen from `step`."""
        self._since = (step, self.done(step))
        self._num_steps = num_steps

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "num_steps": self._num_steps,
            "since": list(self._since),
            "warmup": self.warmup,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as `state_dict` found it."""
        step, share = state["since"]
        self._num_steps, self._since = int(state["num_steps"]), (int(step), float(share))
        self.warmup, self._taken_up = int(state["warmup"]), True


class KeepTime(Callback):
    """Leave out epochs that the time no longer allows, and add those that it does.

    A plan is made from a few steps; on a machine that does other work as well, epochs last longer
    or shorter than these said. Looks at the clock after each epoch.

    Args:
        time_s: from now on, for all epochs.
        most_epochs: no more than these, however much time there is.
        pace: of the module that trains.
    """

    def __init__(self, time_s: float, most_epochs: int, pace: Pace) -> None:
        self._ends = time.monotonic() + time_s
        self._most_epochs = most_epochs
        self._pace = pace
        self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the epochs that still fit; several processes keep their plan."""
        if trainer.world_size > 1:
            return
        now, done = time.monotonic(), trainer.current_epoch + 1
        fitting = (self._ends - now) / ((now - self._began) / done)
        more = max(0, math.floor(fitting + _LATE_SHARE))
        epochs = min(done + more, max(done, self._most_epochs))
        if epochs != trainer.max_epochs:
            steps = trainer.global_step
            trainer.fit_loop.max_epochs = epochs
            self._pace.change(steps, round(steps * epochs / done))
