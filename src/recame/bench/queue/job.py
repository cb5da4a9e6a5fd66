"""One run of the bench: train or resume, judge, and leave a result."""

from __future__ import annotations

import json
import time
from importlib.metadata import version

from rich.console import Console

from recame.bench.plan.plan import Bench, Job
from recame.bench.queue.trained import TEACHER_DIR, train_job, training_facts
from recame.config import Config
from recame.errors import ConfigError
from recame.files import write_json
from recame.machine import environment
from recame.reports.evaluate import evaluate
from recame.runs.folder import RunFolder

RESULT_SCHEMA = 1


def run_job(bench: Bench, job: Job, console: Console | None = None) -> None:
    """Train (or take up) one run, judge it on the plan's splits and write its result.

    Args:
        bench: the plan at work.
        job: which run.
        console: where progress goes; silent if None.

    Raises:
        RecameError: the run cannot be made.
    """
    if bench.result_path(job).exists():
        return
    train_job(bench, job, job_config(bench, job), console)
    began = time.monotonic()
    for split in bench.plan.data[job.data].splits:
        evaluate(bench.run_dir(job), split=split, console=console, report=False)
    _write_result(bench, job, time.monotonic() - began)


def job_config(bench: Bench, job: Job) -> Config:
    """Settings of a job, with an equal time shared out where the plan asks for it.

    Raises:
        ConfigError: the settings are wrong, or the costs that an equal time needs are missing.
    """
    config = bench.config(job.data, job.method, job.seed)
    if bench.plan.equal != "time" or job.method == bench.plan.pace or not config.finetune.enabled:
        return config
    try:
        rows = json.loads(bench.costs_path.read_text(encoding="utf-8"))["rows"]
        own, pace = (rows[f"{job.data}/{m}"] for m in (job.method, bench.plan.pace))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"Plan {bench.plan.name} shares out equal time, and {bench.costs_path} does not say "
            f"what {job.method} costs on {job.data} ({error!r}): run recame bench again with "
            "--costs on a quiet machine."
        ) from error
    size = bench.config(job.data, str(bench.plan.pace)).finetune.epoch_size
    if size == "auto":
        raise ConfigError(
            f"Plan {bench.plan.name}: equal=time needs finetune.epoch_size as a number, the images "
            f"of an epoch of {bench.plan.pace}; give it among the settings of {job.data}."
        )
    epochs = int(config.finetune.epochs)
    spare_s = epochs * size / pace["train_images_per_s"] + pace["fixed_s"] - own["fixed_s"]
    images = max(config.finetune.batch_size, spare_s * own["train_images_per_s"] / epochs)
    return config.updated({"finetune.epoch_size": round(images)})


def _write_result(bench: Bench, job: Job, evaluate_s: float) -> None:
    folder = RunFolder.open(bench.run_dir(job))
    info, config = folder.info(), folder.load_config()
    metrics = json.loads((folder.path / "metrics.json").read_text(encoding="utf-8"))
    phases = folder.path / "phases.json"
    kept = json.loads(phases.read_text())["kept"] if phases.exists() else "last"
    cost, teachers = training_facts(folder.path), {}
    if bench.methods[job.method].teacher is not None:
        teachers = {"teacher": training_facts(folder.path / TEACHER_DIR)}
        for name in ("images_seen", "train_s"):  # of both
            cost[name] += teachers["teacher"][name]
    result = {
        "schema": RESULT_SCHEMA,
        "data": job.data,
        "method": job.method,
        "seed": job.seed,
        "recame": version("recame"),
        **cost,
        **teachers,
        "evaluate_s": round(evaluate_s, 2),
        "config": config.model_dump(mode="json"),
        "fingerprint": info["data_fingerprint"],
        "environment": environment(),
        "splits": {name: metrics[name] for name in bench.plan.data[job.data].splits},
        "kept": kept,
    }
    write_json(bench.result_path(job), result)
