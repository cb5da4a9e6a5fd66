from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch

from recame.runs.folder import RunFolder
from recame.training.loop import pace
from recame.training.loop.cost import StepCost
from recame.training.loop.module import FinetuneModule
from recame.training.loop.pace import EndWithPace, KeepTime, Pace, steps_that_fit
from recame.training.ongoing_run import Measured, OngoingRun
from recame.training.phases import finetune
from recame.training.phases.finetune import run_finetune
from recame.training.phases.finetune_length import plan_finetune

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


class TestStepsThatFit:
    @pytest.mark.parametrize("left_s", [-5.0, 0.0, 1.9, 2.0, 12.0, 40.0, 100.0, 1000.0])
    @pytest.mark.parametrize("end_s", [0.0, 2.0, 30.0])
    @pytest.mark.parametrize("to_end", [0, 1, 7, 20])
    def test_as_many_as_a_walk_through_the_epochs_finds(
        self, left_s: float, end_s: float, to_end: int
    ) -> None:
        per_epoch, step_s = 20, 1.5

        def needed(steps: int) -> float:
            """Seconds of so many steps, and of the ends that they bring."""
            spent = end_s if to_end == 0 else 0.0
            for step in range(1, steps + 1):
                over = step == steps or (step - to_end) % per_epoch == 0
                spent += step_s + over * end_s
            return spent

        found = steps_that_fit(
            left_s, step_s=step_s, end_s=end_s, to_end=to_end, per_epoch=per_epoch
        )
        fitting = [steps for steps in range(1, 800) if needed(steps) <= left_s + 1e-9]
        # An epoch's end may cost more than the steps after it bring: fewer may fit than the most.
        assert found == 0 or needed(found) <= left_s + 1e-3
        assert found >= max(fitting, default=0) - end_s / step_s - 1


