"""A node's own folder, and its runs until they are at home."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the jobs' processes inherit it

from tiny_jobs import TinyBench, TinyJob, run_tiny, traced

import recame
from recame.bench.queue.cluster import (
    Sending,
    forget_on_node,
    run_on_cluster,
    run_on_node,
    scratch_folder,
)
from recame.errors import DataError

JOB = TinyJob("set", "quick", 0)


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nodes are this process, and their scratch folders vanish."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    return tmp_path / "node"


@pytest.fixture
def bench(tmp_path: Path) -> TinyBench:
    (tmp_path / "out").mkdir()
    return TinyBench(tmp_path / "out")


def sending(**changes: Any) -> Sending:
    return replace(Sending(recame.__version__, "folder-of-another-machine", None, 1), **changes)


class Landed(SimpleNamespace):
    __hash__ = object.__hash__


class OneNode:
    """Enough of ray for one node, which lands each task at once."""

    exceptions = SimpleNamespace(RayError=RuntimeError, RayTaskError=KeyError)

    def __init__(self, delivered: bool = True) -> None:
        self.delivered = delivered
        self.asked: list[tuple[str, object]] = []

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: "the one")

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1}}]

    def remote(self, function: Any) -> Any:
        def options(**how: Any) -> SimpleNamespace:
            def submit(*words: Any) -> Landed:
                self.asked.append((function.__name__, how.get("scheduling_strategy")))
                if function is run_on_node:  # which does not see the sender's folder
                    words = (replace(words[0], path=words[0].path / "unseen"), *words[1:])
                return Landed(answer=function(*words))

            return SimpleNamespace(remote=submit)

        return SimpleNamespace(options=options)

    def wait(
        self, flights: list[Any], *, num_returns: int = 1, timeout: float
    ) -> tuple[list[Any], list[Any]]:
        return flights[:num_returns], flights[num_returns:]

    def get(self, flight: Landed) -> Any:
        if not self.delivered:
            raise RuntimeError("the answer was lost on its way")
        return flight.answer

    def cancel(self, flight: object, force: bool) -> None:
        pass


def on_cluster(
    bench: TinyBench, ray: OneNode, monkeypatch: pytest.MonkeyPatch, jobs: list[TinyJob]
) -> Any:
    monkeypatch.setitem(sys.modules, "ray", ray)
    there = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node_id, soft: (node_id, soft))
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", there)
    return run_on_cluster(bench, jobs, "somewhere", runner=run_tiny)


def test_a_node_keeps_its_run_until_it_is_told(bench: TinyBench) -> None:
    delivery = run_on_node(bench, JOB, sending(), run_tiny)
    assert delivery.outcome.state == "done"
    scratch = scratch_folder(sending().mark)
    kept = scratch / "runs" / JOB.key / "model.safetensors"
    assert kept.exists()
    # Lost on the way home: another try fetches it, and trains nothing.
    again = run_on_node(bench, JOB, sending(), run_tiny)
    assert again.outcome.state == "done"
    assert again.files["result.json"] == delivery.files["result.json"]
    assert len(traced(scratch, "start", JOB.key)) == 1
    forget_on_node(sending(at_home=(JOB.key,)))
    assert not kept.parent.exists()


def test_what_is_at_home_goes_with_the_next_job(bench: TinyBench) -> None:
    run_on_node(bench, JOB, sending(), run_tiny)
    other = TinyJob("set", "quick", 1)
    run_on_node(bench, other, sending(at_home=(JOB.key,)), run_tiny)
    runs = scratch_folder(sending().mark) / "runs"
    assert not (runs / JOB.key).exists()
    assert (runs / other.key / "result.json").exists()


def test_the_driver_lets_go_of_what_it_has(
    bench: TinyBench, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = OneNode(delivered=False)
    summary = on_cluster(bench, lost, monkeypatch, [JOB])
    assert "the answer was lost on its way" in summary.failed[JOB.key]
    assert [name for name, _ in lost.asked] == ["run_on_node"]
    (scratch,) = node.iterdir()
    assert (scratch / "runs" / JOB.key / "model.safetensors").exists()
    ray = OneNode()
    summary = on_cluster(bench, ray, monkeypatch, [JOB])
    assert summary.done == (JOB.key,)
    assert bench.result_path(JOB).exists()
    assert ray.asked == [("run_on_node", None), ("forget_on_node", ("the one", False))]
    assert not (scratch / "runs" / JOB.key).exists()
    assert len(traced(scratch, "start", JOB.key)) == 1


def test_the_scratch_folder_is_this_user_s_alone(node: Path) -> None:
    before = os.umask(0)
    try:
        folder = scratch_folder("folder-abc")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert scratch_folder("folder-abc") == folder
    assert scratch_folder("folder-abd") != folder
    assert folder.parent == node  # nothing between that another user could make first


@pytest.mark.parametrize("trap", ["open", "link", "file"])
def test_what_another_put_there_is_refused(trap: str, bench: TinyBench, node: Path) -> None:
    folder = scratch_folder(sending().mark)
    folder.rmdir()
    if trap == "open":
        folder.mkdir(mode=0o755)
    elif trap == "link":
        (node / "theirs").mkdir(mode=0o700)
        folder.symlink_to(node / "theirs")
    else:
        folder.write_text("")
    with pytest.raises(DataError, match=r"is not a folder that only this user can access \("):
        scratch_folder(sending().mark)
    delivery = run_on_node(bench, JOB, sending(), run_tiny)
    assert delivery.outcome.state == "failed"
    assert "delete it there" in delivery.files["failure.txt"].decode()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_user_s_folder_is_refused() -> None:
    os.chown(scratch_folder("folder-abc"), 12345, 12345)
    with pytest.raises(DataError, match="is not a folder that only this user can access"):
        scratch_folder("folder-abc")
