"""One job, wherever it runs: claimed so that nobody else runs it, logged, its failure explained."""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout
from rich.console import Console

from recame.errors import RecameError
from recame.files import write_text

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job

#: Trains and judges one job and writes its result; importable, so that other processes find it.
Runner = Callable[["Bench", "Job", Console], None]

_LOG_WIDTH = 120


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a job ended.

    Attributes:
        state: `done`; `found`: its result was there already; `failed`; `held`: another process has
            it in work.
        seconds: how long it ran.
        reason: of a failure, one line.
        details: of a failure, where it happened.
    """

    state: Literal["done", "found", "failed", "held"]
    seconds: float = 0.0
    reason: str = ""
    details: str = ""


def attempt(bench: Bench, job: Job, runner: Runner | None = None) -> Outcome:
    """Run a job unless it is done or another process has it in work.

    The claim is a file lock, which the system releases when this process ends, however it ends.
    What the job prints, and what the libraries below it print, goes to `log.txt` in the run's
    folder; an exception goes to `failure.txt` beside it, which a success removes.

    Args:
        bench: a loaded plan at work in a folder.
        job: one of its jobs.
        runner: what runs it; default `recame.bench.queue.job.run_job`.
    """
    run_dir = bench.run_dir(job)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = _lock(bench, job, "run")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return Outcome("held")
    try:
        if bench.result_path(job).exists():
            return Outcome("found")
        with _logging_to(run_dir / "log.txt") as console:
            return _run(bench, job, runner or run_job, console)
    finally:
        lock.release()


def claim_for_cluster(bench: Bench, job: Job) -> FileLock | None:
    """Keep other processes of this folder from a job that is sent away; None if one has it.

    The job itself may run where this folder's locks cannot be seen.
    """
    lock = _lock(bench, job, "sent")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def is_claimed(bench: Bench, job: Job) -> bool:
    """Whether some process has the job in work now, here or on a cluster."""
    for kind in ("run", "sent"):
        lock = _lock(bench, job, kind)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
    return False


def locks_dir(bench: Bench) -> Path:
    """Where claims lie: outside of the runs' folders, so that a run may be deleted or emptied."""
    return bench.path / ".locks"


def failure_path(bench: Bench, job: Job) -> Path:
    """Where a job's last failure is explained; the file exists only until it succeeds."""
    return bench.run_dir(job) / "failure.txt"


def note_failure(bench: Bench, job: Job, reason: str, details: str = "") -> None:
    """Write `failure.txt`: when, where, why, and what the run folder keeps."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [reason, "", f"{job.key}, {when}, on {platform.node()}.", details]
    write_text(failure_path(bench, job), "\n".join(lines).rstrip() + "\n")


def _lock(bench: Bench, job: Job, kind: Literal["run", "sent"]) -> FileLock:
    folder = locks_dir(bench)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{job.key.replace('/', '~')}.{kind}.lock")


def _run(bench: Bench, job: Job, runner: Runner, console: Console) -> Outcome:
    began = time.monotonic()
    try:
        runner(bench, job, console)
        if not bench.result_path(job).exists():
            raise RuntimeError(f"the run ended without writing {bench.result_path(job)}")
    except Exception as error:  # noqa: BLE001 - one job's bug must not stop the others
        reason, details = _explain(error), traceback.format_exc()
        print(details, file=sys.stderr)  # noqa: T201 - into the log
        note_failure(bench, job, reason, details)
        return Outcome("failed", time.monotonic() - began, reason, details)
    failure_path(bench, job).unlink(missing_ok=True)
    return Outcome("done", time.monotonic() - began)


def run_job(bench: Bench, job: Job, console: Console) -> None:
    """The default runner, which loads torch only where a job runs."""
    from recame.bench.queue import job as training

    training.run_job(bench, job, console)


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    reason = text if isinstance(error, RecameError) else f"{type(error).__name__}: {text}"
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        reason += " Fewer --workers leave each run more memory."
    return reason


@contextmanager
def _logging_to(path: Path) -> Iterator[Console]:
    """Send all output of this process to the end of a file, also what C libraries write."""
    with path.open("a", buffering=1, encoding="utf-8") as log:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        log.write(f"--- {when}, process {os.getpid()} on {platform.node()}\n")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        saved = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in saved:
                os.dup2(log.fileno(), number)
            with redirect_stdout(log), redirect_stderr(log):
                yield Console(file=log, width=_LOG_WIDTH)
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
