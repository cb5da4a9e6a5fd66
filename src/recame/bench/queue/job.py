"""One run of the bench: train or resume, evaluate, and write a result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from recame.bench.plan.plan import Bench, Job
from recame.bench.queue.published_groups import published_groups
from recame.bench.queue.sampling_error import sampling_error
from recame.bench.queue.unseen import tail_unseen
from recame.bench.tables.results import RESULT_SCHEMA, TEST_ERROR
from recame.config import Config
from recame.datasets.registry import PUBLIC_SETS
from recame.errors import CheckpointError, ConfigError, TrainingError
from recame.files import read_json, write_json
from recame.machine import environment
from recame.reports.evaluate import evaluate
from recame.reports.judged_images import PREDICTIONS
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions
from recame.training.student.distill import distill
from recame.training.train import train

#: File in a run's folder: the method's code when the run began.
METHOD_FILE = "method.json"

#: Folder in a student's run folder: the run of its teacher.
TEACHER_DIR = "teacher"

#: Settings that a run decides or records itself, regardless of the plan. The settings of `distill`
#: among them follow from `model.*` and `data.size`, which describe a student's network.
_DECIDED = frozenset(
    {
        "data.channels",
        "data.bit_depth",
        "augment.symmetry",
        "distill.teacher",
        "distill.stages",
        "distill.attention",
        "distill.size",
    }
)


def run_job(bench: Bench, job: Job, console: Console | None = None) -> None:
    """Train or resume one run, evaluate it on the plan's splits and write its result.

    Args:
        bench: a plan with its folder.
        job: the run.
        console: where progress goes; silent if None.

    Raises:
        RecameError: the run cannot be trained or evaluated.
    """
    if bench.result_path(job).exists():
        return
    _train(bench, job, job_config(bench, job), console)
    began = time.monotonic()
    for split in bench.plan.data[job.data].splits:
        evaluate(bench.run_dir(job), split=split, console=console, report=False)
    _write_result(bench, job, time.monotonic() - began)


def job_config(bench: Bench, job: Job) -> Config:
    """Settings of a job, with the images of its equal time if the plan asks for that.

    Raises:
        ConfigError: the settings are wrong, or the costs that equal time needs are missing.
    """
    config = bench.config(job.data, job.method, job.seed)
    if bench.plan.equal != "time" or job.method == bench.plan.pace or not config.finetune.enabled:
        return config
    rows = bench.costs().get("rows", {})
    try:
        own, pace = (rows[f"{job.data}/{m}"] for m in (job.method, bench.plan.pace))
        fixed_s = float(pace["fixed_s"]) - float(own["fixed_s"])
        rate, pace_rate = (float(row["train_images_per_s"]) for row in (own, pace))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"Plan {bench.plan.name} compares at equal time, and {bench.costs_path} does not say "
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
    spare_s = epochs * size / pace_rate + fixed_s
    images = max(config.finetune.images_per_step, spare_s * rate / epochs)
    return config.updated({"finetune.epoch_size": round(images)})


def _train(bench: Bench, job: Job, config: Config, console: Console | None = None) -> None:
    """Train a job's run to its end, after its teacher's run if the method has one.

    Args:
        bench: a plan with its folder.
        job: the run.
        config: its settings.
        console: where progress goes; silent if None.

    Raises:
        RecameError: a run cannot be trained, or was begun under other settings.
    """
    method, out = bench.methods[job.method], bench.run_dir(job)
    if _begun(out) or _begun(out / TEACHER_DIR):
        check_code(bench, job)
    else:
        write_json(out / METHOD_FILE, {"method": method.name, "code_sha256": method.code_sha256})
    source, make_loss = bench.sources[job.data, job.seed], method.make_loss()
    words: dict[str, Any] = {"console": console, "make_loss": make_loss}
    if method.teacher is None:
        if not is_trained(out, config):
            train(source, config, out=out, resume=_begun(out), **words)
        _check_whole(out)
        return
    teacher = bench.config(job.data, job.method, job.seed, of_teacher=True)
    if not is_trained(out / TEACHER_DIR, teacher):
        resume = _begun(out / TEACHER_DIR)
        train(source, teacher, out=out / TEACHER_DIR, resume=resume, **words)
    _check_whole(out / TEACHER_DIR)
    if not is_trained(out, config):
        changes = student_changes(config, RunFolder.open(out / TEACHER_DIR).load_config())
        distill(out / TEACHER_DIR, out=out, changes=changes, resume=_begun(out), **words)
    _check_whole(out)


def _check_whole(out: Path) -> None:
    """Refuse to evaluate a run that diverged: it has fewer epochs than the runs beside it."""
    if (reason := RunFolder.open(out).stopped) is not None:
        raise TrainingError(f"{out} ended too early to be compared with other runs: {reason}")


def check_code(bench: Bench, job: Job) -> None:
    """Refuse a run that was begun with other code of its method.

    Raises:
        ConfigError: the code differs, or was not recorded by the version that began the run.
    """
    record, method = bench.run_dir(job) / METHOD_FILE, bench.methods[job.method]
    if record.exists():
        then = read_json(record).get("code_sha256")
        if then == method.code_sha256:
            return
        told = f"with other code (SHA-256 {str(then)[:12]} then, {method.code_sha256[:12]} now)"
    elif not method.code_sha256:
        return
    else:
        told = "by a version that kept no record of a method's code"
    raise ConfigError(
        f"{bench.run_dir(job)} was begun {told}, so going on might mix two methods under the name "
        f"{job.method}: remove that folder, give the plan another --out, or call the changed "
        f"method otherwise. If the code only reads otherwise, put "
        f'{{"code_sha256": "{method.code_sha256}"}} into {record}.'
    )


def _begun(out: Path) -> bool:
    return (out / "run.json").exists()


def is_trained(out: Path, config: Config) -> bool:
    """Whether a run is finished.

    Raises:
        ConfigError: it was begun under other settings.
    """
    if not _begun(out):
        return False
    folder = RunFolder.open(out)
    asked = folder.asked()
    # A student is asked for what its teacher's run decided; older runs kept only decided settings.
    exact = folder.keeps_asked and asked.distill.teacher is None
    recorded = (asked if exact else folder.load_config()).model_dump(mode="json")
    changed = [
        f"{section}.{key}: {recorded[section].get(key)!r} then, {value!r} now"
        for section, values in config.model_dump(mode="json").items()
        if isinstance(values, dict)
        for key, value in values.items()
        if recorded[section].get(key) != value
        and (exact or not _is_decided(f"{section}.{key}", value))
    ]
    if changed:
        raise ConfigError(
            f"{out} was begun under other settings ({'; '.join(changed)}), and continuing would "
            "mix two protocols: remove that folder, or give the plan another --out."
        )
    return folder.finished


def _is_decided(name: str, value: Any) -> bool:
    # Stages that are counted from the end are recorded from the first.
    from_the_end = name == "model.shared_stages" and isinstance(value, int) and value < 0
    return value == "auto" or name in _DECIDED or from_the_end


def student_changes(wanted: Config, teacher: Config) -> dict[str, Any]:
    """Changes of a teacher's settings, for `distill`, that give a student the wanted ones.

    Args:
        wanted: settings of the student; for those at `auto`, the teacher's run decided.
        teacher: settings of the teacher's finished run.
    """
    own, theirs = wanted.model_dump(mode="json"), teacher.model_dump(mode="json")
    changes = {
        f"{section}.{key}": theirs[section][key] if value == "auto" else value
        for section, values in own.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    size = changes["data.size"]
    for name in ("model.stages", "model.attention", "data.size", "distill.teacher"):
        del changes[name]
    if wanted.objective.tau == "auto":
        del changes["objective.tau"]  # planned for the teacher's experts, not for the student's
    return changes | {
        "distill.stages": wanted.model.stages,
        "distill.attention": "none" if wanted.model.attention == "none" else "keep",
        "distill.size": None if size == teacher.data.size else size,
    }


def training_facts(out: Path) -> dict[str, Any]:
    """Length of a finished run's training: `epochs`, `images_seen` and `train_s`.

    The seconds are the sum over epochs, so time between a stop and a resumption does not count;
    without epochs, they are those of the whole run.
    """
    folder = RunFolder.open(out)
    info, config = folder.info(), folder.load_config()
    epochs = int(config.finetune.epochs) if config.finetune.enabled else 0
    size = config.finetune.epoch_size
    assert size != "auto" or epochs == 0
    if (history := folder.history()) is not None:
        train_s = float(pd.to_numeric(history["seconds"]).sum())
    else:
        started, finished = (datetime.fromisoformat(info[k]) for k in ("started", "finished"))
        train_s = (finished - started).total_seconds()
    images = epochs * int(size) if epochs else 0
    if config.finetune.steps is not None:  # training ended within the last epoch
        step = config.finetune.images_per_step * config.finetune.accumulate
        images = min(images, config.finetune.steps * step)
    return {
        "epochs": epochs,
        "images_seen": images,
        "train_s": round(train_s, 1),
    }


def _kept_phase(folder: RunFolder) -> str:
    """The phase whose network a run kept; `last` if an older version did not note it.

    Raises:
        CheckpointError: `phases.json` is damaged.
    """
    path = folder.path / "phases.json"
    way_out = f"It was edited or damaged: remove {folder.path}, and the bench runs this job again."
    kept = read_json(path, advice=way_out).get("kept") if path.exists() else "last"
    if not isinstance(kept, str):
        raise CheckpointError(f"{path} does not say which phase was kept. {way_out}")
    return kept


def _judged_splits(folder: RunFolder, splits: Sequence[str]) -> dict[str, Any]:
    """The figures of the plan's splits.

    Raises:
        CheckpointError: `metrics.json` is damaged.
    """
    path = folder.path / "metrics.json"
    way_out = "It was edited or damaged: remove it, and the same command evaluates the run again."
    metrics = read_json(path, advice=way_out)
    if missing := [name for name in splits if not isinstance(metrics.get(name), dict)]:
        raise CheckpointError(f"{path} has no figures of {', '.join(missing)}. {way_out}")
    return {name: metrics[name] for name in splits}


def _group(bench: Bench, job: Job, config: Config) -> str:
    """The column that groups the images, such as boards or lots; empty if none is known."""
    known = PUBLIC_SETS.get(bench.plan.data[job.data].builder or "")
    return config.data.group_by or (known.group if known else "")


def _write_result(bench: Bench, job: Job, evaluate_s: float) -> None:
    folder = RunFolder.open(bench.run_dir(job))
    info, config = folder.info(), folder.load_config()
    cost, teachers = training_facts(folder.path), {}
    splits = _judged_splits(folder, bench.plan.data[job.data].splits)
    source = bench.sources[job.data, job.seed]
    for name, figures in splits.items():
        found = tail_unseen(folder, source, name, figures.get("tail_classes", ()))
        if found is not None:
            figures["tail_unseen"] = found.to_dict()
        judged = load_predictions(folder.evaluation_dir(name) / PREDICTIONS).predictions
        figures[TEST_ERROR] = sampling_error(judged, _group(bench, job, config))
        known = PUBLIC_SETS.get(bench.plan.data[job.data].builder or "")
        if known is not None and known.cutoffs is not None:
            figures |= published_groups(figures["per_class"], known.cutoffs)
    if bench.methods[job.method].teacher is not None:
        teachers = {"teacher": training_facts(folder.path / TEACHER_DIR)}
        for name in ("images_seen", "train_s"):  # of both
            cost[name] += teachers["teacher"][name]
    result = {
        "schema": RESULT_SCHEMA,
        "data": job.data,
        "method": job.method,
        "seed": job.seed,
        "method_sha256": bench.methods[job.method].sha256,
        "recame": version("recame"),
        **cost,
        **teachers,
        "evaluate_s": round(evaluate_s, 2),
        "config": config.model_dump(mode="json"),
        "fingerprint": info["data_fingerprint"],
        "environment": environment(),
        "splits": splits,
        "kept": _kept_phase(folder),
    }
    write_json(bench.result_path(job), result)
