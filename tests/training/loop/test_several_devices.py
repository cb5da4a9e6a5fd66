"""Two processes: one leads and writes, the other waits for it, joins it, and leaves with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from recame.config import Config, RunConfig
from recame.errors import ProcessError
from recame.runs.folder import RunFolder
from recame.training.loop import processes
from recame.training.loop.processes import (
    RANK_VARIABLES,
    RUN_VARIABLE,
    call_followers,
    is_follower,
    leaders_run,
    leading,
    leave_with_leader,
    naming_lost,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANK_VARIABLES, RUN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", RANK_VARIABLES)
def test_who_leads(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    several = RunConfig(devices=2)
    assert not is_follower(several)
    monkeypatch.setenv(variable, "0")
    assert not is_follower(several)
    monkeypatch.setenv(variable, "1")
    assert is_follower(several)
    assert is_follower(RunConfig(num_nodes=2))
    assert not is_follower(RunConfig())  # jobs side by side that know nothing of each other


def test_followers_wait_for_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        assert len(waits) < 9
        if len(waits) == 3:
            call_followers(run)

    monkeypatch.setattr("recame.training.loop.processes.time.sleep", sleep)
    monkeypatch.setenv(RUN_VARIABLE, "")
    monkeypatch.delenv(RUN_VARIABLE)
    assert leaders_run(run.path).path.samefile(run.path)
    assert len(waits) == 3
    # Lightning starts them with the leader's words, where --out may be left to the clock.
    assert leaders_run(tmp_path / "other").path.samefile(run.path)


@pytest.mark.parametrize(("stopped", "code"), [(None, 0), ("the loss was nan", 1)])
def test_followers_leave_a_finished_run(stopped: str | None, code: int, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    run.mark("training", stopped=stopped)
    run.finish()
    for leave in (leaders_run, leave_with_leader):
        with pytest.raises(SystemExit) as left:
            leave(run.path)
        assert left.value.code == code


class Clock:
    """Time that passes only in sleeps, in which a leader may do something."""

    def __init__(self, leader: Callable[[float], object]) -> None:
        self.now, self.leader = 1000.0, leader

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.leader(self.now - 1000.0)


def test_followers_give_up_a_leader_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(lambda _: None)
    monkeypatch.setattr(processes, "time", clock)
    told = rf"{os.uname().nodename} sees no process that leads the run .*run, after 3 min"
    with pytest.raises(ProcessError, match=told):
        leaders_run(tmp_path / "run")
    assert clock.now == pytest.approx(1180.5)
    # Of one that died on the way, its last words say where it was.
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    (run.path / "leader.txt").write_text("7 process 41 on node-3\n")
    for wait in (leaders_run, leave_with_leader):
        before = clock.now
        with pytest.raises(
            ProcessError, match=r"\(process 41 on node-3\) has given no sign for 10 min"
        ):
            wait(run.path)
        assert clock.now - before == pytest.approx(600.5)


def test_followers_leave_a_leader_that_ended_without_finishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    run.mark("fine-tuning")
    sign = run.path / "leader.txt"
    sign.write_text("7 process 41 on node-3\n")
    clock = Clock(lambda after_s: after_s > 100 and sign.unlink(missing_ok=True))
    monkeypatch.setattr(processes, "time", clock)
    with pytest.raises(ProcessError, match=r"\(process 41 on node-3\) ended without finishing"):
        leave_with_leader(run.path)
    assert clock.now < 1140


def test_followers_leave_a_leader_that_was_gone_before_they_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    run.mark("fine-tuning")
    clock = Clock(lambda _: None)
    monkeypatch.setattr(processes, "time", clock)
    with pytest.raises(ProcessError, match=r"that led the run .*run ended without finishing"):
        leave_with_leader(run.path)
    assert clock.now < 1040


def test_a_sign_that_is_out_of_sight_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    sign = run.path / "leader.txt"

    def leader(after_s: float) -> None:
        sign.unlink(missing_ok=True)
        if after_s % 20 < 5:
            sign.write_text(f"{after_s // 20:.0f} process 41 on node-3\n")
        if after_s > 100:
            run.finish()

    monkeypatch.setattr(processes, "time", Clock(leader))
    with pytest.raises(SystemExit) as left:
        leave_with_leader(run.path)
    assert left.value.code == 0


def test_a_lost_process_is_named(tmp_path: Path) -> None:
    said = "[/pytorch/gloo/transport/tcp/pair.cc:545] Read error [::1]:4: Connection reset. Typical"
    told = r"Another of the 2 processes .* \(Read error \[::1\]:4: Connection reset\), .*--resume"
    with pytest.raises(ProcessError, match=told), naming_lost(tmp_path, 2):
        raise RuntimeError(said)
    for ours, size in ((said, 1), ("shapes differ", 2)):
        with pytest.raises(RuntimeError, match=ours[-9:]), naming_lost(tmp_path, size):
            raise RuntimeError(ours)


def test_followers_wait_for_a_leader_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())

    def leader(after_s: float) -> None:
        (run.path / "leader.txt").write_text(f"{after_s // 4:.0f} process 41 on node-3\n")
        if after_s > 100:
            call_followers(run)

    monkeypatch.setattr(processes, "time", Clock(leader))
    monkeypatch.setenv(RUN_VARIABLE, "")
    monkeypatch.delenv(RUN_VARIABLE)
    assert leaders_run(run.path, patience_s=5.0).path.samefile(run.path)


def test_a_leader_gives_signs_while_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_SIGN_S", 0.01)
    sign = tmp_path / "run" / "leader.txt"
    with leading(sign.parent, RunConfig(devices=2)):
        said: set[str] = set()
        while len(said) < 3:  # hangs where it gives none
            said |= {sign.read_text()} if sign.exists() else set()
    assert all(text.endswith(f"process {os.getpid()} on {os.uname().nodename}\n") for text in said)
    assert not sign.exists()
    with leading(tmp_path / "alone", RunConfig()):
        assert not (tmp_path / "alone").exists()
