"""Phase 2, fine-tuning: the experts' tails, or everything, under Lightning's trainer."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar

from recame.data import Augment, BatchDataset, Mix, class_prior, make_loader
from recame.errors import MissingDependencyError
from recame.models import MultiExpertClassifier
from recame.training.callbacks import History
from recame.training.frozen_trunk import TrunkCache, build_trunk_cache
from recame.training.lightning_module import FinetuneData, FinetuneModule, MovingAverage
from recame.training.ongoing_run import OngoingRun
from recame.training.planner import StepCost, plan_epochs
from recame.training.progress import progress_bars

_WARM_UP_STEPS = 2
_TIMED_STEPS = 4

_LIGHTNING_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


def run_finetune(
    run: OngoingRun, model: MultiExpertClassifier
) -> tuple[OngoingRun, MultiExpertClassifier]:
    """Plan the epochs and fine-tune in place, from the newest checkpoint if there is one.

    Args:
        run: its `finetune.epochs` may be `auto`.
        model: after the probe, or new.

    Returns:
        The run with its epochs decided, and the model.
    """
    trunk = _freeze_trunk(run, model) if run.config.finetune.scope == "tails" else None
    run = _with_epochs(run, model, trunk)
    return run, _fit(run, model, trunk)


def _module(
    run: OngoingRun, model: MultiExpertClassifier, trunk: TrunkCache | None
) -> FinetuneModule:
    """The phase's module with everything it needs."""
    config, data = run.config, run.data
    settings, seed = config.finetune, config.run.seed
    train_view = data.view("train")
    counts = train_view.counts(data.label_space.num_classes)
    val = None
    if "val" in data.splits:
        view = data.view("val")
        val = make_loader(view, data.cache, config.evaluation.batch_size)
    augment = config.augment.model_dump(exclude={"mixup", "cutmix"})
    mixes = config.augment.mixup > 0 or config.augment.cutmix > 0
    prior = class_prior(counts, settings.sampler)
    return FinetuneModule(
        model,
        run.objective(torch.from_numpy(prior).float()),
        FinetuneData(
            train=BatchDataset(
                data.cache.images, train_view.rows, train_view.targets, np.arange(len(train_view))
            ),
            batches={
                "targets": train_view.targets,
                "kind": settings.sampler,
                "batch_size": settings.batch_size,
                "epoch_size": None if settings.epoch_size == "auto" else settings.epoch_size,
                "samples_per_class": settings.samples_per_class,
                "seed": seed,
            },
            val=val,
            scale=data.spec.scale,
            trunk=trunk,
        ),
        settings,
        augment=Augment(**augment),
        mix=Mix(config.augment.mixup, config.augment.cutmix) if mixes else None,
        deferred_reweighting=config.objective.deferred_reweighting,
        compiled=config.run.compile,
        seed=seed,
    )


def _freeze_trunk(run: OngoingRun, model: MultiExpertClassifier) -> TrunkCache:
    """Stop the shared stages from learning and keep their output for each image and view."""
    for parameter in model.parameter_groups()["trunk"]:
        parameter.requires_grad_(False)
    with progress_bars(run.console) as report:
        return build_trunk_cache(
            model,
            run.data,
            run.data.view("train"),
            run.folder.path,
            num_views=run.config.finetune.trunk_views,
            batch_size=run.config.evaluation.batch_size,
            precision=run.precision,
            on_progress=report,
        )


def _with_epochs(
    run: OngoingRun, model: MultiExpertClassifier, trunk: TrunkCache | None
) -> OngoingRun:
    """Fix the number of epochs: from the settings, or from the time left and a measured step."""
    settings = run.config.finetune
    if settings.epochs != "auto" and settings.epoch_size != "auto":
        return run
    num_train = len(run.data.view("train").targets)
    cost = StepCost(1.0, 0.0)
    if settings.epochs == "auto":
        cost = _measure(run, copy.deepcopy(model), trunk)
    plan = plan_epochs(
        run.config,
        cost,
        num_train=num_train,
        elapsed_s=time.monotonic() - run.started,
        device=run.device,
    )
    for reason in plan.reasons:
        run.console.print(f"  {reason}", highlight=False, soft_wrap=True)
    run.folder.save_config(plan.config)
    return replace(run, config=plan.config)


def _measure(run: OngoingRun, model: MultiExpertClassifier, trunk: TrunkCache | None) -> StepCost:
    """Seconds of a training step and of a validation pass, on a copy that is thrown away."""
    module = _module(run, model, trunk).to(run.device)
    return module.measure_cost(_WARM_UP_STEPS, _TIMED_STEPS, run.precision)


def _fit(
    run: OngoingRun, model: MultiExpertClassifier, trunk: TrunkCache | None
) -> MultiExpertClassifier:
    """Fine-tune with Lightning, from the newest checkpoint if there is one."""
    config, settings = run.config, run.config.finetune
    model.set_batch_norm_frozen(settings.freeze_batch_norm)
    module = _module(run, model, trunk)
    callbacks: list[Callback] = [
        History(run.folder, run.console),
        ModelCheckpoint(
            dirpath=run.folder.path,
            filename=run.folder.last_checkpoint.stem,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    if settings.ema_decay > 0:
        callbacks.insert(0, MovingAverage(settings.ema_decay))
    if run.console.is_terminal:
        callbacks.append(RichProgressBar(leave=False))
    trainer = pl.Trainer(
        accelerator="gpu" if run.device.type == "cuda" else "cpu",
        devices=config.run.devices,
        num_nodes=config.run.num_nodes,
        strategy=config.run.strategy,
        precision=_LIGHTNING_PRECISION[run.precision],
        max_epochs=int(settings.epochs),
        gradient_clip_val=settings.clip_norm or None,
        accumulate_grad_batches=settings.accumulate,
        callbacks=callbacks,
        logger=_tensorboard(run) if config.run.tensorboard else False,
        enable_progress_bar=run.console.is_terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        sync_batchnorm=config.run.devices not in {1, "auto"},
        benchmark=run.device.type == "cuda",
        default_root_dir=run.folder.path,
    )
    checkpoint = run.folder.last_checkpoint
    trainer.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    model.set_batch_norm_frozen(False)
    return model.to(run.device).eval()


def _tensorboard(run: OngoingRun) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=run.folder.path, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "tensorboard", "tensorboard", "for run.tensorboard=true"
        ) from error
