"""Decide the length of fine-tuning from the time left and a measured step, or leave it out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from recame.training.loop.cost import StepCost, measure_cost
from recame.training.loop.data import FinetuneData
from recame.training.loop.step import TrainingStep
from recame.training.ongoing_run import OngoingRun
from recame.training.planner import (
    LEAST_STEPS,
    budget_s,
    fewest_images,
    plan_epochs,
)
from recame.training.reserve import afford_views, ends_at, later_work
from recame.training.resolved_config import ResolvedConfig

#: Share of the time budget for measuring steps; at least two steps are measured.
_TRIAL_SHARE = 0.02
#: Factor by which a single timing of a forward pass may be too long, on a busy machine.
_GUESSED_SLOW = 4
#: A checkpoint holds weights, their average and the optimiser's two moments.
_CHECKPOINT_SIZE = 4.0

#: Makes a step and its data.
Trial = Callable[[], tuple[TrainingStep, FinetuneData]]


@dataclass(frozen=True)
class FinetunePlan(ResolvedConfig):
    """The plan, and the measurements behind it.

    Attributes:
        cost: of a step and of an epoch's end; None if nothing was measured.
        later_s: seconds reserved for the work after fine-tuning.
    """

    cost: StepCost | None = None
    later_s: float = 0.0


def plan_finetune(run: OngoingRun, trial: Trial, *, taught: bool) -> FinetunePlan:
    """Decide the number of epochs: from the settings, or from the time left and a measured step.

    Args:
        run: decisions are printed and written with it.
        trial: makes a step to measure, and its data; called only if needed.
        taught: whether the network is a student.
    """
    settings, ends = run.config.finetune, ends_at(run)
    if "auto" not in (settings.epochs, settings.epoch_size, settings.batch_size):
        return FinetunePlan(run.config, ())
    num_train = len(run.data.view("train").targets)
    cost, later_s, left_s = StepCost(1.0, 0.0), 0.0, 0.0
    if settings.epochs == "auto":
        budget = budget_s(run.config, run.device)
        most_s = math.inf if budget is None else _TRIAL_SHARE * budget
        networks = 1 + run.config.retrain.enabled
        networks += run.config.probe.enabled or taught
        if ends is not None:
            # Estimate by the probe's forward pass (a step takes three); a trial would cost time.
            forward_s = run.measured.forward_s or 0.0
            run = afford_views(run, forward_s, networks)
            guess_s = 3 * fewest_images(run.config) * forward_s * (settings.scope == "all")
            later_s = sum(later_work(run, forward_s, networks).values())
            left_s = ends - later_s - time.monotonic()
            if _too_late(run, left_s, guess_s * settings.accumulate / _GUESSED_SLOW):
                return _without_finetuning(run, left_s)
        cost = measure_cost(*trial(), settings.images_per_step, run.precision, most_s=most_s)
        cost = replace(cost, checkpoint_s=_CHECKPOINT_SIZE * (run.measured.saving_s or 0.0))
        later = later_work(run, cost.forward_s, networks)
        later_s = sum(later.values())
        if ends is not None:
            set_aside = {name: round(seconds, 1) for name, seconds in later.items()}
            run.folder.mark(run.folder.state, set_aside=set_aside)
            left_s = ends - later_s - time.monotonic()
            smallest_s = cost.step_s * fewest_images(run.config) / settings.images_per_step
            if _too_late(run, left_s - cost.epoch_end_s, smallest_s * settings.accumulate):
                return _without_finetuning(run, left_s)
    plan = plan_epochs(
        run.config,
        cost,
        num_train=num_train,
        left_s=left_s,
        device=run.device,
        patience=run.config.distill.patience if taught else 1,
    )
    run.decided(plan.config, plan.reasons)
    smaller = plan.config.finetune.images_per_step / settings.images_per_step
    cost = replace(cost, step_s=smaller * cost.step_s)
    return FinetunePlan(plan.config, plan.reasons, plan.most_steps, cost, later_s)


def _too_late(run: OngoingRun, left_s: float, step_s: float) -> bool:
    """Whether there is time for the probe only."""
    config = run.config
    needed = config.retrain.enabled or config.run.keep in ("joined", "last")
    return config.probe.enabled and not needed and left_s < LEAST_STEPS * step_s


def _without_finetuning(run: OngoingRun, left_s: float) -> FinetunePlan:
    reason = (
        f"finetune.enabled = False: {max(0.0, left_s):.1f} s are left for it, which is less than "
        f"{LEAST_STEPS} steps; the probe is kept"
    )
    config = run.config.updated({"finetune.enabled": False})
    run.decided(config, (reason,))
    return FinetunePlan(config, (reason,))
