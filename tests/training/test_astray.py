"""A loss or weights that are not finite end training at once, with the last good weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from recame.cli import main
from recame.config import Config
from recame.contracts import Batch, LossResult
from recame.errors import ConfigError, TrainingError
from recame.losses import Objective
from recame.runs.folder import RunFolder
from recame.training.begin import loss_name
from recame.training.loop.module import FinetuneModule
from recame.training.loop.step import TrainingStep
from recame.training.train import train

STEPS = 5  # of an epoch


@pytest.fixture
def go_astray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Spoil a step's loss, or its weights behind a loss that looks well."""

    def spoil(what: str, at: int) -> None:
        step, steps = TrainingStep.__call__, 0

        def counted(self: TrainingStep, batch: Batch, generator: torch.Generator) -> LossResult:
            nonlocal steps
            steps += 1
            result = step(self, batch, generator)
            if steps == at and what == "loss":
                return LossResult(result.total * float("nan"), result.parts)
            return result

        def backward(self: FinetuneModule, loss: torch.Tensor, *_: Any, **__: Any) -> None:
            loss.backward()
            if steps == at and what == "weights":
                self.model.head.classifier.weight.grad.fill_(float("inf"))

        monkeypatch.setattr(TrainingStep, "__call__", counted)
        monkeypatch.setattr(FinetuneModule, "backward", backward)

    return spoil


@pytest.fixture
def config(tiny_config: Callable[..., Config]) -> Config:
    return tiny_config(finetune__epochs=4, run__keep="last")


@pytest.mark.parametrize(
    ("what", "at", "told"),
    [
        ("loss", 2 * STEPS + 2, "the loss was nan in epoch 3"),
        ("weights", 3 * STEPS, "was not finite after epoch 3"),
    ],
)
def test_the_last_good_weights_are_kept(
    what: str,
    at: int,
    told: str,
    go_astray: Callable[..., None],
    config: Config,
    defects: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    go_astray(what, at)
    run = train(defects, config, out=tmp_path / "run")
    assert run.finished
    assert run.stopped is not None
    assert told in run.stopped
    assert "smaller finetune.lr (it is 0.002)" in run.stopped
    assert len(pd.read_csv(run.history_path)) == 3  # with what went astray
    assert run.load_config().finetune.epochs == 2
    assert any("stopped, because" in reason for reason in run.reasons())
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    assert checkpoint["epoch"] == 1
    weights = load_file(run.path / "model.safetensors")
    for name, value in weights.items():
        assert torch.equal(value, checkpoint["state_dict"][f"model.{name}"]), name
        assert bool(value.isfinite().all())
    # Whoever calls it again is told again.
    monkeypatch.setattr(sys, "argv", ["recame", "train", "--resume", "--out", str(run.path)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "nothing to resume" in (said := capsys.readouterr().out)
    assert told in said


def test_without_a_good_epoch_there_is_no_run(
    go_astray: Callable[..., None], config: Config, defects: Path, tmp_path: Path
) -> None:
    go_astray("loss", 3)
    with pytest.raises(TrainingError, match=r"loss was nan in epoch 1 .*finetune\.lr .it is"):
        train(defects, config, out=tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert not folder.finished
    assert not folder.last_checkpoint.exists()


def test_heads_that_are_not_finite_are_refused(
    tiny_config: Callable[..., Config], defects: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"heads are not finite .*probe\.lr"):
        train(defects, tiny_config(probe__lr=1e38), out=tmp_path / "run")
    assert not (tmp_path / "run" / "probe").exists()


def make_loss(counts: Any, num_experts: int, prior: torch.Tensor) -> Objective:
    return Objective(counts, num_experts=num_experts, prior=prior)


def _local() -> Callable[..., Objective]:
    """What no other process can import."""

    def made(*words: Any) -> Objective:
        return make_loss(*words)

    return made


class TestOwnLoss:
    def test_its_name(self) -> None:
        assert loss_name(None) is None
        name = loss_name(make_loss)
        assert name is not None
        assert name.endswith("test_astray.make_loss")
        assert loss_name(partial(make_loss, num_experts=2)) == name

    def test_what_can_be_imported_is_a_setting(
        self, tiny_config: Callable[..., Config], defects: Path, tmp_path: Path
    ) -> None:
        config = tiny_config(finetune__enabled=False)
        run = train(defects, config, out=tmp_path / "run", make_loss=make_loss)
        own = run.load_config().objective.loss
        assert own is not None
        assert run.info()["loss"] == loss_name(make_loss) == own.class_path
        for given in (None, make_loss):
            run.mark("training")
            assert train(defects, out=run.path, resume=True, make_loss=given).finished

    def test_resume_needs_the_same(
        self, tiny_config: Callable[..., Config], defects: Path, tmp_path: Path
    ) -> None:
        config = tiny_config(finetune__enabled=False)
        local = _local()
        run = train(defects, config, out=tmp_path / "run", make_loss=local)
        run.mark("training")
        with pytest.raises(ConfigError, match=r"made, not of the settings' objective"):
            train(defects, out=run.path, resume=True)
        with pytest.raises(ConfigError, match=r"not of .*test_astray\.make_loss"):
            train(defects, out=run.path, resume=True, make_loss=make_loss)
        assert train(defects, out=run.path, resume=True, make_loss=local).finished

    def test_one_device(
        self, tiny_config: Callable[..., Config], defects: Path, tmp_path: Path
    ) -> None:
        config = tiny_config(run__devices=2)
        with pytest.raises(ConfigError, match=r"made\) with run\.devices=2"):
            train(defects, config, out=tmp_path / "run", make_loss=_local())
        assert not (tmp_path / "run" / "run.json").exists()
