"""The queue on this machine's workers; it may be stopped at any moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from rich.console import Console

from recame.bench.queue.display import QueueDisplay
from recame.bench.queue.ledger import Event, Ledger, QueueSummary
from recame.bench.queue.process import (
    THREAD_VARIABLES,
    Runner,
    outcome_of,
    start_process,
    stop,
)
from recame.errors import ConfigError
from recame.machine import usable_cores

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job

#: Seconds between checks for released jobs of other processes and for overdue jobs.
_POLL_S = 1.0

#: Default time limit of a run, seconds: no run that works takes so long.
JOB_LIMIT_S = 24 * 3600.0


def run_queue(
    bench: Bench,
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    threads: int | None = None,
    job_limit_s: float = JOB_LIMIT_S,
    devices: Sequence[int] = (),
    console: Console | None = None,
    on_event: Callable[[Event], None] | None = None,
    runner: Runner | None = None,
) -> QueueSummary:
    """Run the jobs that have no result yet, several at once, each in a process of its own.

    If this process or a job's process is stopped or killed, finished jobs are kept, and the next
    call continues running jobs from their last checkpoint. A job whose process dies is tried once
    more. A job that fails or exceeds its time limit leaves `failure.txt` in its folder, and the
    next call tries it again. Several processes may work in the same folder: a file lock claims each
    job, and a call returns when all its jobs are finished or failed, whichever process ran them.

    Args:
        bench: a plan with its folder.
        jobs: in the order in which to run them.
        workers: number of jobs at the same time.
        threads: of each worker; default: the usable cores divided by the workers.
        job_limit_s: seconds after which a job is stopped; it counts as failed.
        devices: GPUs, numbered as this process sees them; the workers share them in turn. Empty:
            every worker sees what this process sees.
        console: where progress goes; silent if None.
        on_event: called in this process when jobs start, end and fail.
        runner: runs a job; importable; default `recame.bench.queue.job.run_job`.

    Raises:
        ConfigError: no worker, no thread, or a device that this process does not see.
        KeyboardInterrupt: Ctrl-C; workers are stopped, and finished jobs are kept.
        SystemExit: the same after SIGTERM.
    """
    if workers < 1 or (threads is not None and threads < 1):
        raise ConfigError(
            f"{workers} workers with {threads} threads each can run nothing: give --workers 1 or "
            "more."
        )
    console = console or Console(quiet=True)
    ledger = Ledger(bench, jobs)
    workers = max(1, min(workers, len(ledger)))
    visible = visible_devices(devices)
    threads = threads or threads_each(workers)
    variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
    free = [variables.copy() for _ in range(workers)]
    for slot, found in enumerate(free if visible else []):
        found["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    running: dict[int, tuple[Job, BaseProcess, dict[str, str], float]] = {}
    with stopping_on_sigterm(), QueueDisplay(bench, ledger, console, workers) as display:
        ledger.listen(display.show, on_event)
        try:
            while len(ledger) or running:
                while free and (job := ledger.take()) is not None:
                    process = start_process(bench, job, free[0], runner)
                    until = time.monotonic() + job_limit_s
                    running[process.sentinel] = job, process, free.pop(0), until
                display.elsewhere = 0 if running else len(ledger)
                # If none runs here, other processes work on the remaining jobs.
                ready = wait(list(running), _POLL_S if running or len(ledger) else 0.0)
                now = time.monotonic()
                over = [s for s, (*_, until) in running.items() if s in ready or now >= until]
                for sentinel in over:
                    job, process, environment, until = running.pop(sentinel)
                    free.append(environment)
                    ledger.settle(job, outcome_of(bench, job, process, job_limit_s, until))
        except (KeyboardInterrupt, SystemExit):
            display.say_stopped([job for job, *_ in running.values()])
            raise
        finally:
            stop(process for _, process, *_ in running.values())
    return ledger.summary()


def threads_each(workers: int) -> int:
    """The usable cores divided by the workers."""
    return max(1, usable_cores() // max(1, workers))


def visible_devices(devices: Sequence[int]) -> list[str]:
    """The value of `CUDA_VISIBLE_DEVICES` that shows only one device, for each of the devices.

    Raises:
        ConfigError: this process does not see one of them.
    """
    if not devices:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        names = [str(number) for number in range(torch.cuda.device_count())]
        why = "torch sees"
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        why = f"CUDA_VISIBLE_DEVICES={visible} leaves"
    for device in devices:
        if not 0 <= device < len(names):
            # A process that sees no GPU would silently train on the CPU.
            raise ConfigError(
                f"Device {device} is not there: {why} {len(names)}, numbered from 0. Give other "
                "devices, or none to train on the CPU."
            )
    return [names[device] for device in devices]


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Handle SIGTERM as Ctrl-C, so that workers are stopped and the user sees a message."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
