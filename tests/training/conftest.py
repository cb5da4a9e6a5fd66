from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

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
