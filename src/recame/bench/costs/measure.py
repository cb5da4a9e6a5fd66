"""What each method costs on this machine: size, arithmetic, speed and memory, side by side."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from recame.bench.costs.parts import (
    count_macs,
    cpu_peak_mib,
    deciding_network,
    gpu_peak_mib,
    heads_s,
    inference_rate,
    trained_parameters,
    training_rate,
)
from recame.bench.plan.method import Method
from recame.bench.plan.plan import Bench
from recame.bench.queue.process import fresh_processes
from recame.config import Config, largest_symmetry
from recame.data.dataset import InspectionSet, load_inspection_set
from recame.data.sampling import balanced_sample
from recame.files import write_json
from recame.inference.device import choose_device
from recame.machine import describe_machine
from recame.progress import Progress, silent
from recame.runs.folder import RunFolder
from recame.training.ongoing_run import OngoingRun
from recame.training.planner import PROBE_MAX_PER_CLASS, plan_model
from recame.training.views import with_symmetry


@dataclass(frozen=True)
class Subject:
    """A method on a data set, to be measured; plain data that another process can receive.

    Attributes:
        key: `DATA/METHOD`.
        source: the data set's manifest.
        config: the settings of its runs; `auto` is decided as in a run.
        method: for a method with a loss of its own; None: the settings' loss.
    """

    key: str
    source: Path
    config: Config
    method: Method | None = None


@dataclass(frozen=True)
class Costs:
    """What one method costs on one data set.

    Attributes:
        parameters: number of parameters of the network that answers, all experts.
        trained_parameters: number of these that fine-tuning changes; 0 if only heads are trained.
        macs: multiply-accumulate operations of one image without test-time augmentation, all
            experts: convolutions and matrix products.
        train_images_per_s: speed of fine-tuning steps: loading, augmentation, loss, backward and
            optimiser; None for a method without fine-tuning.
        fixed_s: seconds of a run's other phases, computed from measured parts: embedding and heads
            of the probe and of re-training, and the validation after each epoch if the number of
            epochs is given. Without loading, the choice of a symmetry and the last evaluation on
            val.
        inference_images_per_s: without test-time augmentation, eager, in batches of
            `INFERENCE_BATCH` on the device.
        peak_memory_mib: largest memory of fine-tuning steps beyond the loaded program and its
            images: of the GPU, or of a fresh process on the CPU. None if unknown.
        spread: largest over smallest speed of the rounds, minus 1: how reliable the speeds are.
        device: `cpu`, or the GPU's name.
        batch_size: of the training steps.
        threads: number of threads of torch.
    """

    parameters: int
    trained_parameters: int
    macs: int
    train_images_per_s: float | None
    fixed_s: float
    inference_images_per_s: float
    peak_memory_mib: float | None
    spread: float
    device: str
    batch_size: int
    threads: int


def measure_side_by_side(
    subjects: Sequence[Subject], *, rounds: int = 3, on_progress: Progress = silent
) -> dict[str, Any]:
    """Measure all methods in turn, in several rounds, so that a drift of speed affects all alike.

    Weights are random, because they do not change the costs. Nothing is trained.

    Args:
        subjects: what to measure; keys are unique.
        rounds: number of measurements of each speed; every second round runs backwards.
        on_progress: called with the progress.

    Returns:
        `machine` and `rows`: key -> fields of `Costs`; a row's speeds are medians of the rounds.
    """
    known: dict[str, tuple[InspectionSet, int]] = {}
    samples = {subject.key: _sample(subject, known) for subject in subjects}
    total, done = (rounds + 1) * len(subjects), 0
    sizes: dict[str, dict[str, Any]] = {}
    for done, subject in enumerate(subjects, 1):
        sizes[subject.key] = _measure_size(subject, *samples[subject.key])
        on_progress("costs", done, total)
    speeds: dict[str, list[tuple[float | None, float]]] = {s.key: [] for s in subjects}
    for number in range(rounds):
        for subject in subjects if number % 2 == 0 else reversed(subjects):
            with _ongoing(subject, samples[subject.key][0]) as run:
                speeds[subject.key].append((training_rate(run), inference_rate(run)))
            done += 1
            on_progress("costs", done, total)
    rows = {s.key: asdict(_summary(sizes[s.key], speeds[s.key])) for s in subjects}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": {**describe_machine(), "gpus": gpus}, "rows": rows}


def _summary(size: dict[str, Any], speeds: Sequence[tuple[float | None, float]]) -> Costs:
    training = [train for train, _ in speeds if train is not None]
    inference = [forward for _, forward in speeds]
    spread = max(max(values) / min(values) for values in (training, inference) if values) - 1
    rate = float(np.median(inference))
    return Costs(
        train_images_per_s=float(np.median(training)) if training else None,
        fixed_s=size.pop("heads_s") + size.pop("num_validated") / rate,
        inference_images_per_s=rate,
        spread=spread,
        **size,
    )


def _sample(
    subject: Subject, known: dict[str, tuple[InspectionSet, int]]
) -> tuple[InspectionSet, int]:
    """Some training images, rare classes first, and the number of validation images of the set.

    Methods with equal data settings share them. The cost of a step does not depend on its images;
    the label space keeps the full counts.
    """
    config = subject.config
    most, seed = 4 * config.finetune.images_per_step, config.run.seed
    key = f"{subject.source} {seed} {most} {config.data.model_dump_json()}"
    if key not in known:
        data = load_inspection_set(subject.source, config.data, seed=seed)
        view = data.view("train")
        chosen = np.sort(balanced_sample(view.targets, most, seed=0))
        rows = np.arange(len(chosen))
        table = data.table.iloc[view.indices[chosen]].reset_index(drop=True).assign(row=rows)
        images = np.ascontiguousarray(data.cache.images[view.rows[chosen]])
        cache = replace(data.cache, images=images, row_of=rows, broken=())
        num_val = int((data.table["split"] == "val").sum())
        known[key] = replace(data, table=table, cache=cache), num_val
    return known[key]


@contextmanager
def _ongoing(subject: Subject, data: InspectionSet) -> Iterator[OngoingRun]:
    """A run in its state before the first phase, in a temporary folder."""
    config = subject.config.updated({"finetune.epoch_size": "auto"})
    device = choose_device(config.run.accelerator)
    # Plan as its runs do: the starting weights may decide the network too.
    config = plan_model(config, data, device).config.updated({"model.pretrained": False})
    if config.augment.symmetry == "auto":
        config = with_symmetry(config, largest_symmetry(*data.spec.piece_size))
    if config.probe.max_per_class == "auto":  # a run decides this by a measured speed
        config = config.updated({"probe.max_per_class": PROBE_MAX_PER_CLASS})
    with tempfile.TemporaryDirectory(prefix="recame-costs-") as folder:
        yield OngoingRun(
            RunFolder(Path(folder)),
            config,
            data,
            device,
            Console(quiet=True),
            time.monotonic(),
            subject.method.make_loss() if subject.method else None,
        )


def _measure_size(subject: Subject, data: InspectionSet, num_val: int) -> dict[str, Any]:
    """Measure once: all of `Costs` but the speeds, and the parts of `fixed_s`."""
    with _ongoing(subject, data) as run:
        model = deciding_network(run).eval()
        spec, config, on_gpu = data.spec, run.config, run.device.type == "cuda"
        image = torch.zeros(1, spec.channels, spec.height, spec.width, device=run.device)
        settings, peak = config.finetune, None
        if settings.enabled:
            peak = gpu_peak_mib(run) if on_gpu else _peak_in_child(subject, data)
        pretrained = subject.config.model.pretrained is not False
        known = settings.enabled and settings.epochs != "auto"
        return {
            "heads_s": sum(
                (
                    # Expert branches with pretrained weights are copies until they are fine-tuned.
                    heads_s(run, part, single=part is config.probe and pretrained)
                    for part in (config.probe, config.retrain)
                    if part.enabled
                ),
                0.0,
            ),
            "num_validated": int(settings.epochs) * num_val if known else 0,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained_parameters": trained_parameters(run) if settings.enabled else 0,
            "macs": count_macs(model, image),
            "peak_memory_mib": peak,
            "device": torch.cuda.get_device_name(run.device) if on_gpu else "cpu",
            "batch_size": settings.batch_size,
            "threads": torch.get_num_threads(),
        }


def _peak_in_child(subject: Subject, data: InspectionSet) -> float | None:
    """Memory of training steps in a fresh process, MiB; None if it was killed (out of memory)."""
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh_processes([__name__])) as pool:
        try:
            return pool.submit(_cpu_peak, subject, data, torch.get_num_threads()).result()
        except BrokenProcessPool:
            return None


def _cpu_peak(subject: Subject, data: InspectionSet, threads: int) -> float | None:
    torch.set_num_threads(threads)
    with _ongoing(subject, data) as run:
        return cpu_peak_mib(run)


def measure_all(
    bench: Bench,
    on_progress: Progress = silent,
    *,
    threads: int | None = None,
    kept: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure the methods of a bench on its data sets, and write the bench's `costs.json`.

    Args:
        bench: a loaded plan.
        on_progress: called with the progress.
        threads: of a run on the CPU; None: torch's number.
        kept: rows that are kept and not measured again.

    Returns:
        The content of the file: see `measure_side_by_side`.
    """
    seed = bench.plan.seeds[0]
    subjects = [
        Subject(
            f"{data}/{name}",
            bench.sources[data, seed],
            bench.config(data, name, seed),
            bench.methods[name],
        )
        for data in bench.data
        for name in bench.plan.methods_on(data, bench.methods)
        if f"{data}/{name}" not in (kept or {})
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        found = measure_side_by_side(subjects, on_progress=on_progress)
    finally:
        torch.set_num_threads(before)
    found["rows"] = {**(kept or {}), **found["rows"]}
    bench.path.mkdir(parents=True, exist_ok=True)
    write_json(bench.costs_path, found)
    return found
