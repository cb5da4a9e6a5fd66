"""Two processes on a CPU: one leads and writes, the other joins the fine-tuning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recame.config import RunConfig
from recame.runs.folder import RunFolder
from recame.training.loop.processes import RUN_VARIABLE, call_followers, is_follower, leaders_run

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
    from recame.config import Config

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
    from recame.config import Config

    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "f00d", Config())
    run.finish()
    with pytest.raises(SystemExit) as left:
        leaders_run(run.path)
    assert left.value.code == 0


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
