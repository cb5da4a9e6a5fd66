"""Phase 2, fine-tuning: train the expert branches, or everything, with Lightning's trainer."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.strategies import DDPStrategy

from recame.config import SYMMETRIES, Config, FinetuneConfig
from recame.contracts import FloatArray
from recame.data.dataset import BatchDataset, make_loader
from recame.data.own_augment import own_changes
from recame.data.own_sampler import OwnBatches, shown_prior
from recame.data.samplers import EpochBatches, class_prior
from recame.data.transforms import Augment, Mix
from recame.errors import ConfigError, TrainingError
from recame.models import MultiExpertClassifier
from recame.plugins import Plugin
from recame.progress import progress_bars
from recame.runs.trackers import check_trackers
from recame.training.loop.allocation import freed_memory_kept
from recame.training.loop.batch_norms import shared_batch_norms
from recame.training.loop.callbacks import History, StopAstray, ToTrackers
from recame.training.loop.checkpoints import (
    LastCheckpoint,
    StraightToPlace,
    last_good_weights,
    newest_checkpoint,
)
from recame.training.loop.cost import StepCost, measure_cost
from recame.training.loop.data import FinetuneData
from recame.training.loop.module import FinetuneModule, MovingAverage
from recame.training.loop.pace import EndWithPace, KeepTime, steps_of_epoch
from recame.training.loop.processes import (
    PATIENCE_S,
    call_followers,
    is_follower,
    naming_lost,
)
from recame.training.loop.shared_time import SharedTime
from recame.training.loop.step import TrainingStep, TrunkStep
from recame.training.loop.trunk import TrunkCache, build_trunk_cache
from recame.training.loop.workings import Workings
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.finetune_length import (
    FinetunePlan,
    plan_finetune,
)
from recame.training.planner import num_processes
from recame.training.reserve import ends_at

_LIGHTNING_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}
#: Turns a plain step and its data into those of a student.
Teaching = Callable[[OngoingRun, TrainingStep, FinetuneData], tuple[TrainingStep, FinetuneData]]


def run_finetune(
    run: OngoingRun, model: MultiExpertClassifier, teaching: Teaching | None = None
) -> tuple[OngoingRun, MultiExpertClassifier | None]:
    """Plan the epochs and fine-tune in place, from the newest checkpoint if there is one.

    Args:
        run: its `finetune.epochs` may be `auto`.
        model: after the probe, or new.
        teaching: adds the teacher, if the model is a student.

    Returns:
        The run with decided epochs, and the model. If training diverged, the model has the weights
        of the last good epoch, and the run folder says why. None instead of a model if there is a
        probe and no time for more.

    Raises:
        TrainingError: training diverged in the first epoch.
    """
    trunk = _freeze_trunk(run, model) if run.config.finetune.scope == "tails" else None
    _freeze_first(run, model)
    with freed_memory_kept():
        trial = partial(_trial, run, model, trunk, teaching)
        plan = plan_finetune(run, trial, taught=teaching is not None)
        run = replace(run, config=plan.config)
        if not plan.config.finetune.enabled:
            return run, None
        try:
            done, model = _fit(run, model, trunk, teaching, plan)
        except TrainingError as error:
            return _last_good(run, model, error)
    if done != {name: getattr(plan.config.finetune, name) for name in done}:
        ended = {f"finetune.{name}": value for name, value in done.items()}
        reasons = [f"{name} = {value}: as many as fitted" for name, value in ended.items() if value]
        run = _ended(run, ended, reasons)
    return run, model


def _ended(run: OngoingRun, settings: dict[str, Any], reasons: Sequence[str]) -> OngoingRun:
    """The run with the settings that it ended with; only the first process writes them."""
    config = run.config.updated(settings)
    if is_follower(run.config.run):
        return replace(run, config=config)
    return run.decided(config, reasons)


def _last_good(
    run: OngoingRun, model: MultiExpertClassifier, error: TrainingError
) -> tuple[OngoingRun, MultiExpertClassifier]:
    """End fine-tuning early, with the weights of the last epoch that was finite."""
    settings = run.config.finetune
    advice = (
        f"Train a new run with a smaller finetune.lr (it is {settings.lr}) or finetune.clip_norm "
        f"(it is {settings.clip_norm})"
    )
    checkpoint = newest_checkpoint(run.folder, run.console)
    if checkpoint is None:
        raise TrainingError(
            f"Training diverged: {error}, and no epoch before it was good. {advice}, or without "
            "fine-tuning: finetune.enabled=false."
        ) from error
    epochs = last_good_weights(checkpoint, model)
    _thaw(model)
    ended = {"finetune.epochs": epochs, "finetune.steps": None}
    reason = f"finetune.epochs = {epochs}: stopped, because {error}"
    if not is_follower(run.config.run):
        run.folder.mark(run.folder.state, stopped=f"{reason}. {advice}.")
    run = _ended(run, ended, [reason])
    return run, model.to(run.device).eval()


def check_finetune(run: OngoingRun) -> None:
    """Refuse settings that would fail after the probe.

    Raises:
        ConfigError: batches, devices or strategy do not fit each other, the data or the machine.
    """
    settings = run.config.run
    known = ("auto", "ddp", "ddp_find_unused_parameters_true")
    if settings.strategy not in known:
        raise ConfigError(
            f"run.strategy={settings.strategy!r} is unknown: choose one of {', '.join(known)}."
        )
    seen = torch.cuda.device_count()
    if run.device.type == "cuda" and settings.devices != "auto" and settings.devices > seen:
        raise ConfigError(
            f"run.devices={settings.devices}, but torch sees {seen} GPUs here: "
            "give at most that many, or run.accelerator=cpu."
        )
    _batches(run)(world_size=num_processes(settings, run.device))
    _check_batches(run.config)
    own_changes(run.config.augment.extra)
    check_trackers(run.config)


def _check_batches(config: Config) -> None:
    """Refuse batches that the network or the frozen shared backbone cannot take."""
    settings = config.finetune
    if settings.batch_size == 1 and config.model.standardise:
        raise ConfigError(
            "finetune.batch_size=1: feature normalisation needs two images or more; give 2 "
            "or more, or model.standardise=false."
        )
    if settings.scope == "all":
        return
    pixels = (
        *("shift", "scale", "rotate_deg", "brightness", "contrast", "blur"),
        *("rand_augment", "mixup", "cutmix"),
    )
    default = Config().augment
    asked = [
        f"augment.{name}"
        for name in pixels
        if getattr(config.augment, name) not in (0, getattr(default, name))
    ]
    asked += ["augment.extra"] * bool(config.augment.extra)
    asked += ["run.compile"] * config.run.compile
    if asked:
        raise ConfigError(
            f"{', '.join(asked)} with finetune.scope=tails: the outputs of the frozen shared "
            "backbone are computed once, with flips and rotations only; leave it out, or set "
            "finetune.scope=all."
        )


def measure_step(run: OngoingRun, model: MultiExpertClassifier) -> StepCost:
    """Measure the cost of a fine-tuning step of this run on its device.

    Args:
        run: planned; if only expert branches train, its folder holds the backbone's outputs.
        model: takes real steps, so discard it afterwards.
    """
    settings = run.config.finetune
    trunk = _freeze_trunk(run, model) if settings.scope == "tails" else None
    model.set_batch_norm_frozen(settings.freeze_batch_norm is True)
    _freeze_first(run, model)
    with freed_memory_kept():
        return measure_cost(*_step(run, model, trunk), settings.images_per_step, run.precision)


def _batches(run: OngoingRun) -> partial[Any]:
    """A function that makes the sampler of batches from `rank` and `world_size` of a process."""
    settings, targets = run.config.finetune, run.data.view("train").targets
    size = None if settings.epoch_size == "auto" else settings.epoch_size
    shared: dict[str, Any] = {
        "targets": targets,
        "batch_size": settings.images_per_step,
        "epoch_size": size,
        "seed": run.config.run.seed,
    }
    if isinstance(settings.sampler, Plugin):
        own = {"epoch_size": size or len(targets), "rank": 0, "world_size": 1}
        return partial(OwnBatches, settings.sampler, **{**shared, **own})
    kind, num = settings.sampler, settings.samples_per_class
    return partial(EpochBatches, **shared, kind=kind, samples_per_class=num)


def shown_classes(run: OngoingRun) -> FloatArray:
    """(C,) share of each class among the images that fine-tuning's sampler draws."""
    view, sampler = run.data.view("train"), run.config.finetune.sampler
    num_classes = run.data.label_space.num_classes
    if isinstance(sampler, Plugin):
        return shown_prior(_batches(run)(), view.targets, num_classes)
    return class_prior(view.counts(num_classes), sampler)


