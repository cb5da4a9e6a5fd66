"""The queue on a Ray cluster: jobs go to nodes, and each result comes back when it is done."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from recame.bench.queue.claim import claim, locks_dir
from recame.bench.queue.display import QueueDisplay
from recame.bench.queue.ledger import Event, Ledger, QueueSummary
from recame.bench.queue.local import JOB_LIMIT_S, stopping_on_sigterm
from recame.bench.queue.process import (
    THREAD_VARIABLES,
    Outcome,
    Runner,
    failure_path,
    note_failure,
    outcome_of,
    start_process,
)
from recame.errors import ConfigError, DataError, RecameError
from recame.files import Hold, explained, write_bytes
from recame.runtime.ray_connection import connected

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job

_POLL_S = 1.0

#: Seconds that nodes may take to delete delivered runs before the call ends.
_TIDY_S = 30.0

#: Ray's resolution of a fraction of a GPU; a sixth must be rounded down, so that six fit.
_GPU_STEPS = 10_000

#: Files that a node sends back if it does not see the bench's folder; weights are not sent.
_SENT_HOME = {".json", ".yaml", ".csv", ".parquet", ".txt"}
_LARGEST_SENT = 64 * 2**20


@dataclass(frozen=True)
class Sending:
    """What a node receives together with the job.

    Attributes:
        version: of recame; the node must have the same.
        mark: name of a file in the bench's folder; a node that finds it shares the folder.
        costs: the content of `costs.json`, for plans with equal time.
        threads: of the job.
        limit_s: time limit of the job, seconds.
        at_home: keys of jobs whose results lie in the bench's folder; a node may delete its copies.
    """

    version: str
    mark: str
    costs: bytes | None
    threads: int
    limit_s: float = JOB_LIMIT_S
    at_home: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delivery:
    """What a node sends back.

    Attributes:
        outcome: of the job.
        node: where it ran.
        files: path in the run's folder -> content; empty if the folder is shared.
        node_id: Ray's name of the node, which keeps the run until these files are delivered.
    """

    outcome: Outcome
    node: str
    files: dict[str, bytes]
    node_id: str = ""


def run_on_cluster(
    bench: Bench,
    jobs: Sequence[Job],
    address: str,
    *,
    cpus_per_job: int = 1,
    gpus_per_job: float = 0.0,
    job_limit_s: float = JOB_LIMIT_S,
    console: Console | None = None,
    on_event: Callable[[Event], None] | None = None,
    runner: Runner | None = None,
) -> QueueSummary:
    """Run the jobs that have no result yet on the nodes of a Ray cluster.

    A job whose node dies is started again up to three times, on any node with free capacity; a job
    whose process dies, once. If the nodes share the bench's folder, a job continues from its last
    checkpoint, and all files lie where a local queue would write them. A node that does not see the
    folder works in a temporary folder, and sends back all files but the weights. Results are
    written as they arrive, and only then a node deletes its run. If something fails in between, the
    next call fetches the result. recame and the data must be on every node, under the same paths.

    Args:
        bench: a plan with its folder.
        jobs: in the order in which to run them.
        address: `HOST:6379`, `ray://HOST:10001`, or `auto` on a machine of the cluster.
        cpus_per_job: cores for each job.
        gpus_per_job: GPUs for each job; with a fraction, several jobs share one.
        job_limit_s: seconds after which a job is stopped; it counts as failed.
        console: where progress goes; silent if None.
        on_event: called in this process when jobs are sent, end and fail.
        runner: runs a job; importable on the nodes; default `recame.bench.queue.job.run_job`.

    Raises:
        MissingDependencyError: ray is not installed.
        ConfigError: no cluster answers at the address, or no node has the resources for a job.
    """
    console = console or Console(quiet=True)
    gpus_per_job = math.floor(gpus_per_job * _GPU_STEPS + 1e-6) / _GPU_STEPS
    bench = replace(bench, path=bench.path.resolve())
    ledger = Ledger(bench, jobs)
    if not len(ledger):
        return ledger.summary()
    with ExitStack() as stack:
        stack.enter_context(stopping_on_sigterm())
        ray = stack.enter_context(connected(address, "to run a bench on a cluster"))
        display = stack.enter_context(QueueDisplay(bench, ledger, console, 1))
        ledger.listen(display.show, on_event)
        task = ray.remote(run_on_node).options(
            num_cpus=cpus_per_job,
            num_gpus=gpus_per_job,
            max_retries=3,  # if nodes die
            name="recame bench",
        )
        sending = _sending(bench, cpus_per_job, job_limit_s, ledger)
        flights: dict[Any, tuple[Job, Hold]] = {}
        tidying: list[Any] = []
        try:
            while len(ledger) or flights:
                display.lanes = _capacity(ray, cpus_per_job, gpus_per_job)
                while len(flights) < display.lanes and (job := ledger.take()) is not None:
                    if (sent := claim(bench, job, "sent")) is None:
                        ledger.settle(job, Outcome("held"))
                        break
                    flights[task.remote(bench, job, sending, runner)] = job, sent
                display.elsewhere = 0 if flights else len(ledger)
                tidying += _receive(ray, bench, ledger, flights, sending)
            if tidying:
                ray.wait(tidying, num_returns=len(tidying), timeout=_TIDY_S)
        except (KeyboardInterrupt, SystemExit):
            display.say_stopped([job for job, _ in flights.values()])
            raise
        finally:
            for reference, (_, sent) in flights.items():
                ray.cancel(reference, force=True)
                sent.close()
    return ledger.summary()


def _receive(
    ray: Any,
    bench: Bench,
    ledger: Ledger,
    flights: dict[Any, tuple[Job, Hold]],
    sending: Sending,
) -> list[Any]:
    """Wait a moment, write the results that arrived, and return the nodes' deletion tasks."""
    if not flights:  # other processes work on the remaining jobs
        time.sleep(_POLL_S if len(ledger) else 0.0)
        return []
    tidying = []
    for landed in ray.wait(list(flights), timeout=_POLL_S)[0]:
        outcome, node_id = _outcome(ray, landed, bench, flights[landed][0])
        job, sent = flights.pop(landed)
        sent.close()
        if node_id and bench.result_path(job).exists():
            tidying.append(_tidy(ray, node_id, replace(sending, at_home=(job.key,))))
        ledger.settle(job, outcome)
    return tidying


