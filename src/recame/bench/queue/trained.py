"""The training of a job: one run, or a teacher's and then its student's; anew or taken up."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from recame.bench.plan.plan import Bench, Job
from recame.config import Config
from recame.errors import ConfigError
from recame.runs.folder import RunFolder
from recame.training.student.distill import distill
from recame.training.train import train

#: Below a student's run folder: the run of its teacher.
TEACHER_DIR = "teacher"

#: Settings that a run decides or records itself, whatever the plan says. A student's network is
#: said by `model.*` and `data.size`, from which these of the section `distill` follow.
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


def train_job(bench: Bench, job: Job, config: Config, console: Console | None = None) -> None:
    """Bring a job's run to its end, with its teacher's before it where the method has one.

    Args:
        bench: the plan at work.
        job: which run.
        config: its settings.
        console: where progress goes; silent if None.

    Raises:
        RecameError: a run cannot be made, or was begun under other settings.
    """
    method, out = bench.methods[job.method], bench.run_dir(job)
    source, make_loss = bench.sources[job.data], method.make_loss()
    words: dict[str, Any] = {"console": console, "make_loss": make_loss}
    if method.teacher is None:
        if not is_trained(out, config):
            train(source, config, out=out, resume=_begun(out), **words)
        return
    teacher = bench.config(job.data, job.method, job.seed, of_teacher=True)
    if not is_trained(out / TEACHER_DIR, teacher):
        resume = _begun(out / TEACHER_DIR)
        train(source, teacher, out=out / TEACHER_DIR, resume=resume, **words)
    if not is_trained(out, config):
        changes = student_changes(config, RunFolder.open(out / TEACHER_DIR).load_config())
        distill(out / TEACHER_DIR, out=out, changes=changes, resume=_begun(out), **words)


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
    recorded = folder.load_config().model_dump(mode="json")
    changed = [
        f"{section}.{key}: {recorded[section].get(key)!r} then, {value!r} now"
        for section, values in config.model_dump(mode="json").items()
        if isinstance(values, dict)
        for key, value in values.items()
        if recorded[section].get(key) != value and not _is_decided(f"{section}.{key}", value)
    ]
    if changed:
        raise ConfigError(
            f"{out} was begun under other settings ({'; '.join(changed)}), so going on would mix "
            "two protocols: remove that folder, or give the plan another --out."
        )
    return folder.finished


def _is_decided(name: str, value: Any) -> bool:
    # Stages that are counted from the end are recorded from the first.
    from_the_end = name == "model.shared_stages" and isinstance(value, int) and value < 0
    return value == "auto" or name in _DECIDED or from_the_end


def student_changes(wanted: Config, teacher: Config) -> dict[str, Any]:
    """What `distill` has to change of a teacher's settings for a student of the wanted ones.

    Args:
        wanted: what is left at `auto` there is as the teacher's run decided it.
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
    return changes | {
        "distill.stages": wanted.model.stages,
        "distill.attention": "none" if wanted.model.attention == "none" else "keep",
        "distill.size": None if size == teacher.data.size else size,
    }


def training_facts(out: Path) -> dict[str, Any]:
    """What a finished run's training took: `epochs`, `images_seen` and `train_s`.

    The seconds are those of the epochs, so that time between a stop and a resumption does not
    count; without epochs, those of the whole run.
    """
    folder = RunFolder.open(out)
    info, config = folder.info(), folder.load_config()
    epochs = int(config.finetune.epochs) if config.finetune.enabled else 0
    size = config.finetune.epoch_size
    assert size != "auto" or epochs == 0
    if folder.history_path.exists():
        train_s = float(pd.read_csv(folder.history_path)["seconds"].sum())
    else:
        started, finished = (datetime.fromisoformat(info[k]) for k in ("started", "finished"))
        train_s = (finished - started).total_seconds()
    return {
        "epochs": epochs,
        "images_seen": epochs * int(size) if epochs else 0,
        "train_s": round(train_s, 1),
    }
