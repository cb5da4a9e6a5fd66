"""A plan's jobs as a queue that may be stopped at any moment, on this machine's own workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from rich.console import Console

from recame.bench.queue.attempt import Outcome, Runner, attempt
from recame.bench.queue.display import QueueDisplay
from recame.bench.queue.ledger import Event, Ledger, QueueSummary
from recame.errors import ConfigError
from recame.machine import usable_cores

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job

#: How often to look whether another process has let go of a job.
_POLL_S = 1.0
_STOP_S = 5.0

#: What the libraries below torch read once, when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_queue(
    bench: Bench,
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    threads: int | None = None,
    devices: Sequence[int] = (),
    console: Console | None = None,
    on_event: Callable[[Event], None] | None = None,
    runner: Runner | None = None,
) -> QueueSummary:
    """Run the jobs that have no result yet, several at once, each in a process of its own.

    Nothing but the jobs in hand is lost when this process or a worker is stopped or killed, and
    these go on from their last checkpoint at the next call. A worker that dies has its job tried
    once more. A job that fails leaves `failure.txt` in its folder, and is tried again at the next
    call. Several processes may work in the same folder: each job is claimed by a file lock, and
    a call returns when all its jobs are settled, whoever ran them.

    Args:
        bench: a loaded plan at work in a folder.
        jobs: in the order in which they are to run.
        workers: jobs at once.
        threads: of each worker; default: the usable cores divided by the workers.
        devices: GPUs, numbered as this process sees them; the workers share them in turn. Empty:
            every worker sees what this process sees.
        console: where progress goes; silent if None.
        on_event: called in this process as jobs start, end and fail.
        runner: what runs a job, importable; default `recame.bench.queue.job.run_job`.

    Raises:
        ConfigError: no worker, no thread, or a device that this process does not see.
        KeyboardInterrupt: Ctrl-C; workers are stopped, and what is done is kept.
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
    threads = threads or threads_each(workers)
    visible = visible_devices(devices)
    environments = [_environment(slot, threads, visible) for slot in range(workers)]
    with ExitStack() as stack:
        stack.enter_context(stopping_on_sigterm())
        display = stack.enter_context(QueueDisplay(bench, ledger, console, workers))
        ledger.listen(display.show, on_event)
        pool = [_Worker(environment, runner) for environment in environments]
        try:
            _work_off(bench, ledger, pool, display)
        except (KeyboardInterrupt, SystemExit):
            display.say_stopped([worker.job for worker in pool if worker.job is not None])
            raise
        finally:
            _stop(pool)
    return ledger.summary()


def _work_off(bench: Bench, ledger: Ledger, pool: list[_Worker], display: QueueDisplay) -> None:
    """Hand out jobs and take outcomes until every job is settled."""
    while len(ledger) or any(worker.job for worker in pool):
        for worker in pool:
            if worker.job is None and (job := ledger.take()) is not None:
                worker.give(bench, job)
        busy = [worker for worker in pool if worker.job is not None]
        display.elsewhere = 0 if busy else len(ledger)
        if not busy:  # what is left is in work in other processes
            time.sleep(_POLL_S if len(ledger) else 0.0)
            continue
        ready = wait([thing for worker in busy for thing in worker.signals()], _POLL_S)
        for worker in busy:
            if any(thing in ready for thing in worker.signals()):
                job = worker.job
                assert job is not None
                ledger.settle(job, worker.collect())


class _Worker:
    """A child process that runs one job after the other; a new one follows if it dies.

    One process for many jobs, because loading the libraries takes as long as a small job.
    """

    def __init__(self, environment: Mapping[str, str], runner: Runner | None) -> None:
        self.job: Job | None = None
        self._environment = environment
        self._runner = runner
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def give(self, bench: Bench, job: Job) -> None:
        """Start on a job, in a new process if there is none."""
        if self._process is not None and not self._process.is_alive():
            self.stop()
        if self._process is None:
            self._start()
        assert self._connection is not None
        self.job = job
        try:
            self._connection.send((bench, job))
        except OSError:  # it died in this moment, which `collect` will notice
            return

    def signals(self) -> list[Connection | int]:
        """What becomes ready when the job ends, or the process."""
        assert self._process is not None
        assert self._connection is not None
        return [self._connection, self._process.sentinel]

    def collect(self) -> Outcome | str:
        """The job's outcome, or how the process died of it."""
        assert self._process is not None
        assert self._connection is not None
        self.job = None
        try:
            outcome: Outcome = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(_STOP_S)
            death = _tell_death(self._process.exitcode)
            self.stop()
            return death
        if outcome.state == "failed":
            # What failed may have left a device in disorder, and its memory in use.
            self.stop()
        return outcome

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, self._runner), name="recame-bench")
        with _changed_environment(self._environment):
            process.start()
        theirs.close()
        self._process, self._connection = process, ours

    def ask_to_stop(self) -> None:
        """Let the process end, without waiting for it."""
        if self.job is None and self._connection is not None:
            self._connection.close()  # idle, it reads that nothing more will come, and cleans up
        elif self._process is not None and self._process.is_alive():
            self._process.terminate()

    def stop(self) -> None:
        """End the process; files are written whole or not at all, so any moment will do."""
        self.ask_to_stop()
        if self._process is not None:
            self._process.join(_STOP_S)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process.close()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _stop(pool: list[_Worker]) -> None:
    for worker in pool:
        worker.ask_to_stop()
    for worker in pool:
        worker.stop()


def _serve(connection: Connection, runner: Runner | None) -> None:
    """Run jobs as they come: what a worker's process does."""
    import faulthandler

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    faulthandler.enable()
    while True:
        try:
            bench, job = connection.recv()
        except EOFError:
            return
        outcome = attempt(bench, job, runner)
        _free_memory()
        connection.send(outcome)


def _leave_with_parent() -> None:
    """End this process when its parent is gone, even by SIGKILL: nobody would take the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _free_memory() -> None:
    """Give back what the last job left, so that others on the same device can have it."""
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _tell_death(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"its process left without an answer (exit code {exit_code})"
    name = signal.Signals(-exit_code).name
    hint = ", most often for want of memory: fewer --workers need less" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def threads_each(workers: int) -> int:
    """The usable cores, shared out among workers."""
    return max(1, usable_cores() // max(1, workers))


def visible_devices(devices: Sequence[int]) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` must say for each device to be seen alone.

    Raises:
        ConfigError: this process does not see one of them.
    """
    if not devices:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        names, why = [str(number) for number in range(_num_gpus())], "torch sees"
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        why = f"CUDA_VISIBLE_DEVICES={visible} leaves"
    for device in devices:
        if not 0 <= device < len(names):
            # A process that sees no GPU would train on the CPU without a word.
            raise ConfigError(
                f"Device {device} is not there: {why} {len(names)}, numbered from 0. Give other "
                "devices, or none to train on the CPU."
            )
    return [names[device] for device in devices]


def _environment(slot: int, threads: int, visible: Sequence[str]) -> dict[str, str]:
    """What the slot's process must find before it loads torch."""
    found = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if visible:
        found["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    return found


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


@contextmanager
def _changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that workers are stopped and the user is told."""
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