def _tidy(ray: Any, node_id: str, sending: Sending) -> Any:
    """Let a node delete its runs whose results are delivered."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(forget_on_node).options(
        num_cpus=0, max_retries=0, scheduling_strategy=there, name="recame bench, tidying"
    )
    return task.remote(sending)


def forget_on_node(sending: Sending) -> None:
    """Delete this node's runs whose results lie in the bench's folder."""
    with suppress(DataError):  # the node has no folder of this bench: nothing to delete
        runs = scratch_folder(sending.mark) / "runs"
        for key in sending.at_home:
            shutil.rmtree(runs / key, ignore_errors=True)


def run_on_node(bench: Bench, job: Job, sending: Sending, runner: Runner | None) -> Delivery:
    """Run a job on this node, in the bench's folder if it is shared, else in a temporary one.

    Args:
        bench: with the folder of the sending process.
        job: to run.
        sending: what came with the job.
        runner: runs the job; None: `recame.bench.queue.job.run_job`.
    """
    node = platform.node()
    shared = (locks_dir(bench) / sending.mark).exists()
    if not shared:
        try:
            bench = replace(bench, path=scratch_folder(sending.mark))
        except DataError as error:
            told = str(error)
            return Delivery(
                Outcome("failed", told), node, {failure_path(bench, job).name: told.encode()}
            )
        forget_on_node(sending)
        if sending.costs is not None:
            write_bytes(bench.costs_path, sending.costs)
    try:
        _check_node(bench, job, sending)
        environment = dict.fromkeys(THREAD_VARIABLES, str(sending.threads))
        until = time.monotonic() + sending.limit_s
        process = start_process(bench, job, environment, runner)
        outcome = outcome_of(bench, job, process, sending.limit_s, until)
    except RecameError as error:
        note_failure(bench, job, str(error))
        outcome = Outcome("failed", str(error))
    if shared or outcome.state == "held":
        return Delivery(outcome, node, {})
    if outcome.state == "found":  # it ran here before, but was never delivered
        outcome = Outcome("done")
    folder = bench.run_dir(job)
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in _SENT_HOME and path.is_file() and path.stat().st_size <= _LARGEST_SENT
    }
    return Delivery(outcome, node, files, _node_id())


def _node_id() -> str:
    """Ray's name of this node; empty outside of a Ray task."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray else ""


