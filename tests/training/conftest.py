from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from recame.config import Config
from recame.data.dataset import load_inspection_set
from recame.runs.folder import RunFolder
from recame.training.loop.cost import StepCost
from recame.training.ongoing_run import OngoingRun
from recame.training.planner import plan_epochs, plan_model


@pytest.fixture
def ongoing(
    defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> Callable[..., OngoingRun]:
    """A planned run on `defects` before its first phase: `ongoing(section__key=value)`."""
    device = torch.device("cpu")

    def make(**changes: object) -> OngoingRun:
        config = tiny_config(**changes)
        data = load_inspection_set(defects, config.data, seed=config.run.seed)
        config = plan_model(config, data, device).config
        num_train = len(data.view("train"))
        if config.finetune.epochs != "auto":
            cost = StepCost(1.0, 0.0)
            plan = plan_epochs(config, cost, num_train=num_train, left_s=0.0, device=device)
            config = plan.config
        folder = RunFolder(tmp_path / "ongoing")
        folder.begin(defects, data.fingerprint, config)
        return OngoingRun(folder, config, data, device, Console(quiet=True), time.monotonic())

    return make


@pytest.fixture
def in_two_processes(tmp_path: Path) -> Callable[..., list[Any]]:
    """Call a function of the rank in two processes, as `torchrun` starts them.

    `in_two_processes(function)` gives what each returned, the code it left with, or what it
    raised. They are forked, which spares them the slow imports.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(function: Callable[[int], Any]) -> list[Any]:
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()

        def child(rank: int) -> None:
            names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
            names |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 1}
            os.environ |= {name: str(value) for name, value in names.items()}
            os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"}
            os.environ["MASTER_PORT"] = str(port)
            try:
                answers.put((rank, function(rank)))
            except SystemExit as left:
                answers.put((rank, left.code))
            except BaseException as error:  # noqa: BLE001
                answers.put((rank, f"{type(error).__name__}: {error}"))
            finally:
                os._exit(0)

        children = [context.Process(target=child, args=(rank,)) for rank in (0, 1)]
        for process in children:
            process.start()
        for process in children:
            process.join(120)
        found = {}
        while not answers.empty():
            rank, answer = answers.get()
            found[rank] = answer
        for process in children:
            if process.is_alive():
                process.kill()
        return [found.get(rank, "nothing") for rank in (0, 1)]

    return start
