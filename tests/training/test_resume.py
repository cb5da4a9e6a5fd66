"""A run that is killed anywhere and resumed ends with the weights of one that was not."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from recame.config import Config
from recame.runs.folder import RunFolder
from recame.training.loop.module import FinetuneModule
from recame.training.phases import probe
from recame.training.train import train

EPOCHS, STEPS = 3, 5  # of 70 images in batches of 16

Patch = tuple[Any, str, int]

#: Which call of which function is the process's last.
MOMENTS: dict[str, Patch] = {
    "symmetry decided, probe not saved": (probe, "fit_heads", 1),
    "first epoch": (FinetuneModule, "training_step", 1),
    "second epoch": (FinetuneModule, "training_step", 1 + STEPS),
    "history written, checkpoint not": (pl.Trainer, "save_checkpoint", 2),
    "after the last epoch": (import_module("recame.training.train"), "keep_best", 1),
}


def run_until_killed(child: Callable[[], object]) -> None:
    """Run in a child process, which must end by SIGKILL; a fork spares it the slow imports."""
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def die_at(place: Any, name: str, call: int) -> None:
    """Let the given call of `place.name` be this process's last."""
    original = getattr(place, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(place, name, counted)


@pytest.fixture(scope="module")
def config(tiny_config: Callable[..., Config]) -> Config:
    """Everything random is on: augmentation, mixing, dropout; and averaging and accumulation."""
    return tiny_config(
        augment__symmetry="auto",
        augment__mixup=0.4,
        augment__cutmix=0.4,
        augment__blur=0.3,
        augment__rand_augment=1,
        model__dropout=0.2,
        model__hidden=16,
        finetune__epochs=EPOCHS,
        finetune__accumulate=2,
        finetune__ema_decay=0.9,
        objective__deferred_reweighting=0.5,
        run__keep="last",
    )


@pytest.fixture(scope="module")
def uninterrupted(
    defects: Path, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    return train(defects, config, out=tmp_path_factory.mktemp("runs") / "whole")


def assert_same_end(run: RunFolder, expected: RunFolder) -> None:
    ours, theirs = (load_file(r.path / "model.safetensors") for r in (run, expected))
    assert ours.keys() == theirs.keys()
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert different == []
    histories = [
        pd.read_csv(r.history_path, dtype=str).drop(columns="seconds") for r in (run, expected)
    ]
    pd.testing.assert_frame_equal(*histories)
    for name in ("metrics.json", "phases.json", "config.yaml", "manifest.csv"):
        assert (run.path / name).read_text() == (expected.path / name).read_text()


def test_every_part_of_the_run_learned(uninterrupted: RunFolder) -> None:
    history = pd.read_csv(uninterrupted.history_path)
    assert list(history["epoch"]) == [1, 2, 3]
    assert list(history["step"]) == [3, 6, 9]  # 5 batches an epoch, two a step
    checkpoint = torch.load(uninterrupted.last_checkpoint, weights_only=True)
    assert checkpoint["averaging_state"]["n_averaged"] == 9


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(
    moment: str, defects: Path, config: Config, uninterrupted: RunFolder, tmp_path: Path
) -> None:
    place, name, call = MOMENTS[moment]
    if name == "training_step":
        call += int(np.random.default_rng(call).integers(STEPS))
    out = tmp_path / "run"

    def child() -> None:
        die_at(place, name, call)
        train(defects, config, out=out)

    run_until_killed(child)
    assert not RunFolder.open(out).finished
    run = train(defects, out=out, resume=True)
    assert run.finished
    assert_same_end(run, uninterrupted)


def test_a_half_written_checkpoint_is_never_used(
    defects: Path, config: Config, uninterrupted: RunFolder, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def write_half_and_die(trainer: pl.Trainer, path: Path, **_: object) -> None:
        Path(path).write_bytes(uninterrupted.last_checkpoint.read_bytes()[:10_000])
        os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        pl.Trainer.save_checkpoint = write_half_and_die
        train(defects, config, out=out)

    run_until_killed(child)
    assert not RunFolder.open(out).last_checkpoint.exists()
    assert_same_end(train(defects, out=out, resume=True), uninterrupted)
