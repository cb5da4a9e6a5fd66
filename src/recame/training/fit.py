"""A whole training run: data, plan, probe, fine-tune, and the better phase is kept."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from rich.console import Console

from recame.config import Config
from recame.data import (
    Augment,
    BatchDataset,
    InspectionSet,
    ManifestColumns,
    Mix,
    class_prior,
    load_inspection_set,
    make_loader,
    native_size,
    read_manifest,
)
from recame.evaluation import evaluate_predictions, predict_split
from recame.evaluation.inference import Precision
from recame.losses import Objective
from recame.models import (
    Architecture,
    MultiExpertClassifier,
    load_checkpoint,
    pretrained_mean_std,
    save_checkpoint,
)
from recame.training.callbacks import History
from recame.training.frozen_trunk import TrunkCache, build_trunk_cache
from recame.training.lightning_module import FinetuneData, FinetuneModule, MovingAverage
from recame.training.planner import (
    Plan,
    StepCost,
    choose_device,
    choose_size,
    plan_epochs,
    plan_model,
)
from recame.training.probe import capped_view, embed, fit_heads, probe_prior
from recame.training.progress import progress_bars
from recame.training.run_folder import RunFolder, environment, write_json

_WARM_UP_STEPS = 2
_TIMED_STEPS = 4

_LIGHTNING_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


@dataclass(frozen=True)
class _Run:
    """What every step of a run needs."""

    folder: RunFolder
    config: Config
    data: InspectionSet
    device: torch.device
    console: Console
    started: float

    @property
    def precision(self) -> Precision:
        """The planned precision."""
        precision = self.config.run.precision
        assert precision != "auto"
        return precision


def train(
    source: Path | str,
    config: Config | None = None,
    *,
    out: Path | str,
    resume: bool = False,
    console: Console | None = None,
) -> RunFolder:
    """Train on a folder or table of images and leave a run folder.

    Args:
        source: a folder per class, a folder with train/val/test, or a CSV/Parquet table.
        config: the settings; what is left at `auto` is decided from the data and the device.
        out: the run folder to make, or with `resume` to continue.
        resume: take up an interrupted run with its own settings; the result is the one that an
            uninterrupted run would have had.
        console: where progress goes; silent if None.

    Returns:
        The finished run's folder.

    Raises:
        RecameError: the data, the settings or the folder cannot be used as they are.
    """
    started = time.monotonic()
    console = console or Console(quiet=True)
    _quiet_libraries()
    folder = RunFolder.open(Path(out)) if resume else RunFolder.free(Path(out))
    if resume:
        config = folder.load_config()
        if folder.finished:
            console.print(f"{folder.path} is finished: nothing to resume.")
            return folder
    run = _prepare(Path(source), config or Config(), folder, resume, console, started)
    model = _probe_phase(run) if run.config.probe.enabled else _new_model(run)
    candidates: dict[str, MultiExpertClassifier] = {}
    if run.config.probe.enabled:
        candidates["probe"] = model
    if run.config.finetune.enabled:
        tuned = copy.deepcopy(model) if candidates else model
        trunk = _freeze_trunk(run, tuned) if run.config.finetune.scope == "tails" else None
        run = _plan_finetune(run, tuned, trunk)
        candidates["finetune"] = _finetune_phase(run, tuned, trunk)
    _keep_best(run, candidates)
    folder.finish()
    return folder


def _prepare(
    source: Path, config: Config, folder: RunFolder, resume: bool, console: Console, started: float
) -> _Run:
    """Load the data, decide what is left open, and write what describes the run."""
    device = choose_device(config.run.accelerator)
    reasons: list[str] = []
    if config.data.size == "auto":
        columns = ManifestColumns(
            config.data.image_column, config.data.label_column, config.data.split_column
        )
        paths = [Path(path) for path in read_manifest(source, columns)["path"]]
        size, why = choose_size(native_size(paths))
        config = config.updated({"data.size": size})
        reasons.append(f"data.size = {size}: {why}")
    with progress_bars(console) as report:
        data = load_inspection_set(
            source,
            config.data,
            seed=config.run.seed,
            on_progress=lambda done, total: report("decoding images", done, total),
        )
    plan = plan_model(config, data, device)
    config = plan.config
    data = _with_normalisation(data, config)
    if resume:
        folder.check_same_data(data.fingerprint)
    else:
        folder.begin(source, data.fingerprint)
        folder.save_config(config)
    folder.save_manifest(data.table)
    folder.save_broken([(broken.path, broken.reason) for broken in data.cache.broken])
    write_json(folder.path / "label_space.json", data.label_space.to_dict())
    write_json(folder.path / "environment.json", environment())
    _describe(data, console)
    if not resume and (reasons or plan.reasons):
        console.print("Chosen (saved in config.yaml):")
        for reason in (*reasons, *plan.reasons):
            console.print(f"  {reason}", highlight=False)
    return _Run(folder, config, data, device, console, started)


def _with_normalisation(data: InspectionSet, config: Config) -> InspectionSet:
    """Give the specification the normalisation that the backbone's weights were trained with."""
    from dataclasses import replace

    mean, std = pretrained_mean_std(
        config.model.backbone, config.model.pretrained, data.spec.channels
    )
    return replace(data, spec=replace(data.spec, mean=mean, std=std))


