"""Two processes, one clock: the leader's, which is a fake one here."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from recame.training.loop import pace as pace_file
from recame.training.loop import shared_time
from recame.training.loop.cost import StepCost
from recame.training.loop.pace import EndWithPace, KeepTime, Pace
from recame.training.loop.shared_time import SharedTime

InTwo = Callable[[Callable[[int], Any]], list[Any]]


def train(
    rank: int, step_s: Callable[[float], float], *, keeps: bool, accumulate: int = 1
) -> dict[str, Any]:
    """Train until the callbacks end it, by a clock that is right in the leader alone."""
    torch.distributed.init_process_group("gloo")
    now, words, planned, batches = 0.0, 0, 4, 30
    pace_file.time = SimpleNamespace(monotonic=lambda: now if rank == 0 else 1e9)  # type: ignore[assignment]
    told = shared_time.leaders_word

    def counted(*args: Any) -> list[int]:
        nonlocal words
        words += 1
        return told(*args)

    shared_time.leaders_word = counted
    made = Pace()
    per_epoch = math.ceil(batches / accumulate)
    made.begin(planned * per_epoch)
    keep = None
    if keeps and rank == 0:
        keep = KeepTime(100.0, 0.0, 10**6, StepCost(0.1, 0.0), made)
    callbacks = [SharedTime(keep, made), EndWithPace(made)]
    trainer: Any = SimpleNamespace(
        world_size=2,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        current_epoch=0,
        global_step=0,
        should_stop=False,
        num_training_batches=batches,
        accumulate_grad_batches=accumulate,
        fit_loop=SimpleNamespace(max_epochs=planned),
    )
    module = pl.LightningModule()
    callbacks[0].on_train_start(trainer, module)
    while trainer.current_epoch < trainer.fit_loop.max_epochs and not trainer.should_stop:
        callbacks[0].on_train_epoch_start(trainer, module)
        for batch in range(batches):
            now += step_s(now)
            trainer.global_step += (batch + 1) % accumulate == 0 or batch + 1 == batches
            for callback in callbacks:
                callback.on_train_batch_end(trainer, module, None, None, batch)
            if trainer.should_stop:
                break
        trainer.current_epoch += 1
    return {
        "steps": trainer.global_step,
        "planned": made.num_steps,
        "epochs": trainer.fit_loop.max_epochs,
        "words": words,
        "now": now,
        "rates": [made.done(step) for step in range(trainer.global_step)],
    }


@pytest.mark.parametrize(
    ("step_s", "words"),
    [
        (lambda _: 0.1, (195, 260)),  # a word in four or five steps
        (lambda now: 0.1 if now < 40 else 1.0, (120, 160)),  # then at each
        (lambda _: 2.0, (45, 55)),
    ],
)
def test_all_end_with_the_leaders_time(
    step_s: Callable[[float], float], words: tuple[int, int], in_two_processes: InTwo
) -> None:
    leader, follower = in_two_processes(lambda rank: train(rank, step_s, keeps=True))
    assert follower == leader
    assert leader["now"] == pytest.approx(100.0, abs=2 * step_s(99.0) + 0.5)
    assert leader["steps"] == leader["planned"]
    assert leader["epochs"] == math.ceil(leader["steps"] / 30)
    assert words[0] <= leader["words"] <= words[1]


def test_steps_of_several_batches(in_two_processes: InTwo) -> None:
    leader, follower = in_two_processes(
        lambda rank: train(rank, lambda _: 0.5, keeps=True, accumulate=3)
    )
    assert follower == leader
    assert leader["steps"] in {66, 67}


def test_without_a_time_the_plan_stands(in_two_processes: InTwo) -> None:
    leader, follower = in_two_processes(lambda rank: train(rank, lambda _: 0.1, keeps=False))
    assert follower == leader
    assert (leader["steps"], leader["epochs"], leader["words"]) == (120, 4, 1)