def _step(
    run: OngoingRun,
    model: MultiExpertClassifier,
    trunk: TrunkCache | None = None,
    teaching: Teaching | None = None,
) -> tuple[TrainingStep, FinetuneData]:
    """The run's training step, and its data."""
    config, data, view = run.config, run.data, run.data.view("train")
    val = None
    if "val" in data.splits:
        val = make_loader(data.view("val"), data.cache, config.evaluation.batch_size)
    images = BatchDataset(data.cache.images, view.rows, view.targets, np.arange(len(view)))
    batches = _batches(run)
    material = FinetuneData(images, batches, val)
    objective = run.objective(torch.from_numpy(shown_classes(run)).float(), model.num_features)
    if trunk is not None:
        return TrunkStep(model, objective, scale=data.spec.scale, trunk=trunk), material
    augment = config.augment.model_dump(exclude={"mixup", "cutmix", "symmetry", "extra"})
    num_views = SYMMETRIES[config.augment.symmetry]
    mixes = config.augment.mixup > 0 or config.augment.cutmix > 0
    step = TrainingStep(
        model,
        objective,
        scale=data.spec.scale,
        augment=Augment(
            pieces=run.data.spec.pieces,
            horizontal_flip=num_views >= 2,
            vertical_flip=num_views >= 4,
            quarter_turns=num_views == 8,
            extra=own_changes(config.augment.extra),
            **augment,
        ),
        mix=Mix(config.augment.mixup, config.augment.cutmix) if mixes else None,
        compiled=config.run.compile,
        # A recorded step does not include the update of a loss's memory.
        graphed=_can_be_graphed(run) and not objective.remembers,
    )
    return (step, material) if teaching is None else teaching(run, step, material)


