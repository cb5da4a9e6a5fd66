"""The beginning of a run: read its data, decide its settings, describe it in its folder."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from recame.config import Config
from recame.data.corrections import told_corrections
from recame.data.dataset import InspectionSet, check_classes, load_inspection_set
from recame.data.file_part import split_part
from recame.data.manifest import ManifestColumns, read_manifest
from recame.errors import ConfigError
from recame.files import read_json, remove_partial, write_json
from recame.inference.device import choose_device
from recame.losses import LossFactory
from recame.machine import environment
from recame.names import by_number, counted
from recame.plugins import plugin_of
from recame.progress import Progress, progress_bars, say
from recame.runs.folder import RunFolder
from recame.runs.same_beginning import check_same_data, check_same_loss, check_same_precision
from recame.runs.trackers import final_figures
from recame.training.calibration_split import settle_calibration
from recame.training.continuing import continued_table, resumed_table
from recame.training.ongoing_run import Measured, OngoingRun
from recame.training.phases.finetune import check_finetune
from recame.training.phases.image_size import settle_size
from recame.training.phases.image_tiles import TILE_SIDE, settle_tiles
from recame.training.planner import num_processes, plan_model
from recame.training.starting_weights import starting_mean_std

#: Warnings of Lightning about settings that recame chose on purpose.
_HINTS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory.*exists.*",
    ".*LeafSpec.*is deprecated.*",
    ".*smaller than the logging interval.*",
    ".*Total length of .* is zero.*",
    ".*in eval mode at the start of training.*",  # frozen batch norms
    ".*Grad strides do not match bucket view strides.*",  # of depthwise weights
)


def _prepare(
    source: Path, config: Config, folder: RunFolder, console: Console, started: float
) -> tuple[OngoingRun, list[str]]:
    """Load the data and decide open settings, with a reason for each decision."""
    measured, began = Measured(), time.monotonic()
    measured.stages["start"] = began - started
    device = choose_device(config.run.accelerator)
    config, reasons = _as_asked(config)
    if config.data.corrections is not None:
        # Absolute, so that the run can be resumed from another folder.
        config = config.updated({"data.corrections": config.data.corrections.resolve()})
    if config.data.continues is None:
        table = read_manifest(source, ManifestColumns.of(config.data), pages=config.data.pages)
    else:
        table, why = continued_table(source, config.data, config.run.seed)
        reasons.append(why)
    if folder.manifest_path.exists():  # the run has begun already
        table = resumed_table(table, folder, config)
    check_classes(table, config.data, seed=config.run.seed)
    if config.data.calibrate == "auto":
        config, told = _with_calibration(table, config)
        reasons = [*reasons, *told]
    if config.data.size == "auto":
        with measured.stage("size"), progress_bars(console) as report:
            config, told = _with_size(table, config, device, started, report)
        began, reasons = time.monotonic(), [*reasons, *told]
    with progress_bars(console) as report:
        data = load_inspection_set(
            table,
            config.data,
            seed=config.run.seed,
            on_progress=report,
        )
    plan = plan_model(config, data, device)
    config = plan.config
    if config.run.devices == "auto":  # a resumed run needs the same number
        devices = num_processes(config.run, device) // config.run.num_nodes
        config = config.updated({"run.devices": devices})
        reasons.append(f"run.devices = {devices}: those that torch sees on this machine")
    data = _with_normalisation(data, config)
    measured.stages["images"] = time.monotonic() - began
    run = OngoingRun(folder, config, data, device, console, started, measured=measured)
    return run, [*reasons, *plan.reasons]


def _as_asked(config: Config) -> tuple[Config, list[str]]:
    """Settings in which a given size or number of tiles decides the other, with the reason."""
    size, tiles = config.data.size, config.data.tiles
    if size != "auto" and tiles == "auto":  # a given size is that of the whole image
        return config.updated({"data.tiles": 0}), []
    if size == "auto" and tiles not in ("auto", 0):
        why = f"data.size = {TILE_SIDE}: of each of {tiles} tiles, and of the whole image"
        return config.updated({"data.size": TILE_SIDE}), [why]
    return config, []


def _with_calibration(table: pd.DataFrame, config: Config) -> tuple[Config, list[str]]:
    """Settings with `data.calibrate` decided, with a reason if any."""
    if config.data.normal_class is None:
        return config.updated({"data.calibrate": 0.0}), []
    share, why = settle_calibration(table, config)
    reasons = [] if why is None else [f"data.calibrate = {share:g}: {why}"]
    return config.updated({"data.calibrate": share}), reasons


def _with_size(
    table: pd.DataFrame,
    config: Config,
    device: torch.device,
    started: float,
    report: Progress,
) -> tuple[Config, list[str]]:
    """Settings with size and tiles decided, with a reason for each decision."""
    size, why = settle_size(table, config, device, started=started, report=report)
    config, reasons = config.updated({"data.size": size}), [f"data.size = {size}: {why}"]
    if config.data.tiles == "auto":
        tiles = settle_tiles(table, config, device, started=started, report=report)
        config = config.updated({"data.tiles": tiles.number, "data.size": tiles.size})
        if tiles.why is not None:
            told = f"data.tiles = {tiles.number}: {tiles.why}"
            reasons = (
                [f"data.size = {TILE_SIDE}: of each piece", told]
                if tiles.number
                else [*reasons, told]
            )
    return config, reasons


def with_loss(
    config: Config, make_loss: LossFactory | None, *, resumed: bool
) -> tuple[Config, LossFactory | None]:
    """Settings that name the factory of a custom loss, if other processes can import it.

    Args:
        config: of a new run, or of the one that is resumed.
        make_loss: the given factory; None: the settings decide.
        resumed: whether the settings are those that the run began with.

    Returns:
        The settings, and the factory if they cannot name it or name another loss.
    """
    own = None if make_loss is None else plugin_of(make_loss)
    if own is None:
        return config, make_loss
    if not resumed:
        return config.updated({"objective.loss": asdict(own)}), None
    known = config.objective.loss
    same = known is not None and (known.class_path, known.init_args) == (
        own.class_path,
        own.init_args,
    )
    return config, None if same else make_loss


def _loss_of(run: OngoingRun) -> str | None:
    """Name of the factory of the run's loss; None: the settings of the objective decide."""
    own = run.config.objective.loss
    return loss_name(run.make_loss) or (None if own is None else own.class_path)


