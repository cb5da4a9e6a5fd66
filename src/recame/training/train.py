"""A whole training run: data, plan, probe, fine-tuning, and selection of the better phase."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Unpack

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console

from recame.config import Config, as_config, height_width
from recame.contracts import AnyPath, PreprocessSpec
from recame.datasets.given import Given, given_path
from recame.datasets.registry import built_source
from recame.errors import ConfigError, DataError, RecameError
from recame.losses import LossFactory
from recame.models import (
    PACKAGED_BACKBONE,
    Architecture,
    MultiExpertClassifier,
    register_backbone,
)
from recame.names import command, usual_run_dir
from recame.progress import say
from recame.runs.folder import RunFolder
from recame.runs.same_beginning import check_same_data
from recame.runs.trackers import tracking
from recame.short_names import ShortSettings, in_full
from recame.training.answering import keep_graph
from recame.training.begin import _prepare, check_run, quiet_libraries, record_run, track, with_loss
from recame.training.loop.launched import as_launched
from recame.training.loop.processes import (
    is_follower,
    leaders_run,
    leading,
    leave_with_leader,
)
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.choice import keep_best
from recame.training.phases.finetune import run_finetune
from recame.training.phases.probe import initial_model, run_probe
from recame.training.phases.retrain import run_retrain
from recame.training.reserve import tell_time
from recame.training.starting_weights import own_source, starting_mean_std, starting_network


@quiet_libraries()
def train(
    data: Given | None = None,
    config: Config | Mapping[str, Any] | AnyPath | None = None,
    *,
    out: AnyPath | None = None,
    resume: bool = False,
    console: Console | None = None,
    make_loss: LossFactory | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Logger | Sequence[Logger] = (),
    started: float | None = None,
    **settings: Unpack[ShortSettings],
) -> RunFolder:
    """Train on a set of images and write a run folder.

    Args:
        data: a folder per class, a folder with train/val/test, a CSV/Parquet table, a DataFrame
            (`image, label`; further columns are kept), a list of (image path, label), or a run,
            whose images are taken with their splits. Data given in memory are stored as a table in
            the run folder. With `resume`, data may be left out.
        config: the settings: a `Config`, a dictionary such as `{"finetune.lr": 5e-4}`, or a YAML
            file. Settings that are `auto` are decided from the data and the device.
        out: the run folder to create, or with `resume` to continue; None: `runs/<data>-<time>`.
        resume: continue an interrupted run with its own settings; the result is that of an
            uninterrupted run.
        console: where progress goes; silent if None.
        make_loss: factory of a custom loss, as `objective.loss` names one. A factory that other
            processes can import becomes part of the settings; any other one must be given again to
            resume, and trains on one device only.
        callbacks: of Lightning, for fine-tuning's trainer; they are not part of the settings.
        logger: of Lightning; logs the settings, every phase and the final metrics, in addition to
            those that `run.loggers` names.
        started: `time.monotonic()` at which a time budget begins; default: now.
        settings: `epochs=5`, `batch_size=32`, `size=128`, `time_budget="10m"`, `normal="good"`,
            `seed=0`, `device="cpu"`: short names (`recame.short_names.SHORT`); override `config`.

    Returns:
        The finished run's folder. If the loss or the weights became non-finite, training stopped
        early with the last good weights: `stopped` says why.

    Raises:
        RecameError: the data, the settings or the folder cannot be used.
        SystemExit: in the other processes of a run on several, when the leader's run is finished.
    """
    started = time.monotonic() if started is None else started
    chosen = as_config(config).updated(in_full(settings))
    console = console or Console(quiet=True)
    if resume:
        data, folder = _resumed(data, settings, out)
        chosen = folder.load_config()
    else:
        data, folder = _begun(data, out)
    chosen = as_launched(chosen, resumed=resume)
    if chosen.distill.teacher is not None:
        words = ("--resume", "--out", folder.path) if resume else (chosen.distill.teacher,)
        raise ConfigError(
            f"These settings are a student's, taught by {chosen.distill.teacher}: use "
            f"{command('recame', 'distill', *words)}, or set distill.teacher=null to train the "
            "same network on labels alone."
        )
    chosen, make_loss = with_loss(chosen, make_loss, resumed=resume)
    register_backbone(chosen.model.backbone_from)
    follows = is_follower(chosen.run)
    if not follows and not resume:
        RunFolder.free(folder.path)
        _check_network(chosen)
    with given_path(data, folder.path, chosen.data.image_column) as source:
        if follows:
            _follow(source, chosen, folder.path, started)
        own = _Own(make_loss, tuple(callbacks), logger)
        return _led(source, chosen, folder, console, own, started, resume=resume)


@dataclass(frozen=True)
class _Own:
    """Arguments of a run that are given in Python only and are not settings."""

    make_loss: LossFactory | None
    callbacks: tuple[Callback, ...]
    logger: Logger | Sequence[Logger]

    @property
    def loggers(self) -> Sequence[Logger]:
        return [self.logger] if isinstance(self.logger, Logger) else self.logger


def _begun(data: Given | None, out: AnyPath | None) -> tuple[Given, RunFolder]:
    """The data, and the new run."""
    if data is None:
        raise DataError("No data given: recame.train(FOLDER), or a table of images and labels.")
    if out is not None:
        return data, RunFolder(Path(out))
    named = data if isinstance(data, str | os.PathLike) else "table"
    return data, RunFolder(usual_run_dir(Path(named)))


def _resumed(
    data: Given | None, settings: Mapping[str, object], out: AnyPath | None
) -> tuple[Given, RunFolder]:
    """The run to resume, and its data."""
    if out is None:
        raise ConfigError("resume=True needs the run to continue: add out=RUN.")
    if settings:
        raise ConfigError(
            f"resume=True continues with the run's own settings: leave {', '.join(settings)} out."
        )
    folder = RunFolder.open(Path(out))
    return folder.source if data is None else data, folder


def _led(
    source: Path,
    config: Config,
    folder: RunFolder,
    console: Console,
    own: _Own,
    started: float,
    *,
    resume: bool,
) -> RunFolder:
    """Train as the only process, or as the leader of others."""
    source = built_source(source, config.data.builder, console)
    with ExitStack() as held:
        if resume:
            held.enter_context(folder.in_training())
            # No process writes it any more.
            config = as_launched(folder.load_config(), resumed=True)
            if folder.finished:
                folder.drop_unfinished()
                say(console, f"{folder.path} is finished: nothing to resume.")
                return folder
        held.enter_context(leading(folder.path, config.run))
        run, reasons = _prepare(source, config, folder, console, started)
        run = replace(run, make_loss=own.make_loss)
        check_run(run)
        if not resume:
            folder.make()
            held.enter_context(folder.in_training())
            RunFolder.free(folder.path)  # another process may have begun a run there meanwhile
        record_run(run, source, reasons, config, resume=resume)
        trackers = held.enter_context(tracking(folder, run.config, own.loggers))
        _run_phases(replace(run, trackers=trackers, callbacks=own.callbacks))
    return folder


def _run_phases(run: OngoingRun) -> None:
    """Train all phases, and keep the one that `val` chooses."""
    candidates: dict[str, MultiExpertClassifier] = {}
    stage = run.measured.stage
    if run.config.probe.enabled:
        with stage("probe"):
            run, model = run_probe(run)
        candidates["probe"] = model
    else:
        with stage("first weights"):
            model = initial_model(run)
    if run.config.finetune.enabled:
        with stage("fine-tuning"):
            run, tuned = run_finetune(run, copy.deepcopy(model) if candidates else model)
        if tuned is not None:
            candidates["finetune"] = tuned
    if run.config.retrain.enabled:
        last = candidates[list(candidates)[-1]]
        with stage("new heads"):
            candidates["retrained"] = run_retrain(run, last)
    with stage("judging"):
        run = keep_best(run, candidates)
    with stage("graph"):
        keep_graph(run)
    tell_time(run)
    track(run)
    run.folder.finish()


def _follow(source: Path, config: Config, out: Path, started: float) -> NoReturn:
    """Join the fine-tuning of the leader, which alone writes, prints, and continues afterwards."""
    warnings.simplefilter("ignore")  # the leader shows the same warnings
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    silent = Console(quiet=True)
    if config.data.size == "auto":  # the leader decides, by measured times
        config = leaders_run(out, begun=True).load_config()
    with suppress(RecameError):  # the leader reports it
        # Decode the images on this node, if needed, while the leader trains its probe.
        _prepare(source, config, RunFolder(out), silent, started)
    folder = leaders_run(out)
    if config.data.builder is not None:
        source = folder.source
    run, _ = _prepare(source, folder.load_config(), folder, silent, started)
    check_same_data(folder, run.data.fingerprint)
    run, model = run_probe(run) if run.config.probe.enabled else (run, initial_model(run))
    run_finetune(run, model)
    leave_with_leader(folder.path)


def _check_network(config: Config) -> None:
    """Refuse a network that cannot be built, before any image is decoded."""
    settings = config.model
    source = own_source(settings.pretrained)
    usual = PACKAGED_BACKBONE if source is None else source.architecture.backbone
    fallbacks = {"backbone": usual, "shared_stages": 0, "pooled_stages": 1}
    undecided: dict[str, object] = {
        name: value for name, value in fallbacks.items() if getattr(settings, name) == "auto"
    }
    if "backbone" in undecided and source is not None:
        undecided["backbone_from"] = source.architecture.backbone_from
    plan = Architecture.of(settings.model_copy(update=undecided))
    # The planner resolves stages that are counted from the end.
    plan = replace(plan, num_experts=1, shared_stages=max(0, plan.shared_stages))
    channels = config.data.channels
    if channels == "auto":
        channels = 3 if source is None else source.spec.channels
    mean, std = starting_mean_std(plan.backbone, settings.pretrained, channels)
    height, width = height_width(64 if config.data.size == "auto" else config.data.size)
    spec = PreprocessSpec(height, width, channels, 8, 255.0, mean, std)
    model = starting_network(plan, 2, spec, settings.pretrained).eval()
    try:
        with torch.inference_mode():
            model(torch.zeros(1, channels, height, width))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        small = min(height, width) < 64
        why = "is too small for" if small else "does not suit"
        raise ConfigError(
            f"data.size={config.data.size} {why} {plan.backbone}, which cannot process such an "
            f"image ({reason}): give a {'larger' if small else 'different'} size, fewer "
            "model.stages or another backbone."
        ) from error