def _describe(data: InspectionSet, console: Console) -> None:
    counts = data.label_space.counts
    sizes = ", ".join(f"{name} {len(data.view(name).targets):,}" for name in data.splits)
    console.print(
        f"{len(data.table):,} images ({sizes}), {data.label_space.num_classes} classes, "
        f"{max(counts):,} to {min(counts):,} training images a class",
        highlight=False,
    )
    if data.cache.broken:
        console.print(f"[yellow]{len(data.cache.broken)} images cannot be used:[/yellow]")
        for broken in data.cache.broken[:20]:
            console.print(f"  {broken.path}: {broken.reason}", markup=False, highlight=False)
        if len(data.cache.broken) > 20:
            console.print(f"  and {len(data.cache.broken) - 20} more in broken_images.csv")


def _new_model(run: _Run) -> MultiExpertClassifier:
    """The network before any training, seeded."""
    settings = run.config.model
    torch.manual_seed(run.config.run.seed)
    names = Architecture.__dataclass_fields__
    model = MultiExpertClassifier(
        Architecture(**{name: getattr(settings, name) for name in names}),
        run.data.label_space.num_classes,
        run.data.spec,
        settings.pretrained,
    )
    memory = torch.channels_last if run.config.run.channels_last else torch.contiguous_format
    return model.to(run.device).to(memory_format=memory)


def _objective(run: _Run, prior: torch.Tensor | None) -> Objective:
    settings = run.config.objective.model_dump(exclude={"deferred_reweighting"})
    return Objective(
        run.data.label_space.counts,
        num_experts=int(run.config.model.num_experts),
        prior=prior,
        ldam_scale=run.config.model.cosine_scale,
        **settings,
    ).to(run.device)


def _probe_phase(run: _Run) -> MultiExpertClassifier:
    """Train the heads on cached features, or take them from the interrupted run."""
    if (run.folder.probe_dir / "model.json").exists():
        return load_checkpoint(run.folder.probe_dir, run.device).model
    began = time.monotonic()
    model, settings, seed = _new_model(run), run.config.probe, run.config.run.seed
    view = capped_view(run.data.view("train"), settings.max_per_class, seed)
    with progress_bars(run.console) as report:
        features = embed(
            model,
            run.data,
            view,
            num_views=settings.views,
            batch_size=run.config.evaluation.batch_size,
            device=run.device,
            precision=run.precision,
            label="probe: embedding",
            on_progress=report,
        )
        objective = _objective(run, probe_prior(view.counts(run.data.label_space.num_classes)))
        fit_heads(
            model.head,
            features,
            objective,
            settings,
            num_experts=model.num_experts,
            seed=seed,
            on_progress=report,
        )
    save_checkpoint(run.folder.probe_dir, model, run.data.label_space)
    run.console.print(
        f"Probe: heads on frozen features of {len(view.rows):,} images, {settings.views} views "
        f"each, {time.monotonic() - began:.0f} s",
        highlight=False,
    )
    return model