def scratch_folder(mark: str) -> Path:
    """This node's temporary folder for a bench, created if missing; the same for all jobs.

    Runs continue from what lies in it, so nobody else may write there: only this user has access,
    and its name cannot be guessed without the bench's mark.

    Args:
        mark: `Sending.mark`.

    Raises:
        DataError: it cannot be created, or it exists and belongs or is open to other users.
    """
    name = hashlib.sha256(mark.encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"recame-bench-{name}"
    with explained(folder, "Free space there, or start Ray's node with another TMPDIR."):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    own = sys.platform == "win32" or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
    if not stat.S_ISDIR(found.st_mode) or not own:
        raise DataError(
            f"{folder} on node {platform.node()} is not a folder that only this user can access "
            f"({stat.filemode(found.st_mode)}), so its content cannot be trusted: delete it "
            "there, or start Ray's node with another TMPDIR."
        )
    return folder


def write_delivery(bench: Bench, job: Job, files: dict[str, bytes]) -> None:
    """Write delivered files into the run's folder; the result last, which says that all exist."""
    folder = bench.run_dir(job)
    result = str(bench.result_path(job).relative_to(folder))
    for name in sorted(files, key=lambda name: name == result):
        write_bytes(folder / name, files[name])


def _outcome(ray: Any, landed: Any, bench: Bench, job: Job) -> tuple[Outcome, str]:
    """Write a delivered job's files; its outcome, and the node that keeps a copy."""
    try:
        delivery: Delivery = ray.get(landed)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
        reason = f"the cluster gave up this job ({type(error).__name__}: {told})"
        note_failure(bench, job, reason, str(error))
        return Outcome("failed", reason), ""
    write_delivery(bench, job, delivery.files)
    outcome, node_id = delivery.outcome, delivery.node_id
    if outcome.state in ("failed", "died"):
        return replace(outcome, reason=f"on {delivery.node}: {outcome.reason}"), ""
    return outcome, node_id if delivery.files else ""


def _check_node(bench: Bench, job: Job, sending: Sending) -> None:
    """Refuse a job on a node that has another version of recame, or lacks the data."""
    if (here := version("recame")) != sending.version:
        raise ConfigError(
            f"Node {platform.node()} has recame {here}, the bench runs {sending.version}, so "
            "results could not be compared: install the same version on every node."
        )
    source = bench.sources.get((job.data, job.seed))
    if source is not None and not source.exists():
        raise DataError(
            f"Data set {job.data} is not at {source} on node {platform.node()}, so the job cannot "
            "run there: copy it to the same path on every node, or put it on a shared disk."
        )


def _sending(bench: Bench, threads: int, limit_s: float, ledger: Ledger) -> Sending:
    """What every job is sent with; the mark is kept, as it names this folder on the nodes."""
    folder = locks_dir(bench)
    folder.mkdir(parents=True, exist_ok=True)
    marks = sorted(folder.glob("folder-*"))
    if not marks:
        marks = [folder / f"folder-{secrets.token_hex(12)}"]
        marks[0].touch()
    costs = bench.costs_path.read_bytes() if bench.costs_path.exists() else None
    at_home = tuple(job.key for job in ledger.finished_before)
    return Sending(version("recame"), marks[0].name, costs, threads, limit_s, at_home)


def _capacity(ray: Any, cpus: int, gpus: float) -> int:
    """Number of jobs that the nodes alive now can run at the same time.

    Raises:
        ConfigError: no node has the resources for a job.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = 0
    for node in alive:
        by_cpu = node.get("CPU", 0.0) // cpus
        by_gpu = (node.get("GPU", 0.0) + 1 / _GPU_STEPS) // gpus if gpus else by_cpu
        room += int(min(by_cpu, by_gpu))
    if not room:
        offers = "; ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in alive
        )
        raise ConfigError(
            f"A job asks for {cpus} CPUs and {gpus:g} GPUs, which no node of the cluster has "
            f"({offers or 'no node is alive'}): ask for less, or add a node."
        )
    return room