class Machine:
    """A trainer whose steps and epochs' ends take what a fake clock says."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, step_s: Callable[[float], float], end_s: float
    ) -> None:
        self.now, self.step_s, self.end_s = 0.0, step_s, end_s
        monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: self.now))

    def train(
        self, keep: Callable[[Pace], KeepTime], *, planned: int, batches: int, accumulate: int = 1
    ) -> tuple[int, Pace]:
        """Train until the callbacks end it; how many steps that were, and the pace."""
        per_epoch = math.ceil(batches / accumulate)
        made = begun(planned * per_epoch)
        callbacks = [keep(made), EndWithPace(made)]
        trainer: Any = SimpleNamespace(
            world_size=1,
            current_epoch=0,
            global_step=0,
            should_stop=False,
            num_training_batches=batches,
            accumulate_grad_batches=accumulate,
            fit_loop=SimpleNamespace(max_epochs=planned),
        )
        module = pl.LightningModule()
        while trainer.current_epoch < trainer.fit_loop.max_epochs and not trainer.should_stop:
            for callback in callbacks:
                callback.on_train_epoch_start(trainer, module)
            for batch in range(batches):
                self.now += self.step_s(self.now)
                whole = (batch + 1) % accumulate == 0 or batch + 1 == batches
                trainer.global_step += whole
                for callback in callbacks:
                    callback.on_train_batch_end(trainer, module, None, None, batch)
                if trainer.should_stop:
                    break
            self.now += self.end_s
            trainer.current_epoch += 1
        assert trainer.fit_loop.max_epochs == trainer.current_epoch
        return trainer.global_step, made


COST = StepCost(0.5, 2.0)


class TestKeepTime:
    @pytest.mark.parametrize(
        "step_s",
        [
            lambda _: 0.5,
            lambda _: 0.25,  # twice as fast as it was measured
            lambda _: 2.0,
            lambda now: 0.5 if now < 60 else 1.2,  # another program starts midway
            lambda now: 1.2 if now < 60 else 0.5,  # and ends
            lambda now: 0.5 + 0.3 * math.sin(now),
        ],
    )
    @pytest.mark.parametrize("batches", [7, 60, 5000])
    def test_ends_with_the_time_and_the_rate_with_it(
        self, step_s: Callable[[float], float], batches: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = Machine(monkeypatch, step_s, end_s=2.0)
        keep = partial(KeepTime, 120.0, 0.0, 10**6, COST)
        steps, made = machine.train(keep, planned=4, batches=batches)
        longest = max(step_s(now) for now in np.linspace(90, 120))
        # What a last epoch of one step and its judgement would take may be left.
        assert 120 - 2 * longest - 2.0 - 1.0 <= machine.now <= 120 + longest
        assert made.num_steps == steps
        # The last steps were nearly the last of the plan already.
        assert made.done(steps) == pytest.approx(1.0, abs=0.05)

    @pytest.mark.parametrize(("factor", "kept"), [(1.0, 1.0), (2.0, 2.0), (0.7, 0.7), (0.2, 0.5)])
    def test_what_follows_has_its_time_as_steps_have_become_slower_or_faster(
        self, factor: float, kept: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = Machine(monkeypatch, lambda _: 0.5 * factor, end_s=0.0)
        keep = partial(KeepTime, 100.0, 20.0, 10**6, StepCost(0.5, 0.0))
        machine.train(keep, planned=3, batches=1000)
        assert machine.now == pytest.approx(100 - kept * 20, abs=2 * factor)

    @pytest.mark.parametrize("when", [0.0, 3.0, 60.0])
    def test_a_machine_that_stood_still_once_ends_nothing(
        self, when: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = Machine(monkeypatch, lambda now: 26.0 if when <= now < when + 0.5 else 0.5, 0.0)
        keep = partial(KeepTime, 120.0, 5.0, 10**6, StepCost(0.5, 0.0))
        machine.train(keep, planned=3, batches=1000)
        assert machine.now == pytest.approx(115, abs=1)

    def test_enough_is_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = Machine(monkeypatch, lambda _: 0.01, end_s=0.0)
        keep = partial(KeepTime, 120.0, 0.0, 33, COST)
        assert machine.train(keep, planned=2, batches=10)[0] == 33

    def test_no_time_left_is_one_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = Machine(monkeypatch, lambda _: 0.5, end_s=0.0)
        keep = partial(KeepTime, -10.0, 5.0, 100, COST)
        assert machine.train(keep, planned=2, batches=10)[0] == 1

    @pytest.mark.parametrize("accumulate", [2, 3])
    def test_a_step_of_several_batches_is_not_cut(
        self, accumulate: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = Machine(monkeypatch, lambda _: 0.5, end_s=0.0)
        keep = partial(KeepTime, 50.2, 0.0, 10**6, StepCost(0.5 * accumulate, 0.0))
        steps, _ = machine.train(keep, planned=2, batches=1000, accumulate=accumulate)
        assert steps == 100 // accumulate


class TestRun:
    """A run that planned 4 epochs of 5 steps, on a machine that turns out slower, or faster."""

    @pytest.fixture
    def run(self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch) -> OngoingRun:
        run = ongoing(finetune__epochs=4, finetune__ema_decay=0.9)
        settings = {"finetune.epochs": "auto", "run.time_budget_s": 1000 / 0.99, "run.keep": "last"}
        run = replace(run, config=run.config.updated(settings), started=0.0)
        length = "recame.training.phases.finetune_length"
        monkeypatch.setattr(f"{length}.time", SimpleNamespace(monotonic=lambda: 100.0))
        monkeypatch.setattr(f"{length}.later_work", lambda *_: {"judging": 100.0})
        # 4 epochs of the 70 images in batches of 16 take what is left
        cost = StepCost(800.0 / (4 * 70 / 16), 0.0)
        monkeypatch.setattr(f"{length}.measure_cost", lambda *_, **__: cost)
        return run

    @staticmethod
    def clock(step_s: float) -> SimpleNamespace:
        """Looked at when an epoch starts and after each step."""
        calls = iter(range(999))
        return SimpleNamespace(monotonic=lambda: 100 + step_s * next(calls))

    @pytest.mark.parametrize(("step_s", "steps"), [(100.0, 7), (60.0, 11), (20.0, 33)])
    def test_ends_within_an_epoch(
        self, step_s: float, steps: int, run: OngoingRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pace, "time", self.clock(step_s))
        ended, _ = run_finetune(run, run.new_model())
        settings = ended.config.finetune
        history = pd.read_csv(run.folder.history_path)
        done = int(history["step"].iloc[-1])
        assert abs(done - steps) <= 2
        assert settings.steps == (done if done % 5 else None)
        assert len(history) == settings.epochs == math.ceil(done / 5)
        assert run.folder.load_config() == ended.config
        assert history["val/balanced_accuracy"].notna().all()
        assert history["lr"].is_monotonic_decreasing
        assert history["lr"].iloc[-1] < 0.1 * float(settings.lr)
        reasons = "\n".join(run.folder.reasons())
        assert f"finetune.epochs = {settings.epochs}" in reasons

    def test_its_settings_repeat_it_without_a_clock(
        self, run: OngoingRun, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pace, "time", self.clock(45.0))
        ended, _ = run_finetune(run, run.new_model())
        first = pd.read_csv(run.folder.history_path)
        assert ended.config.finetune.steps is not None
        for path in (
            *(run.folder.last_checkpoint, run.folder.previous_checkpoint),
            run.folder.history_path,
        ):
            path.unlink()
        monkeypatch.setattr(pace, "time", None)  # asking for the time would fail
        again, _ = run_finetune(ended, run.new_model())
        assert again.config == ended.config
        history = pd.read_csv(run.folder.history_path)
        assert list(history["step"]) == list(first["step"])
        assert history["lr"].iloc[-1] == 0

    @pytest.mark.slow
    def test_a_resumed_run_keeps_the_changed_plan(
        self, run: OngoingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pace, "time", self.clock(20.0))
        original, steps = FinetuneModule.training_step, iter(range(999))

        def interrupted(module: FinetuneModule, *words: Any) -> Any:
            if next(steps) == 17:  # in the fourth epoch
                raise OSError("the lights went out")
            return original(module, *words)

        with monkeypatch.context() as patch:
            patch.setattr(FinetuneModule, "training_step", interrupted)
            with pytest.raises(OSError, match="lights"):
                run_finetune(run, run.new_model())
        planned = replace(run, config=run.folder.load_config())
        assert (
            planned.config.finetune.epochs == 4
        )  # what the clock made of it, the checkpoint knows
        kept = torch.load(run.folder.last_checkpoint, weights_only=True)["pace"]["num_steps"]
        assert kept > 20
        weights = []
        for number in range(2):
            copied = shutil.copytree(run.folder.path, tmp_path / f"left-{number}")
            left = replace(planned, folder=RunFolder(copied))
            monkeypatch.setattr(pace, "time", None)
            again, resumed = run_finetune(left, run.new_model())
            assert resumed is not None
            weights.append(resumed.state_dict())
            history = pd.read_csv(left.folder.history_path)
            assert history["step"].iloc[-1] == kept
            assert again.config.finetune.epochs == len(history) == math.ceil(kept / 5)
            assert again.config.finetune.steps == (kept if kept % 5 else None)
        assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())

    def test_a_cut_epoch_is_not_trained_again(
        self, run: OngoingRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed after the last checkpoint, before its settings were written."""
        monkeypatch.setattr(pace, "time", self.clock(45.0))
        planned: list[OngoingRun] = []

        def spy(run: OngoingRun, *_: object, **__: object) -> Any:
            planned.append(replace(run, config=run.folder.load_config()))
            return original(run, *_, **__)

        original = finetune._fit
        monkeypatch.setattr(finetune, "_fit", spy)
        ended, model = run_finetune(run, run.new_model())
        assert ended.config.finetune.steps is not None
        assert model is not None
        history = run.folder.history_path.read_bytes()
        run.folder.save_config(planned[0].config)

        def never(*_: object) -> None:
            raise AssertionError("it was over")

        monkeypatch.setattr(FinetuneModule, "training_step", never)
        again, taken = run_finetune(planned[0], run.new_model())
        assert again.config == ended.config
        assert taken is not None
        theirs = model.state_dict()
        assert all(torch.equal(theirs[n], value) for n, value in taken.state_dict().items())
        assert run.folder.history_path.read_bytes() == history

    def test_the_probes_forward_tells_that_a_trial_would_be_in_vain(
        self, run: OngoingRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = replace(run, config=run.config.updated({"run.keep": "best_on_val"}))
        tried: list[object] = []
        cost = StepCost(200.0, 0.0)

        def measure(*words: object, **_: object) -> StepCost:
            tried.append(words)
            return cost

        monkeypatch.setattr("recame.training.phases.finetune_length.measure_cost", measure)
        # 800 s are left; eight steps take 3 * 16 forwards each, and one may take a quarter of that.
        for forward_s, trials in ((800 / 2 / 48 + 0.01, 0), (800 / 2 / 48 - 0.01, 1)):
            asked = replace(run, measured=Measured(forward_s=forward_s))
            assert run_finetune(asked, run.new_model())[1] is None
            assert len(tried) == trials
            run.folder.save_config(run.config)

    @pytest.mark.parametrize(("batch_size", "trained"), [(64, False), ("auto", True)])
    def test_time_for_steps_of_half_as_many_images_is_used(
        self,
        run: OngoingRun,
        monkeypatch: pytest.MonkeyPatch,
        batch_size: int | str,
        trained: bool,
    ) -> None:
        settings = {"finetune.batch_size": batch_size, "finetune.freeze_batch_norm": True}
        run = replace(run, config=run.config.updated({**settings, "run.keep": "best_on_val"}))
        cost = StepCost(120.0, 0.0)  # some 800 s are left: six steps of 64 images, thirteen of 32
        monkeypatch.setattr(
            "recame.training.phases.finetune_length.measure_cost", lambda *_, **__: cost
        )
        measured: Any = lambda: (None, None)  # noqa: E731
        plan = plan_finetune(run, measured, taught=False)
        assert plan.config.finetune.enabled is trained
        if trained:
            assert plan.config.finetune.batch_size == 32
            assert plan.cost is not None
            assert plan.cost.step_s == 60.0

    def test_without_time_the_probe_is_kept(
        self, run: OngoingRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = {"run.time_budget_s": 150.0, "run.keep": "best_on_val"}
        run = replace(run, config=run.config.updated(settings))
        ended, model = run_finetune(run, run.new_model())
        assert model is None
        assert ended.config.finetune.enabled is False
        assert run.folder.load_config() == ended.config
        assert "finetune.enabled = False: 0.0 s are left" in run.folder.reasons()[-1]
        assert not run.folder.last_checkpoint.exists()