def check_run(run: OngoingRun) -> None:
    """Refuse early, before anything is written, settings that would fail after hours.

    Raises:
        ConfigError: loss, batches, devices and data do not fit each other.
    """
    config = run.config
    if run.make_loss is not None and num_processes(config.run, run.device) > 1:
        raise ConfigError(
            f"A custom loss ({loss_name(run.make_loss)}) with run.devices="
            f"{config.run.devices} and run.num_nodes={config.run.num_nodes}: the other processes "
            "would train with the settings' objective. Leave both at 1, or leave out the loss."
        )
    # Builds the loss, to refuse wrong arguments; the width of the features is not known yet.
    run.objective(torch.ones(run.data.label_space.num_classes), 1)
    if config.finetune.enabled:
        check_finetune(run)


def loss_name(make_loss: LossFactory | None) -> str | None:
    """The qualified name under which a run records the factory of its loss."""
    if make_loss is None:
        return None
    made: Any = make_loss
    while isinstance(made, partial):
        made = made.func
    if not hasattr(made, "__qualname__"):  # an object that can be called
        made = type(made)
    return f"{made.__module__}.{made.__qualname__}"


def record_run(
    run: OngoingRun, source: Path, reasons: list[str], asked: Config, *, resume: bool
) -> None:
    """Write the description of the run, and print it.

    Args:
        run: with decided settings.
        source: the data, as given.
        reasons: of the decisions.
        asked: the settings before the decisions.
        resume: whether the folder has the description already.
    """
    folder, data, console = run.folder, run.data, run.console
    if resume:
        check_same_data(folder, data.fingerprint)
        check_same_loss(folder, _loss_of(run))
        check_same_precision(folder, run.config.run.precision)
        folder.history()  # refuse a damaged history before hours of work
        remove_partial(folder.path)
        folder.mark("training", resumed=True, stopped=None)
    else:
        folder.begin(
            source,
            data.fingerprint,
            run.config,
            asked=asked,
            device=run.device.type,
            loss=_loss_of(run),
            reasons=reasons,
        )
    folder.save_manifest(data.table)
    folder.save_broken([(broken.path, broken.reason) for broken in data.cache.broken])
    if (corrections := run.config.data.corrections) is not None:
        folder.save_table(folder.corrections_path, data.corrections)
    folder.save_label_space(data.label_space)
    write_json(folder.path / "environment.json", environment())
    _describe(data, console)
    if corrections is not None:
        for sentence in told_corrections(data.corrections, corrections):
            say(console, f"{sentence} (all in corrections.csv)")
    if not resume and reasons:
        say(console, "Chosen (saved in config.yaml):")
        for reason in reasons:
            say(console, f"  {reason}")