def _trial(
    run: OngoingRun,
    model: MultiExpertClassifier,
    trunk: TrunkCache | None,
    teaching: Teaching | None,
) -> tuple[TrainingStep, FinetuneData]:
    """A step for measuring; it does not change the model."""
    return _step(run, copy.deepcopy(model), trunk, teaching)


def _can_be_graphed(run: OngoingRun) -> bool:
    """Whether a step can be a CUDA graph: gradients are not accumulated, shared or rescaled."""
    config = run.config
    return (
        config.run.cuda_graph
        and not config.run.compile
        and run.make_loss is None  # a custom loss may read values back
        and config.objective.loss is None
        and config.finetune.accumulate == 1
        and run.precision != "16"
        and num_processes(config.run, run.device) == 1
    )


def _freeze_first(run: OngoingRun, model: MultiExpertClassifier) -> None:
    frozen = run.config.finetune.frozen_stages
    assert frozen != "auto"
    model.set_frozen_stages(frozen)


def _thaw(model: MultiExpertClassifier) -> None:
    """Unfreeze all parameters, for the next user of the model."""
    model.set_batch_norm_frozen(False)
    model.set_frozen_stages(0)


def _freeze_trunk(run: OngoingRun, model: MultiExpertClassifier) -> TrunkCache:
    """Freeze the shared stages and cache their output for each image and view."""
    for parameter in model.parameter_groups()["trunk"]:
        parameter.requires_grad_(False)
    with progress_bars(run.console) as report:
        return build_trunk_cache(
            model,
            run.data,
            run.data.view("train"),
            run.folder.trunk_paths,
            of_run=run.folder.identity,
            num_views=min(run.config.finetune.trunk_views, SYMMETRIES[run.config.augment.symmetry]),
            batch_size=run.config.evaluation.batch_size,
            precision=run.precision,
            on_progress=report,
        )


