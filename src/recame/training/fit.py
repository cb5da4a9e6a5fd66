"""A whole training run: data, plan, probe, fine-tune, and the better phase is kept."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from recame.config import Config
from recame.contracts import PreprocessSpec
from recame.data import (
    InspectionSet,
    ManifestColumns,
    load_inspection_set,
    native_size,
    read_manifest,
)
from recame.errors import ConfigError
from recame.evaluation.progress import progress_bars
from recame.losses import LossFactory
from recame.models import (
    PACKAGED_BACKBONE,
    Architecture,
    MultiExpertClassifier,
    pretrained_mean_std,
)
from recame.training.choice import keep_best
from recame.training.finetune import check_finetune, run_finetune
from recame.training.ongoing_run import OngoingRun
from recame.training.planner import choose_device, choose_size, plan_model
from recame.training.probe import initial_model, run_probe
from recame.training.processes import is_follower, leaders_run
from recame.training.retrain import run_retrain
from recame.training.run_folder import RunFolder, environment, write_json


def train(
    source: Path | str,
    config: Config | None = None,
    *,
    out: Path | str,
    resume: bool = False,
    console: Console | None = None,
    make_loss: LossFactory | None = None,
) -> RunFolder:
    """Train on a folder or table of images and leave a run folder.

    Args:
        source: a folder per class, a folder with train/val/test, or a CSV/Parquet table.
        config: the settings; what is left at `auto` is decided from the data and the device.
        out: the run folder to make, or with `resume` to continue.
        resume: take up an interrupted run with its own settings; the result is the one that an
            uninterrupted run would have had.
        console: where progress goes; silent if None.
        make_loss: makes a loss of one's own, which the settings do not describe: give it again to
            resume. One device only.

    Returns:
        The finished run's folder.

    Raises:
        RecameError: the data, the settings or the folder cannot be used as they are.
        SystemExit: in the other processes of a run on several devices, once training ended.
    """
    started = time.monotonic()
    console = console or Console(quiet=True)
    quiet_libraries()
    if resume:
        config = RunFolder.open(Path(out)).load_config()
    config = config or Config()
    if config.distill.teacher is not None:
        raise ConfigError(
            f"These settings are a student's, taught by {config.distill.teacher}: use recame "
            f"distill {'--resume --out ' + str(out) if resume else config.distill.teacher}, or set "
            "distill.teacher=null to train the same network on labels alone."
        )
    if is_follower(config.run):
        if not config.finetune.enabled:
            raise SystemExit(0)  # the leader needs no help with the rest
        _follow(Path(source), Path(out), started)
    if resume:
        folder = RunFolder.open(Path(out))
        if folder.finished:
            console.print(f"{folder.path} is finished: nothing to resume.")
            return folder
    else:
        folder = RunFolder.free(Path(out))
        _check_network(config)
    run, reasons = _prepare(Path(source), config, folder, console, started)
    run = replace(run, make_loss=make_loss)
    record_run(run, Path(source), reasons, resume=resume)
    candidates: dict[str, MultiExpertClassifier] = {}
    if run.config.probe.enabled:
        run, model = run_probe(run)
        candidates["probe"] = model
    else:
        model = initial_model(run)
    if run.config.finetune.enabled:
        run, candidates["finetune"] = run_finetune(
            run, copy.deepcopy(model) if candidates else model
        )
    if run.config.retrain.enabled:
        last = candidates[list(candidates)[-1]]
        candidates["retrained"] = run_retrain(run, last)
    keep_best(run, candidates)
    folder.finish()
    return folder


def _follow(source: Path, out: Path, started: float) -> NoReturn:
    """Help another process with its fine-tuning; it alone writes and goes on."""
    folder = leaders_run(out)
    run, _ = _prepare(source, folder.load_config(), folder, Console(quiet=True), started)
    folder.check_same_data(run.data.fingerprint)
    run, model = run_probe(run) if run.config.probe.enabled else (run, initial_model(run))
    run_finetune(run, model)
    raise SystemExit(0)


def _check_network(config: Config) -> None:
    """Refuse, before any image is decoded, a network that cannot be built."""
    settings = config.model
    fallbacks = {"backbone": PACKAGED_BACKBONE, "shared_stages": 0, "pooled_stages": 1}
    values = {name: getattr(settings, name) for name in Architecture.__dataclass_fields__}
    values |= {name: value for name, value in fallbacks.items() if values[name] == "auto"}
    values["shared_stages"] = max(0, values["shared_stages"])  # from the end: the planner's work
    values["num_experts"] = 1
    channels = 3 if config.data.channels == "auto" else config.data.channels
    mean, std = pretrained_mean_std(values["backbone"], settings.pretrained, channels)
    side = 64 if config.data.size == "auto" else config.data.size
    spec = PreprocessSpec(side, side, channels, 8, 255.0, mean, std)
    model = MultiExpertClassifier(Architecture(**values), 2, spec, settings.pretrained).eval()
    if side >= 64:
        return
    try:
        with torch.inference_mode():
            model(torch.zeros(1, channels, side, side))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"data.size={side} is too small for {values['backbone']}, which leaves nothing of such "
            f"an image ({reason}): give a larger size, fewer model.stages or another backbone."
        ) from error


def _prepare(
    source: Path, config: Config, folder: RunFolder, console: Console, started: float
) -> tuple[OngoingRun, list[str]]:
    """Load the data and decide what is left open, with a reason for each decision."""
    device = choose_device(config.run.accelerator)
    reasons: list[str] = []
    if config.data.size == "auto":
        table = read_manifest(source, ManifestColumns.of(config.data))
        paths = [Path(path) for path in table["path"]]
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
    return OngoingRun(folder, config, data, device, console, started), [*reasons, *plan.reasons]


def record_run(run: OngoingRun, source: Path, reasons: list[str], *, resume: bool) -> None:
    """Write what describes the run, and say it."""
    folder, data, console = run.folder, run.data, run.console
    if resume:
        folder.check_same_data(data.fingerprint)
        folder.mark("training", resumed=True)
    else:
        run.objective(torch.ones(data.label_space.num_classes))  # refuses what it cannot be made of
        if run.config.finetune.enabled:
            check_finetune(run)
        folder.begin(source, data.fingerprint, run.config)
    folder.save_manifest(data.table)
    folder.save_broken([(broken.path, broken.reason) for broken in data.cache.broken])
    write_json(folder.path / "label_space.json", data.label_space.to_dict())
    write_json(folder.path / "environment.json", environment())
    _describe(data, console)
    if not resume and reasons:
        folder.explain(reasons)
        console.print("Chosen (saved in config.yaml):")
        for reason in reasons:
            console.print(f"  {reason}", highlight=False, soft_wrap=True)


def _with_normalisation(data: InspectionSet, config: Config) -> InspectionSet:
    """Give the specification the normalisation that the backbone's weights were trained with."""
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
        soft_wrap=True,
    )
    if data.cache.broken:
        console.print(f"[yellow]{len(data.cache.broken)} images cannot be used:[/yellow]")
        for broken in data.cache.broken[:20]:
            console.print(
                f"  {broken.path}: {broken.reason}", markup=False, highlight=False, soft_wrap=True
            )
        if len(data.cache.broken) > 20:
            console.print(f"  and {len(data.cache.broken) - 20} more in broken_images.csv")


def quiet_libraries() -> None:
    """Our own console speaks; Lightning's hints are about settings that we have made."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists.*",
        ".*LeafSpec.*is deprecated.*",
        ".*Total length of .* is zero.*",
        ".*in eval mode at the start of training.*",  # frozen batch norms
    ):
        warnings.filterwarnings("ignore", pattern)