def track(run: OngoingRun) -> None:
    """Send the results of a run to the trackers: settings, scores of each phase, metrics.

    Args:
        run: finished and evaluated.
    """
    folder, trackers = run.folder, run.trackers
    if not trackers.loggers:
        return
    trackers.settings(run.config)
    phases = read_json(folder.path / "phases.json")
    scores = phases.get("val_balanced_accuracy", {})
    trackers.figures({f"{name}/val_balanced_accuracy": score for name, score in scores.items()})
    trackers.figures({f"seconds/{name}": s for name, s in run.measured.stages.items()})
    path = folder.path / "metrics.json"
    if path.exists():
        trackers.figures(final_figures("val", read_json(path).get("val", {})))
    for file in ("config.yaml", "history.csv"):
        trackers.artifact(folder.path / file)


def _with_normalisation(data: InspectionSet, config: Config) -> InspectionSet:
    """Add the normalisation of the backbone's weights to the specification of the data."""
    mean, std = starting_mean_std(
        config.model.backbone, config.model.pretrained, data.spec.channels
    )
    return replace(data, spec=replace(data.spec, mean=mean, std=std))


def _describe(data: InspectionSet, console: Console) -> None:
    counts = data.label_space.counts
    sizes = ", ".join(f"{name} {len(data.view(name).targets):,}" for name in data.splits)
    say(
        console,
        f"{counted(len(data.table))} ({sizes}), {data.label_space.num_classes} classes, "
        f"{max(counts):,} to {min(counts):,} training images a class",
    )
    boxes = [file for file, part in map(split_part, data.table["image"]) if part.box is not None]
    if boxes:
        say(
            console,
            f"{len(boxes):,} of them {by_number(len(boxes), 'is a box', 'are boxes')} of "
            f"{counted(len(set(boxes)), 'file')}, each seen in a square whose side is its longer "
            f"side x {data.spec.context:g} (data.box_columns, data.context)",
        )
    if data.cache.broken:
        say(console, f"{counted(len(data.cache.broken))} cannot be used:", "yellow")
        for broken in data.cache.broken[:20]:
            say(console, f"  {broken.path}: {broken.reason}")
        if len(data.cache.broken) > 20:
            say(console, f"  and {len(data.cache.broken) - 20} more in broken_images.csv")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence Lightning's hints within a block; they concern settings that recame chose.

    The program's loggers and warnings are restored when the block ends.
    """
    names = ("lightning.pytorch", "lightning.fabric", "lightning")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for pattern in _HINTS:
                warnings.filterwarnings("ignore", pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
