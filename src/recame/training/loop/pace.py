"""How far fine-tuning is, and how many steps the time allows: the plan follows the clock."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median_low
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from recame.training.loop.cost import StepCost

#: How far back the times of steps are remembered, in seconds, however much time is left; and how
#: many steps are remembered, however long they took.
_LONGEST_MEMORY_S, _LEAST_MEMORY = 20.0, 9
#: Share of a step by which sums of floating numbers may miss it.
_ROUNDING = 1e-6


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

    @property
    def num_steps(self) -> int:
        """After so many steps training ends."""
        return self._num_steps

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
    """Let fine-tuning end when its time does, within an epoch too, its learning rate at its end.

    A plan is made from a few steps; on a machine that does other work as well, steps last longer
    or shorter than these said. So after each step it is counted anew how many more there is time
    for, epochs' ends included.

    Args:
        ends: `time.monotonic()` by which the whole run shall have ended.
        later_s: of it, what is due after fine-tuning, as long as steps last what `cost` says; it
            is taken to grow as they do.
        most_steps: no more than these, however much time there is.
        cost: of a step and of an epoch's end, as measured beforehand.
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
        """Start the clock; how long the end of the epoch before took is known by now."""
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
        """Count the steps that still fit, and plan them."""
        if trainer.global_step != self._seen[0]:  # else its gradients wait for the next batch's
            end_after(self.count(trainer), trainer, self._pace)

    @property
    def step_s(self) -> float:
        """The usual time of a step lately."""
        return self._step_s

    def count(self, trainer: pl.Trainer) -> int:
        """After how many steps training is to end; called once after each."""
        step, (seen, at) = trainer.global_step, self._seen
        now = time.monotonic()
        self._seen, self._stepped_at = (step, now), now
        self._remember((now - at) / (step - seen), now)
        left_s = self._ends - now - self._later_s * max(1.0, self._step_s / self._planned_step_s)
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
        """Take in the time of a step: the usual one is the median of the last quarter of the time.

        Of the time that is left, that is; and no mean, which one step that the machine stood still
        in would move so far that training ended at once.
        """
        memory_s = min(_LONGEST_MEMORY_S, (self._ends - self._later_s - now) / 4)
        self._recent.append((now, max(1e-9, step_s)))
        while len(self._recent) > _LEAST_MEMORY and self._recent[0][0] < now - memory_s:
            self._recent.popleft()
        self._step_s = median_low(seconds for _, seconds in self._recent)


class EndWithPace(Callback):
    """End fine-tuning with the last step of its pace, be it within an epoch, and judge it there.

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
        """Make the running epoch the last one where its steps are done."""
        if trainer.global_step >= self._pace.num_steps:
            trainer.fit_loop.max_epochs = trainer.current_epoch + 1
            trainer.should_stop = True


def end_after(num_steps: int, trainer: pl.Trainer, pace: Pace) -> None:
    """Let training end after so many steps."""
    trainer.fit_loop.max_epochs = math.ceil(num_steps / steps_of_epoch(trainer))
    pace.change(trainer.global_step, num_steps)


def steps_of_epoch(trainer: pl.Trainer) -> int:
    """Steps of the optimiser that a whole epoch has."""
    return max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))


def steps_that_fit(
    left_s: float, *, step_s: float, end_s: float, to_end: int, per_epoch: int
) -> int:
    """How many more steps there is time for.

    Args:
        left_s: seconds; below 0 where they are spent.
        step_s: of a step.
        end_s: of what follows the last step of an epoch, and the last one of all.
        to_end: steps that the running epoch still has; 0 where it is over, its end not paid.
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
