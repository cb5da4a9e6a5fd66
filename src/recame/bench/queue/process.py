"""A job in its own process: the output is its log, the exit code its outcome."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from recame.bench.queue.claim import claim
from recame.durations import spoken_duration
from recame.errors import RecameError
from recame.files import write_text

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job

#: Trains and evaluates one job and writes its result; importable by other processes.
Runner = Callable[["Bench", "Job", Console], None]

#: Variables that the libraries below torch read once, when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

State = Literal["done", "found", "failed", "held", "died"]

#: Exit codes for a job's outcome; Python itself ends with smaller ones.
_EXIT_CODES: dict[State, int] = {"done": 10, "found": 11, "failed": 12, "held": 13}

_LONGEST_FOLDER = 60


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        state: `done`; `found`: its result existed already; `failed`; `held`: another process works
            on it; `died`: its process ended without an outcome.
        reason: of a failure or a death, one line.
    """

    state: State
    reason: str = ""


def start_process(
    bench: Bench, job: Job, environment: Mapping[str, str], runner: Runner | None = None
) -> BaseProcess:
    """Run a job in its own process, which also ends if this process ends, even by SIGKILL.

    The output of the job and of its libraries goes to `log.txt` in the run's folder.

    Args:
        bench: a plan with its folder.
        job: one of its jobs.
        environment: variables of the process, `THREAD_VARIABLES` among them.
        runner: runs the job; default `recame.bench.queue.job.run_job`.
    """
    context = fresh_processes(["recame.bench.queue.job"] if runner is None else [])
    process = context.Process(
        target=_run_logged, args=(bench, job, environment, runner), name="recame-bench"
    )
    process.start()
    return process


def fresh_processes(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    """How to start processes that have done nothing yet.

    Where the system can fork, from a server that has loaded some modules: seconds less each
    (docs/decisions/0014-a-process-a-job.md).
    """
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    # The server listens at a file below the temporary folder, and systems limit such a name.
    if not can_fork or len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def outcome_of(
    bench: Bench, job: Job, process: BaseProcess, limit_s: float, until: float
) -> Outcome:
    """Wait for a job's process and return the outcome of the job.

    Args:
        bench: a plan with its folder.
        job: one of its jobs.
        process: the process that runs it.
        limit_s: time limit, seconds.
        until: end of this time, by `time.monotonic()`; the process is stopped then.
    """
    process.join(max(0.0, until - time.monotonic()))
    if process.is_alive():
        return _stop_overdue(bench, job, process, limit_s)
    code = process.exitcode or 0
    process.close()
    for state, number in _EXIT_CODES.items():
        if number == code:
            failure = read_failure(bench, job) if state == "failed" else ""
            return Outcome(state, failure.partition("\n")[0])
    return Outcome("died", _tell_death(code))


def _stop_overdue(bench: Bench, job: Job, process: BaseProcess, limit_s: float) -> Outcome:
    stop([process])
    if bench.result_path(job).exists():  # written at the last moment, and complete
        failure_path(bench, job).unlink(missing_ok=True)
        return Outcome("done")
    reason = (
        f"it was not done after {spoken_duration(limit_s)}, the limit of a run, and was stopped; "
        "the next call continues from its last checkpoint, and --job-limit gives more time."
    )
    details = "If log.txt beside this file ends long before that time, the run did not progress."
    note_failure(bench, job, reason, details)
    return Outcome("failed", reason)


def stop(processes: Iterable[BaseProcess]) -> None:
    """End processes. This is safe at any moment, because no file is left half-written."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=5)
        process.kill()
        process.join()
        process.close()


def run_claimed(bench: Bench, job: Job, runner: Runner | None = None) -> Outcome:
    """Run a job in this process unless it is done or another process works on it.

    An exception is written to `failure.txt` in the run's folder; a success removes that file.

    Args:
        bench: a plan with its folder.
        job: one of its jobs.
        runner: runs the job; default `recame.bench.queue.job.run_job`.
    """
    if (lock := claim(bench, job)) is None:
        return Outcome("held")
    try:
        if bench.result_path(job).exists():
            return Outcome("found")
        if runner is None:  # this import loads torch
            from recame.bench.queue.job import run_job

            runner = run_job
        print(f"--- {_now()}, process {os.getpid()} on {platform.node()}")  # noqa: T201
        runner(bench, job, Console(width=120))
        if not bench.result_path(job).exists():
            raise RuntimeError(f"the run ended without writing {bench.result_path(job)}")
    except Exception as error:  # noqa: BLE001 - the queue must learn of every failure
        reason = _explain(error)
        traceback.print_exc()
        note_failure(bench, job, reason, traceback.format_exc())
        return Outcome("failed", reason)
    else:
        failure_path(bench, job).unlink(missing_ok=True)
        return Outcome("done")
    finally:
        lock.close()


def failure_path(bench: Bench, job: Job) -> Path:
    """Path of the explanation of a job's last failure; the file exists until the job succeeds."""
    return bench.run_dir(job) / "failure.txt"


def read_failure(bench: Bench, job: Job) -> str:
    """The text on a job's last failure, with the reason on its first line; empty if none."""
    try:
        return failure_path(bench, job).read_text(encoding="utf-8")
    except OSError:
        return ""


def note_failure(bench: Bench, job: Job, reason: str, details: str = "") -> None:
    """Write `failure.txt`: reason, time, machine, and details."""
    lines = [reason, "", f"{job.key}, {_now()}, on {platform.node()}.", details]
    write_text(failure_path(bench, job), "\n".join(lines).rstrip() + "\n")


def _run_logged(
    bench: Bench, job: Job, environment: Mapping[str, str], runner: Runner | None
) -> None:
    """Run a job; the main function of its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    run_dir = bench.run_dir(job)
    run_dir.mkdir(parents=True, exist_ok=True)
    log = (run_dir / "log.txt").open("a", buffering=1, encoding="utf-8")
    for number in (1, 2):  # includes the output of C libraries
        os.dup2(log.fileno(), number)
    sys.stdout = sys.stderr = log
    faulthandler.enable()
    os.environ.update(environment)
    if "torch" in sys.modules:  # loaded before its variables were set
        from threadpoolctl import threadpool_limits

        threads = int(environment[THREAD_VARIABLES[0]])
        threadpool_limits(threads)
        sys.modules["torch"].set_num_threads(threads)
    sys.exit(_EXIT_CODES[run_claimed(bench, job, runner).state])


def _leave_with_parent() -> None:
    """End this process when its parent ends, even by SIGKILL: nobody would use the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    reason = text if isinstance(error, RecameError) else f"{type(error).__name__}: {text}"
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        reason += " Fewer --workers leave each run more memory."
    return reason


def _tell_death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"its process ended without a result (exit code {exit_code})"
    name = signal.Signals(-exit_code).name
    hint = ", mostly because memory ran out: use fewer --workers" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