def _fit(
    run: OngoingRun,
    model: MultiExpertClassifier,
    trunk: TrunkCache | None,
    teaching: Teaching | None,
    plan: FinetunePlan,
) -> tuple[dict[str, int | None], MultiExpertClassifier]:
    """Fine-tune with Lightning, from the newest checkpoint if there is one.

    A resumed run keeps the number of steps of its checkpoint, not the clock, so its result is that
    of an uninterrupted run.

    Returns:
        The settings `epochs` and `steps` that repeat this training, and the network.
    """
    config, settings, ends = run.config, run.config.finetune, ends_at(run)
    model.train()  # the trainer keeps the mode, and the probe leaves the heads in evaluation mode
    model.set_batch_norm_frozen(settings.freeze_batch_norm is True)
    module = FinetuneModule(
        *_step(run, model, trunk, teaching),
        settings,
        deferred_reweighting=config.objective.deferred_reweighting,
        seed=config.run.seed,
    )
    workings = Workings()
    callbacks: list[Callback] = [
        workings,
        History(run.folder, run.console, workings),
        StopAstray(),
        LastCheckpoint(run.folder),
    ]
    if settings.ema_decay > 0:
        callbacks.insert(0, MovingAverage(settings.ema_decay))
    callbacks.insert(0, EndWithPace(module.pace))
    several = num_processes(config.run, run.device) > 1
    keep = None
    if plan.most_steps is not None and plan.cost is not None and ends is not None:
        cost = replace(plan.cost, step_s=plan.cost.step_s * settings.accumulate)
        keep = KeepTime(ends, plan.later_s, plan.most_steps, cost, module.pace)
    if several:
        callbacks.insert(0, SharedTime(keep, module.pace))
    elif keep is not None:
        callbacks.insert(0, keep)
    callbacks += run.callbacks
    watched = run.console.is_terminal and not run.console.quiet
    if watched:
        callbacks.append(RichProgressBar(leave=False))
    trainer = pl.Trainer(
        accelerator="gpu" if run.device.type == "cuda" else "cpu",
        devices=config.run.devices,
        num_nodes=config.run.num_nodes,
        strategy=_across_processes(config.run.strategy) if several else config.run.strategy,
        precision=_LIGHTNING_PRECISION[run.precision],
        max_epochs=int(settings.epochs),
        gradient_clip_val=settings.clip_norm or None,
        accumulate_grad_batches=settings.accumulate,
        callbacks=callbacks,
        plugins=[StraightToPlace()],
        logger=ToTrackers(run.trackers) if run.trackers.loggers else False,
        enable_progress_bar=watched,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=run.device.type == "cuda",
        default_root_dir=run.folder.path,
    )
    if trainer.world_size > 1 and trainer.is_global_zero:
        call_followers(run.folder)
    checkpoint = newest_checkpoint(run.folder, run.console)
    with (
        naming_lost(run.folder.path, trainer.world_size),
        shared_batch_norms(model, run.device, trainer.world_size),
        _interruptible(),
    ):
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    _thaw(model)
    return _done(module.pace.num_steps, trainer, settings), model.to(run.device).eval()


def _across_processes(strategy: str) -> DDPStrategy:
    """Strategy in which each process has the whole network, with a limit for waiting."""
    return DDPStrategy(
        find_unused_parameters=strategy.endswith("find_unused_parameters_true"),
        timeout=timedelta(seconds=PATIENCE_S),
    )


def _done(num_steps: int, trainer: pl.Trainer, settings: FinetuneConfig) -> dict[str, int | None]:
    """The settings that repeat the steps: whole epochs, or also an end within the last one."""
    epochs = trainer.max_epochs
    assert epochs is not None
    whole = num_steps == epochs * steps_of_epoch(trainer)
    return {"epochs": epochs, "steps": None if whole else num_steps}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C; Lightning would end the program and ignore it later."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if in_main and handler is not None:
            signal.signal(signal.SIGINT, handler)
