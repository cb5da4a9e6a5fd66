"""Two processes on a CPU: one leads and writes, the other joins the fine-tuning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from recame.config import Config, RunConfig
from recame.errors import CheckpointError
from recame.runs.folder import RunFolder
from recame.training.loop import processes
from recame.training.loop.processes import (
    RUN_VARIABLE,
    call_followers,
    is_follower,
    leaders_run,
    leading,
)

RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, RUN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", RANKS)
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


def test_followers_leave_a_finished_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    run.finish()
    with pytest.raises(SystemExit) as left:
        leaders_run(run.path)
    assert left.value.code == 0


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
    with pytest.raises(CheckpointError, match=r"\(the process of rank 0\) has given no sign for 5"):
        leaders_run(tmp_path / "run", patience_s=5.0)
    assert clock.now == pytest.approx(1005.5)
    # Of one that died on the way, its last words say where it was.
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    (run.path / "leader.txt").write_text("7 process 41 on node-3\n")
    with pytest.raises(
        CheckpointError, match=r"\(process 41 on node-3\) has given no sign for 5 s"
    ):
        leaders_run(run.path, patience_s=5.0)


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


@pytest.mark.slow
def test_two_processes(defects: Path, tiny_words: list[str], tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("recame")
    out = tmp_path / "run"
    words = [*tiny_words, "--set", "run.devices=2", "--out", out]
    done = subprocess.run(
        [script, "train", defects, *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    history = pd.read_csv(out / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    assert list(history["step"]) == [2, 4]  # 4 of 5 batches, 2 on each
    assert json.loads((out / "run.json").read_text())["state"] == "finished"
    assert done.stdout.count("epoch 1/2") == 1
    assert "error" not in done.stderr.lower()
