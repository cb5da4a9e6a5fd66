"""Whole runs of two processes on a CPU, against runs of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from recame.config import Config
from recame.runs.folder import RunFolder
from recame.training import begin
from recame.training import train as train_file
from recame.training.loop import processes
from recame.training.loop.module import FinetuneModule
from recame.training.loop.pace import KeepTime
from recame.training.train import train

InTwo = Callable[[Callable[[int], Any]], list[Any]]
#: Nothing is drawn but the order of the images.
PLAIN = {
    "augment__symmetry": "none",
    "augment__shift": 0.0,
    "augment__brightness": 0.0,
    "augment__contrast": 0.0,
    "finetune__optimizer": "sgd",
    "finetune__lr": 0.02,
    "run__keep": "last",
}


@pytest.fixture
def config(tiny_config: Callable[..., Config]) -> Config:
    """Of which two processes show in a step what one with twice the batch would."""
    return tiny_config(**PLAIN, finetune__sampler="instance", finetune__batch_size=8)


def accuracies(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "phases.json").read_text())["val_balanced_accuracy"]
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_train_as_one_does(
    defects: Path, config: Config, tmp_path: Path, in_two_processes: InTwo
) -> None:
    seen: list[list[int]] = []

    def noted(module: FinetuneModule, batch: Any, batch_idx: int) -> None:
        seen.append(batch.index.tolist())

    def child(rank: int) -> Any:
        FinetuneModule.on_train_batch_start = noted  # type: ignore[method-assign, assignment]
        code: Any = None
        try:
            train(defects, config, out=tmp_path / "two")
        except SystemExit as left:
            code = left.code
        return code, seen

    codes, shares = zip(*in_two_processes(child), strict=True)
    assert codes == (None, 0)
    alone = train(defects, config.updated({"finetune.batch_size": 16}), out=tmp_path / "one").path
    assert [len(share) for share in shares] == [10, 10]  # two epochs of five steps
    for epoch in (slice(0, 5), slice(5, 10)):
        shown = [i for share in shares for batch in share[epoch] for i in batch]
        assert sorted(shown) == list(range(70))
    histories = [pd.read_csv(run / "history.csv") for run in (tmp_path / "two", alone)]
    assert list(histories[0]["step"]) == list(histories[1]["step"]) == [5, 10]
    one, two = load_file(alone / "model.safetensors"), load_file(tmp_path / "two/model.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=1e-3, msg=name)
    assert accuracies(tmp_path / "two") == pytest.approx(accuracies(alone), abs=0.07)  # an image
    done = RunFolder.open(tmp_path / "two")
    assert done.finished
    assert (done.load_config().run.devices, done.load_config().run.num_nodes) == (2, 1)
    assert not (done.path / "leader.txt").exists()


def test_the_leaders_time_ends_both(
    defects: Path, config: Config, tmp_path: Path, in_two_processes: InTwo
) -> None:
    timed = config.updated({"finetune.epochs": "auto", "run.time_budget_s": 1e5})

    def child(rank: int) -> str:
        KeepTime.count = lambda *_: 7  # type: ignore[method-assign]
        return str(train(defects, timed, out=tmp_path / "run"))

    leader, follower = in_two_processes(child)
    assert leader == str(tmp_path / "run")
    assert follower == 0
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["step"].iloc[-1] == 7
    assert RunFolder.open(tmp_path / "run").load_config().finetune.steps == 7


def test_the_leader_alone_decides_the_size(
    defects: Path, config: Config, tmp_path: Path, in_two_processes: InTwo
) -> None:
    open_size = config.updated({"data.size": "auto", "finetune.epochs": 1})

    def child(rank: int) -> str:
        begin.settle_size = lambda *_, **__: (48 + 16 * rank, f"of rank {rank}")
        return str(train(defects, open_size, out=tmp_path / "run"))

    leader, follower = in_two_processes(child)
    assert leader == str(tmp_path / "run")
    assert follower == 0
    run = RunFolder.open(tmp_path / "run")
    assert run.load_config().data.size == 48
    assert [why for why in run.reasons() if "rank" in why] == ["data.size = 48: of rank 0"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 0])
def test_a_killed_process_ends_the_other_and_the_run_is_resumed(
    killed: int, defects: Path, config: Config, tmp_path: Path, in_two_processes: InTwo
) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"

    def child(rank: int) -> None:
        calls, step = 0, FinetuneModule.training_step

        def dying(module: FinetuneModule, batch: Any, batch_idx: int) -> Any:
            nonlocal calls
            calls += 1
            if rank == killed and calls == 7:  # in the second epoch
                os.kill(os.getpid(), signal.SIGKILL)
            return step(module, batch, batch_idx)

        FinetuneModule.training_step = dying  # type: ignore[method-assign]
        train(defects, config, out=out)

    answers = in_two_processes(child)
    assert answers[killed] == "nothing"
    assert answers[1 - killed].startswith("ProcessError: Another of the 2 processes")
    assert RunFolder.open(out).state == "fine-tuning"
    assert in_two_processes(lambda _: train(defects, out=out, resume=True).finished) == [True, 0]
    assert in_two_processes(lambda _: train(defects, config, out=whole).finished) == [True, 0]
    assert_same_weights(out, whole)


def test_the_others_fail_with_their_leader(
    defects: Path, config: Config, tmp_path: Path, in_two_processes: InTwo
) -> None:
    def child(rank: int) -> None:
        def broken(*_: object) -> None:
            raise OSError("no space left")

        train_file.keep_best = broken  # type: ignore[assignment]
        processes._GONE_S = 0.2
        train(defects, config, out=tmp_path / "run")

    leader, follower = in_two_processes(child)
    assert leader == "OSError: no space left"
    assert follower.startswith("ProcessError: The process that led the run")
    assert "ended without finishing" in follower


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun(nodes: int, defects: Path, tiny_words: list[str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "run"

    def torchrun(node: int, *words: str | Path) -> subprocess.Popen[str]:
        places = ["--nproc-per-node", str(2 // nodes), "--nnodes", str(nodes)]
        places += ["--node-rank", str(node), "--master-addr", "127.0.0.1"]
        command = [sys.executable, "-m", "torch.distributed.run", *places]
        command += ["--master-port", str(port), "-m", "recame", "train", *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)

    words = [defects, *tiny_words, "--out", out]
    started = [torchrun(node, *words) for node in range(nodes)]
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * nodes, said
    history = pd.read_csv(out / "history.csv")
    assert list(history["step"]) == [3, 6]
    assert RunFolder.open(out).finished
    assert said[0][0].count("epoch 1/2") == 1
    assert [out for out, _ in said[1:]] == [""] * (nodes - 1)
    again = [torchrun(node, "--resume", "--out", out) for node in range(nodes)]
    assert "nothing to resume" in again[0].communicate(timeout=240)[0]
    assert [process.wait(240) for process in again] == [0] * nodes


@pytest.mark.slow
def test_processes_that_are_asked_for_by_a_setting(
    defects: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    script = Path(sys.executable).with_name("recame")
    words = [*tiny_words, "--set", "run.devices=2", "--out", tmp_path / "run"]
    done = subprocess.run(
        [script, "train", defects, *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(tmp_path / "run" / "history.csv")["step"]) == [3, 6]
    assert RunFolder.open(tmp_path / "run").finished
    assert done.stdout.count("epoch 1/2") == 1
    assert "error" not in done.stderr.lower()
