"""Progress of fine-tuning, and the number of steps that the remaining time allows."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median_low
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from recame.training.loop.cost import StepCost

#: Window of remembered step times: largest length in seconds, and least number of steps.
_LONGEST_MEMORY_S, _LEAST_MEMORY = 20.0, 9
#: Least share of the time reserved for later work that is kept when steps have become faster: the
#: machine may get busy again.
_LEAST_LATER = 0.5
#: Tolerance for rounding errors, as a share of a step.
_ROUNDING = 1e-6


class Pace:
    """Share of the training that is done, while the number of steps may change.

    The learning rate follows this share: after a change it falls from its present value to its end.

    Attributes:
        warmup: steps over which the learning rate rises; not affected by a change.
    """

    def __init__(self) -> None:
        self.warmup = 1
        self._num_steps = 1
        self._since = (0, 0.0)
        self._taken_up = False

    def begin(self, num_steps: int, warmup: int = 1) -> None:
        """Plan the steps; those of a loaded checkpoint are kept."""
        if not self._taken_up:
            self._num_steps, self.warmup = max(1, num_steps), warmup

    @property
    def num_steps(self) -> int:
        """Number of steps after which training ends."""
        return self._num_steps

    def done(self, step: int) -> float:
        """The share in [0, 1] that is done before a step."""
        first, share = self._since
        left = max(1, self._num_steps - first)
        return min(1.0, share + (1.0 - share) * ((step - first) / left))

    def change(self, step: int, num_steps: int) -> None:
        """Change the planned number of steps, at `step`."""
        self._since = (step, self.done(step))
        self._num_steps = num_steps

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "num_steps": self._num_steps,
            "since": list(self._since),
            "warmup": self.warmup,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        step, share = state["since"]
        self._num_steps, self._since = int(state["num_steps"]), (int(step), float(share))
        self.warmup, self._taken_up = int(state["warmup"]), True


class KeepTime(Callback):
    """End fine-tuning when its time is over, also within an epoch, with a full learning-rate decay.

    The plan comes from a few steps. If the machine does other work too, later steps may take longer
    or shorter. So after each step, the number of further steps that fit is computed again,
    including the ends of epochs.

    Args:
        ends: `time.monotonic()` by which the whole run should end.
        later_s: seconds of work after fine-tuning, if steps take as long as `cost` says; assumed
            to change in proportion to the time of steps, and to halve at most.
        most_steps: largest number of steps, however much time there is.
        cost: of a step and of an epoch's end, measured before.
        pace: of the module that trains.
    """

    def __init__(
        self, ends: float, later_s: float, most_steps: int, cost: StepCost, pace: Pace
    ) -> None:
        self._ends, self._later_s, self._most_steps = ends, later_s, most_steps
        self._planned_step_s = self._step_s = max(1e-9, cost.step_s)
        self._recent: deque[tuple[float, float]] = deque([(-math.inf, self._step_s)])
        self._end_s = cost.epoch_end_s
        self._pace = pace
        self._seen = (0, 0.0)
        self._stepped_at: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start timing; the duration of the end of the last epoch is known now."""
        now = time.monotonic()
        if self._stepped_at is not None:
            self._end_s = now - self._stepped_at
        self._seen = (trainer.global_step, now)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Compute the number of steps that still fit, and plan them."""
        if trainer.global_step != self._seen[0]:  # else gradients are being accumulated
            end_after(self.count(trainer), trainer, self._pace)

    @property
    def step_s(self) -> float:
        """Typical time of recent steps."""
        return self._step_s

    def count(self, trainer: pl.Trainer) -> int:
        """Number of steps after which training should end; call once after each step."""
        step, (seen, at) = trainer.global_step, self._seen
        now = time.monotonic()
        self._seen, self._stepped_at = (step, now), now
        self._remember((now - at) / (step - seen), now)
        slower = max(_LEAST_LATER, self._step_s / self._planned_step_s)
        left_s = self._ends - now - self._later_s * slower
        per_epoch = steps_of_epoch(trainer)
        more = steps_that_fit(
            left_s,
            step_s=self._step_s,
            end_s=self._end_s,
            to_end=-step % per_epoch,
            per_epoch=per_epoch,
        )
        return min(step + more, max(step, self._most_steps))

    def _remember(self, step_s: float, now: float) -> None:
        """Add the time of a step. The typical time is the median over a recent window.

        The window is a quarter of the time that is left. A mean is not used: a single step in which
        the machine stalled could end the training at once.
        """
        memory_s = min(_LONGEST_MEMORY_S, (self._ends - self._later_s - now) / 4)
        self._recent.append((now, max(1e-9, step_s)))
        while len(self._recent) > _LEAST_MEMORY and self._recent[0][0] < now - memory_s:
            self._recent.popleft()
        self._step_s = median_low(seconds for _, seconds in self._recent)


class EndWithPace(Callback):
    """End fine-tuning with the last step of its pace, also within an epoch, and validate then.

    Args:
        pace: of the module that trains.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Make the running epoch the last one when the steps are done."""
        if trainer.global_step >= self._pace.num_steps:
            trainer.fit_loop.max_epochs = trainer.current_epoch + 1
            trainer.should_stop = True


def end_after(num_steps: int, trainer: pl.Trainer, pace: Pace) -> None:
    """Set the number of steps after which training ends."""
    trainer.fit_loop.max_epochs = math.ceil(num_steps / steps_of_epoch(trainer))
    pace.change(trainer.global_step, num_steps)


def steps_of_epoch(trainer: pl.Trainer) -> int:
    """Number of optimiser steps in a whole epoch."""
    return max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))


def steps_that_fit(
    left_s: float, *, step_s: float, end_s: float, to_end: int, per_epoch: int
) -> int:
    """Number of further steps that fit into the remaining time.

    Args:
        left_s: seconds left; below 0 if the time is over.
        step_s: seconds of a step.
        end_s: seconds of the end of an epoch, after its last step.
        to_end: remaining steps of the running epoch; 0 if only its end remains.
        per_epoch: steps of a whole epoch.

    Examples:
        >>> steps_that_fit(10.0, step_s=1.0, end_s=2.0, to_end=20, per_epoch=30)
        8
        >>> steps_that_fit(10.0, step_s=1.0, end_s=2.0, to_end=3, per_epoch=30)
        6
    """
    within = int((left_s - end_s) / step_s + _ROUNDING)
    if within <= to_end:
        return max(0, within)
    left_s -= to_end * step_s + end_s
    epochs, rest_s = divmod(left_s + _ROUNDING * step_s, per_epoch * step_s + end_s)
    return to_end + int(epochs) * per_epoch + max(0, int((rest_s - end_s) / step_s))
