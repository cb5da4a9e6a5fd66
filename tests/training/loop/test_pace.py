from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch

from recame.training.loop import pace
from recame.training.loop.cost import StepCost
from recame.training.loop.module import FinetuneModule
from recame.training.loop.pace import KeepTime, Pace
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.finetune import run_finetune

Ongoing = Callable[..., OngoingRun]


def begun(num_steps: int) -> Pace:
    made = Pace()
    made.begin(num_steps)
    return made


class TestPace:
    def test_unchanged_it_is_the_share_of_the_steps(self) -> None:
        made = begun(7)
        assert [made.done(step) for step in range(8)] == [step / 7 for step in range(8)]
        assert made.done(9) == 1.0

    @pytest.mark.parametrize("num_steps", [25, 60, 180])
    def test_a_change_is_continuous_and_reaches_the_end(self, num_steps: int) -> None:
        made = begun(100)
        made.change(20, num_steps)
        values = np.array([made.done(step) for step in range(20, num_steps + 1)])
        assert values[0] == 0.2
        assert values[-1] == pytest.approx(1.0)
        np.testing.assert_allclose(np.diff(values), 0.8 / (num_steps - 20))

    def test_changes_add_up(self) -> None:
        made = begun(100)
        made.change(50, 80)
        made.change(65, 95)  # 0.5 + 0.5 * 15 / 30
        assert made.done(65) == 0.75
        assert made.done(80) == 0.875

    def test_a_change_to_now_is_the_end(self) -> None:
        made = begun(10)
        made.change(4, 4)
        assert made.done(5) == 1.0

    def test_a_checkpoint_keeps_it(self) -> None:
        made = begun(100)
        made.change(30, 60)
        again = Pace()
        again.load_state_dict(made.state_dict())
        again.begin(100)  # what the settings say is out of date
        assert [again.done(s) for s in range(61)] == [made.done(s) for s in range(61)]

    def test_the_warm_up_is_the_one_that_was_planned(self) -> None:
        made = Pace()
        made.begin(100, 5)
        made.change(30, 400)
        again = Pace()
        again.load_state_dict(made.state_dict())
        again.begin(400, 20)
        assert again.warmup == made.warmup == 5


class TestKeepTime:
    def epochs_after(
        self, epoch_s: list[float], planned: int, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> int:
        """Epochs that are made where 100 s are allowed and they take `epoch_s`."""
        now = 0.0
        monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
        made = begun(10 * planned)
        keep = KeepTime(100.0, most, made)
        trainer = SimpleNamespace(
            world_size=1,
            max_epochs=planned,
            current_epoch=0,
            global_step=0,
            fit_loop=SimpleNamespace(max_epochs=planned),
        )
        module = pl.LightningModule()
        keep.on_train_start(trainer, module)  # type: ignore[arg-type]
        while trainer.current_epoch < trainer.max_epochs:
            now += epoch_s[min(trainer.current_epoch, len(epoch_s) - 1)]
            trainer.global_step += 10
            keep.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]
            trainer.max_epochs = trainer.fit_loop.max_epochs
            trainer.current_epoch += 1
        assert made.done(trainer.global_step + 1) == pytest.approx(1.0)
        return int(trainer.current_epoch)

    @pytest.mark.parametrize(
        ("epoch_s", "planned", "epochs"),
        [
            ([10.0], 10, 10),
            ([20.0], 10, 5),  # a machine half as fast
            ([8.0], 10, 12),
            ([5.0, 10.0], 10, 10),  # fast at first
            ([10.0, 10.0, 35.0, 10.0], 10, 7),  # one epoch that something else delayed
            ([400.0], 10, 1),
        ],
    )
    def test_the_clock_decides(
        self, epoch_s: list[float], planned: int, epochs: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.epochs_after(epoch_s, planned, 99, monkeypatch) == epochs

    def test_enough_is_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.epochs_after([1.0], 10, 12, monkeypatch) == 12

    def test_several_processes_keep_their_plan(self) -> None:
        fit_loop = SimpleNamespace(max_epochs=3)
        trainer = SimpleNamespace(world_size=2, fit_loop=fit_loop)
        KeepTime(0.0, 3, begun(3)).on_train_epoch_end(
            trainer,  # type: ignore[arg-type]
            pl.LightningModule(),
        )
        assert fit_loop.max_epochs == 3


class TestRun:
    """A run that planned 4 epochs, on a machine that turns out four times slower, or faster."""

    @pytest.fixture
    def run(self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch) -> OngoingRun:
        run = ongoing(finetune__epochs=4)
        settings = {"finetune.epochs": "auto", "run.time_budget_s": 1000.0, "run.keep": "last"}
        run = replace(run, config=run.config.updated(settings))
        monkeypatch.setattr(
            "recame.training.phases.finetune.measure_cost",
            # 4 epochs of the 70 images in batches of 16 take what is planned of the budget
            lambda *_: StepCost(950.0 / (4 * 70 / 16), 0.0),
        )
        return run

    @pytest.mark.parametrize(("epoch_s", "epochs"), [(900.0, 1), (470.0, 2), (120.0, 8)])
    def test_rate_falls_to_its_end(
        self, epoch_s: float, epochs: int, run: OngoingRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = iter(range(99))
        # The first call plans the end, the second starts the clock.
        clock = SimpleNamespace(monotonic=lambda: epoch_s * max(0, next(calls) - 1))
        monkeypatch.setattr(pace, "time", clock)
        ended, _ = run_finetune(run, run.new_model())
        history = pd.read_csv(run.folder.history_path)
        assert len(history) == ended.config.finetune.epochs == epochs
        assert run.folder.load_config() == ended.config
        assert f"finetune.epochs = {epochs}" in run.folder.reasons()[-1]
        assert (history["lr"].iloc[-1] == 0) == (epochs > 1)
        assert history["lr"].is_monotonic_decreasing

    def test_a_resumed_run_keeps_the_changed_plan(
        self, run: OngoingRun, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def clock() -> SimpleNamespace:
            calls = iter(range(99))
            return SimpleNamespace(monotonic=lambda: 120.0 * max(0, next(calls) - 1))

        monkeypatch.setattr(pace, "time", clock())
        _, whole = run_finetune(run, run.new_model())
        history = pd.read_csv(run.folder.history_path)

        left = (run.folder.last_checkpoint, run.folder.previous_checkpoint)
        for path in (*left, run.folder.history_path):
            path.unlink()
        run.folder.save_config(run.config)
        monkeypatch.setattr(pace, "time", clock())
        original, steps = FinetuneModule.training_step, iter(range(99))

        def interrupted(module: FinetuneModule, *words: Any) -> Any:
            if next(steps) == 17:  # in the fourth epoch
                raise OSError("the lights went out")
            return original(module, *words)

        with monkeypatch.context() as patch:
            patch.setattr(FinetuneModule, "training_step", interrupted)
            with pytest.raises(OSError, match="lights"):
                run_finetune(run, run.new_model())
        planned = run.folder.load_config()
        assert planned.finetune.epochs < 8  # what the clock made of it, the checkpoint knows
        again, resumed = run_finetune(replace(run, config=planned), run.new_model())
        assert again.config.finetune.epochs == len(history) == 8
        theirs = whole.state_dict()
        ours = resumed.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        ended = pd.read_csv(run.folder.history_path)
        pd.testing.assert_frame_equal(
            ended.drop(columns="seconds"), history.drop(columns="seconds")
        )
