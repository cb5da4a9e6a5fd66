"""The queue on a cluster: what a node does, what comes home, and a node that dies."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from tiny_jobs import TinyBench, TinyJob, run_breaking, run_tiny, traced

import recame
from recame.bench.queue.cluster import Sending, run_on_cluster, run_on_node, write_delivery
from recame.bench.queue.ledger import Event
from recame.errors import ConfigError, DataError, MissingDependencyError

JOB = TinyJob("set", "quick", 0)


@pytest.fixture(autouse=True)
def _nodes_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nodes are this process, and their scratch folders vanish."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))


@pytest.fixture
def bench(tmp_path: Path) -> TinyBench:
    (tmp_path / "out").mkdir()
    return TinyBench(tmp_path / "out")


def sending(**changes: Any) -> Sending:
    return replace(Sending(recame.__version__, "folder-of-another-machine", None, 1), **changes)


def scratch_of(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "node").iterdir()
    return folder


def test_node_that_shares_the_folder_works_there(bench: TinyBench) -> None:
    (bench.path / ".locks").mkdir()
    (bench.path / ".locks" / "folder-abc").touch()
    delivery = run_on_node(bench, JOB, sending(mark="folder-abc", threads=1), run_tiny)
    assert delivery.outcome.state == "done"
    assert delivery.node == os.uname().nodename
    assert delivery.files == {}
    assert bench.result_path(JOB).exists()
    assert "training with 1 threads" in (bench.run_dir(JOB) / "log.txt").read_text()


def test_node_of_its_own_sends_the_result_home(bench: TinyBench, tmp_path: Path) -> None:
    delivery = run_on_node(bench, JOB, sending(costs=b'{"rows": {}}'), run_tiny)
    assert delivery.outcome.state == "done"
    # Weights stay behind.
    assert sorted(delivery.files) == ["history.csv", "log.txt", "result.json", "steps.json"]
    scratch = scratch_of(tmp_path)
    assert (scratch / "costs.json").read_text() == '{"rows": {}}'
    assert not bench.run_dir(JOB).exists()
    write_delivery(bench, JOB, delivery.files)
    assert json.loads(bench.result_path(JOB).read_text())["train_s"] == 60.0
    assert (bench.run_dir(JOB) / "history.csv").read_text() == "epoch,loss\n1,0.5\n"


def test_result_is_written_last(bench: TinyBench) -> None:
    folder = bench.run_dir(JOB)
    folder.mkdir(parents=True)
    (folder / "z").touch()  # no folder can be made here
    files = {"result.json": b"", "a.json": b"", "z/evaluation.csv": b""}
    with pytest.raises(DataError, match="exists"):
        write_delivery(bench, JOB, files)
    assert (folder / "a.json").exists()
    assert not bench.result_path(JOB).exists()
    (folder / "z").unlink()
    write_delivery(bench, JOB, files)
    assert bench.result_path(JOB).exists()


def test_run_that_failed_on_a_node_goes_on_there(bench: TinyBench, tmp_path: Path) -> None:
    delivery = run_on_node(bench, JOB, sending(), run_breaking)
    assert (delivery.outcome.state, delivery.outcome.reason) == ("failed", "OSError: disk gone")
    assert "disk gone" in delivery.files["failure.txt"].decode()
    assert run_on_node(bench, JOB, sending(), run_tiny).outcome.state == "done"
    assert traced(scratch_of(tmp_path), "start")[0][2] == "1"


def test_node_without_the_data_or_with_another_version(bench: TinyBench, tmp_path: Path) -> None:
    bench = replace(bench, sources={("set", 0): tmp_path / "nowhere.csv"})
    told = run_on_node(bench, JOB, sending(), run_tiny).outcome
    assert told.state == "failed"
    assert told.reason.startswith(f"Data set set is not at {tmp_path / 'nowhere.csv'} on node ")
    told = run_on_node(bench, JOB, sending(version="0.0.1"), run_tiny).outcome
    assert f"has recame {recame.__version__}, the bench runs 0.0.1" in told.reason


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class Flight(SimpleNamespace):
    __hash__ = object.__hash__


class FakeRay:
    """Enough of ray to land each task at once; `deaths` names jobs whose every node dies."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, cpus: float = 2, gpus: float = 0, deaths: tuple[str, ...] = ()) -> None:
        self.cpus, self.gpus, self.deaths = cpus, gpus, deaths
        self.most_at_once = 0
        self.cancelled: list[object] = []
        self.options: dict[str, object] = {}

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: "here")

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 99.0}}
        return [dead, {"Alive": True, "Resources": {"CPU": self.cpus, "GPU": self.gpus}}]

    def remote(self, function: Any) -> SimpleNamespace:
        def submit(*words: Any) -> SimpleNamespace:
            return Flight(function=function, words=words)

        def options(**words: object) -> SimpleNamespace:
            self.options = words
            return SimpleNamespace(remote=submit)

        return SimpleNamespace(options=options)

    def wait(self, flights: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.most_at_once = max(self.most_at_once, len(flights))
        return flights[:1], flights[1:]

    def get(self, flight: Any) -> Any:
        _, job, *_ = flight.words
        if job.method in self.deaths:
            raise RayError("The node died.\nmore")
        if job.method == "interrupted":
            raise KeyboardInterrupt
        return flight.function(*flight.words)

    def cancel(self, flight: object, force: bool) -> None:
        assert force
        self.cancelled.append(flight)


def test_driver_settles_each_job(bench: TinyBench, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(cpus=5, deaths=("lost",))
    monkeypatch.setitem(sys.modules, "ray", ray)
    jobs = [TinyJob("set", name, s) for s in range(2) for name in ("quick", "lost", "broken")]
    text = io.StringIO()
    summary = run_on_cluster(
        bench,
        jobs,
        "somewhere",
        cpus_per_job=2,
        console=Console(file=text, width=200),
        runner=run_tiny,
    )
    assert summary.done == ("set/quick/seed0", "set/quick/seed1")
    lost = "the cluster gave up this job (RayError: The node died.)"
    assert summary.failed["set/lost/seed0"] == lost
    assert (bench.run_dir(jobs[1]) / "failure.txt").read_text().startswith(lost)
    told = summary.failed["set/broken/seed1"]
    assert told == f"on {os.uname().nodename}: Image 7 is damaged: take it out."
    assert ray.options == {
        "num_cpus": 2,
        "num_gpus": 0.0,
        "max_retries": 3,
        "name": "recame bench",
    }
    assert ray.most_at_once == 2  # as many as the living node has room for
    assert ray.cancelled == []
    assert "4 of 6 runs failed:" in text.getvalue()
    again = run_on_cluster(bench, jobs[:1], "somewhere", runner=run_tiny)
    assert again.skipped == ("set/quick/seed0",)


def test_jobs_share_a_gpu(bench: TinyBench, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(cpus=16, gpus=1)
    monkeypatch.setitem(sys.modules, "ray", ray)
    jobs = [TinyJob("set", "quick", seed) for seed in range(9)]
    summary = run_on_cluster(bench, jobs, "somewhere", gpus_per_job=1 / 6, runner=run_tiny)
    assert len(summary.done) == 9
    assert ray.options["num_gpus"] == 0.1666
    assert ray.most_at_once == 6


def test_stopped_driver_cancels_and_says_how_to_go_on(
    bench: TinyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    jobs = [TinyJob("set", "quick", 0), TinyJob("set", "interrupted", 0)]
    text = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_on_cluster(
            bench, jobs, "somewhere", console=Console(file=text, width=200), runner=run_tiny
        )
    assert len(ray.cancelled) == 1
    assert f"Stopped: 1 of 2 results are kept in {bench.path}." in text.getvalue()
    assert "last checkpoint: set/interrupted/seed0." in text.getvalue()


def test_requests_that_no_cluster_can_meet(
    bench: TinyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    with pytest.raises(ConfigError, match=r"asks for 3 CPUs and 0 GPUs.*\(2 CPUs and 0 GPUs\)"):
        run_on_cluster(bench, [JOB], "somewhere", cpus_per_job=3)
    with pytest.raises(ConfigError, match=r"asks for 1 CPUs and 0.5 GPUs"):
        run_on_cluster(bench, [JOB], "somewhere", gpus_per_job=0.5)
    monkeypatch.setattr(FakeRay, "is_initialized", lambda _: False)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"No Ray cluster answers at '{address}'.*ray start"):
            run_on_cluster(bench, [JOB], address)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'recame\[cluster\]'"):
        run_on_cluster(bench, [JOB], "auto")


@pytest.mark.slow
def test_two_nodes_of_which_one_is_killed(
    bench: TinyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs pip install 'recame[cluster]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr("tempfile.tempdir", None)
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    cluster.wait_for_nodes()
    # The process that starts a node's workers names it, also when it is gone.
    by_raylet = {str(node.all_processes["raylet"][0].process.pid): node for node in nodes}
    jobs = [TinyJob("set", name, s) for s in range(2) for name in ("quick", "slow", "killed")]
    jobs.append(TinyJob("set", "broken", 0))
    victim = "set/slow/seed1"

    def kill_its_node() -> None:
        checkpoint = bench.path / "runs" / victim / "steps.json"
        while not checkpoint.exists() or int(checkpoint.read_text() or 0) < 3:
            time.sleep(0.02)
        ((*_, pid, where),) = traced(bench.path, "start", victim)
        # A machine that goes takes its processes along.
        os.kill(int(pid), signal.SIGKILL)
        cluster.remove_node(by_raylet[where], allow_graceful=False)

    killer = threading.Thread(target=kill_its_node, daemon=True)
    killer.start()
    try:
        summary = run_on_cluster(bench, jobs, cluster.address, runner=run_tiny)
        killer.join(60)
        assert not killer.is_alive()
    finally:
        cluster.shutdown()
    good = sorted(job.key for job in jobs if job.method != "broken")
    assert sorted(summary.done) == good
    assert list(summary.failed) == ["set/broken/seed0"]
    # Each ended once; the one whose node went goes on elsewhere, from its checkpoint.
    assert sorted(words[1] for words in traced(bench.path, "end")) == good
    first, *_, last = traced(bench.path, "start", victim)
    assert first[4] != last[4]
    assert 3 <= int(last[2]) < 20
    assert {words[4] for words in traced(bench.path, "start")} == set(by_raylet)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a short name, below which Ray's sockets fit."""
    monkeypatch.setattr("tempfile.tempdir", None)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_nodes_that_do_not_share_the_folder_keep_a_run_until_it_is_home(
    bench: TinyBench, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs pip install 'recame[cluster]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("TMPDIR", str(short))  # of the nodes' processes
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **small)
    cluster.wait_for_nodes()
    jobs = [TinyJob("set", "quick", seed) for seed in range(4)] + [TinyJob("set", "broken", 0)]

    def hide(event: Event) -> None:
        """Nodes of one machine would see the mark; theirs is another's."""
        for mark in (bench.path / ".locks").glob("folder-*"):
            mark.rename(mark.with_name(f"hidden-{mark.name}"))

    try:
        summary = run_on_cluster(bench, jobs, cluster.address, on_event=hide, runner=run_tiny)
    finally:
        cluster.shutdown()
    assert sorted(summary.done) == [job.key for job in jobs[:4]]
    assert list(summary.failed) == ["set/broken/seed0"]
    for job in jobs[:4]:
        assert bench.result_path(job).exists()
        assert not (bench.run_dir(job) / "model.safetensors").exists()  # weights stay there
    (scratch,) = short.glob("recame-bench-*")
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    # What is at home is deleted there; what failed waits to go on.
    kept = [path.parent.name for path in scratch.glob("runs/set/*/seed*")]
    assert kept == ["broken"]
    assert len(traced(scratch, "end")) == 4