def _finetune_module(
    run: _Run, model: MultiExpertClassifier, trunk: TrunkCache | None
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
        _objective(run, torch.from_numpy(prior).float()),
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


def _freeze_trunk(run: _Run, model: MultiExpertClassifier) -> TrunkCache:
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


def _plan_finetune(run: _Run, model: MultiExpertClassifier, trunk: TrunkCache | None) -> _Run:
    """Fix the number of epochs: from the settings, or from the time left and a measured step."""
    from dataclasses import replace

    settings = run.config.finetune
    if settings.epochs != "auto" and settings.epoch_size != "auto":
        return run
    num_train = len(run.data.view("train").targets)
    cost = StepCost(1.0, 0.0)
    if settings.epochs == "auto":
        cost = _measure(run, copy.deepcopy(model), trunk)
    plan: Plan = plan_epochs(
        run.config,
        cost,
        num_train=num_train,
        elapsed_s=time.monotonic() - run.started,
        device=run.device,
    )
    for reason in plan.reasons:
        run.console.print(f"  {reason}", highlight=False)
    run.folder.save_config(plan.config)
    return replace(run, config=plan.config)


def _measure(run: _Run, model: MultiExpertClassifier, trunk: TrunkCache | None) -> StepCost:
    """Seconds of a training step and of a validation pass, on a copy that is thrown away."""
    module = _finetune_module(run, model, trunk).to(run.device)
    return module.measure_cost(_WARM_UP_STEPS, _TIMED_STEPS, run.precision)


def _finetune_phase(
    run: _Run, model: MultiExpertClassifier, trunk: TrunkCache | None
) -> MultiExpertClassifier:
    """Fine-tune with Lightning, from the newest checkpoint if there is one."""
    config, settings = run.config, run.config.finetune
    model.set_batch_norm_frozen(settings.freeze_batch_norm)
    module = _finetune_module(run, model, trunk)
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


def _tensorboard(run: _Run) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    from recame.errors import MissingDependencyError

    try:
        return TensorBoardLogger(save_dir=run.folder.path, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "tensorboard", "tensorboard", "for run.tensorboard=true"
        ) from error


def _keep_best(run: _Run, candidates: dict[str, MultiExpertClassifier]) -> None:
    """Judge each phase on `val`, keep the better one's weights, and write its figures."""
    settings, space = run.config.evaluation, run.data.label_space
    chosen = list(candidates)[-1]
    if "val" not in run.data.splits:
        run.console.print(f"No val split to choose by: the last phase ({chosen}) is kept.")
        save_checkpoint(run.folder.path, candidates[chosen], space)
        return
    scores: dict[str, float] = {}
    judged: dict[str, dict[str, Any]] = {}
    for name, model in candidates.items():
        predictions = predict_split(
            model,
            run.data,
            "val",
            num_views=settings.views,
            batch_size=settings.batch_size,
            device=run.device,
            precision=run.precision,
        )
        evaluation = evaluate_predictions(predictions, space, bootstrap=settings.bootstrap)
        judged[name] = evaluation.to_dict()
        scores[name] = judged[name]["balanced_accuracy"]["value"]
    if run.config.run.keep == "best_on_val":
        chosen = max(scores, key=lambda name: scores[name])
    listed = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    run.console.print(f"Balanced accuracy on val: {listed}. Kept: [bold]{chosen}[/bold]")
    save_checkpoint(run.folder.path, candidates[chosen], space)
    run.folder.update_json("metrics.json", {"val": judged[chosen]})
    run.folder.update_json("phases.json", {"val_balanced_accuracy": scores, "kept": chosen})


def _quiet_libraries() -> None:
    """Our own console speaks; Lightning's hints are about settings that we have made."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists.*",
        ".*LeafSpec.*is deprecated.*",
    ):
        warnings.filterwarnings("ignore", pattern)
