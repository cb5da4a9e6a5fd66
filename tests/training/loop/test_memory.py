"""What a loss remembers of each step, and the numbers that tell whether its parts work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import recame
from recame.config import Config
from recame.contracts import Batch, ExpertOutput
from recame.errors import ConfigError
from recame.losses import Objective
from recame.training.loop.memory import gathered, of_all_processes
from recame.training.loop.step import TrainingStep
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.features import ProbeFeatures, fit_heads
from recame.training.phases.finetune import _step, run_finetune
from recame.training.train import train

Ongoing = Callable[..., OngoingRun]
InTwo = Callable[[Callable[[int], Any]], list[Any]]

MEMORY = {
    "objective__hard_selection": "confusion",
    "objective__intra_mode": "clusters",
    "objective__intra_weight": 0.1,
}


def step_of(run: OngoingRun) -> tuple[TrainingStep, Batch]:
    step, data = _step(run, run.new_model())
    return step, data.train[list(range(12))]


def memory_of(step: TrainingStep) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in step.objective.state_dict().items()}


class TestStep:
    def test_shows_a_batch_once(self, ongoing: Ongoing) -> None:
        step, batch = step_of(ongoing(**MEMORY))
        before = memory_of(step)
        step(batch, torch.Generator().manual_seed(0))
        after = memory_of(step)
        assert all(not torch.equal(after[name], before[name]) for name in before)
        classes = torch.bincount(batch.target, minlength=4)
        images = after["memory.prototypes.images"].sum(2)
        # One image opens a place; what came with it in that first batch is not yet near any.
        assert torch.equal(images, (classes > 0).float()[:, None].expand(-1, 2))

    def test_shows_a_mixed_batch_with_both_labels(
        self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step, batch = step_of(ongoing(augment__mixup=0.5, **MEMORY))
        shown: list[Any] = []
        monkeypatch.setattr(step, "mix", lambda images, _: (images, torch.arange(12).flip(0), 0.8))
        monkeypatch.setattr(step.objective, "remember", lambda *seen: shown.append(seen))
        step(batch, torch.Generator().manual_seed(0))
        ((output, labels),) = shown
        assert output.logits.shape == (12, 2, 4)
        assert [share for _, share in labels] == pytest.approx([0.8, 0.2])
        assert torch.equal(labels[0][0], batch.target)
        assert torch.equal(labels[1][0], batch.target.flip(0))

    @pytest.mark.parametrize("scope", ["all", "tails"])
    def test_fills_the_memory_that_a_checkpoint_holds(self, scope: str, ongoing: Ongoing) -> None:
        run = ongoing(finetune__scope=scope, finetune__epochs=1, **MEMORY)
        run_finetune(run, run.new_model())
        checkpoint = torch.load(run.folder.last_checkpoint, weights_only=True)["state_dict"]
        matrix = checkpoint["objective.memory.confusion.matrix"]
        assert (matrix != 0.25).any(1).all()
        torch.testing.assert_close(matrix.sum(1), torch.ones(4))
        assert (checkpoint["objective.memory.prototypes.images"] > 0).any()

    def test_deciding_and_looking_leave_no_trace(self, ongoing: Ongoing) -> None:
        step, batch = step_of(ongoing(**MEMORY))
        step(batch, torch.Generator().manual_seed(0))
        before = memory_of(step)
        weights = {name: value.clone() for name, value in step.model.state_dict().items()}
        modes = [module.training for module in step.model.modules()]
        step.decide(batch)  # moves batch norms, unless the model is told to evaluate
        step.model.load_state_dict(weights)
        found = step.workings(batch)
        gates = {"gate_mean", "gate_std", "gate_varies"}
        assert {"hard_differs", "clusters", "silent", *gates} == set(found)
        assert all(torch.equal(value, before[name]) for name, value in memory_of(step).items())
        for name, value in step.model.state_dict().items():
            assert torch.equal(value, weights[name]), name
        assert [module.training for module in step.model.modules()] == modes

    @pytest.mark.parametrize(
        ("changes", "graphed"),
        [
            ({}, True),
            (MEMORY, False),
            # Nothing asks for hard categories.
            ({"objective__hard_selection": "confusion", "objective__hard_weight": 0.0}, True),
        ],
    )
    def test_is_no_cuda_graph(
        self, changes: dict[str, object], graphed: bool, ongoing: Ongoing
    ) -> None:
        assert step_of(ongoing(**changes))[0].graphed == graphed


class TestProbe:
    def test_a_fit_does_not_remember_another(self, ongoing: Ongoing) -> None:
        run = ongoing(**MEMORY)
        target = torch.arange(40) % 4
        pooled = torch.randn(40, 1, run.new_model().head.shape[1])
        features = ProbeFeatures(pooled + target[:, None, None], target)
        objective = run.objective(torch.ones(4), run.new_model().num_features)
        heads = []
        for _ in range(2):
            head = run.new_model().head
            fit_heads(head, features, objective, run.config.probe, num_experts=2, seed=0)
            heads.append(head.state_dict())
        assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())


class TestProcesses:
    def test_rows_of_all_in_the_order_of_their_ranks(self, in_two_processes: InTwo) -> None:
        def child(rank: int) -> Any:
            torch.distributed.init_process_group("gloo")
            size = 2 + rank
            output = ExpertOutput(
                torch.full((size, 1, 3), float(rank)), torch.full((size, 1, 2), 10.0 + rank)
            )
            target = torch.full((size,), rank)
            both, labels = of_all_processes(output, [(target, 0.25 + rank), (target + 5, 0.5)])
            empty = gathered(torch.zeros(rank, 2))
            torch.distributed.destroy_process_group()
            values = [both.logits[:, 0, 0], both.features[:, 0, 0]]
            values += [part for pair in labels for part in pair]
            return [part.tolist() for part in values], list(empty.shape)

        expected = [
            [0.0, 0.0, 1.0, 1.0, 1.0],
            [10.0, 10.0, 11.0, 11.0, 11.0],
            [0, 0, 1, 1, 1],
            [0.25, 0.25, 1.25, 1.25, 1.25],
            [5, 5, 6, 6, 6],
            [0.5] * 5,
        ]
        assert in_two_processes(child) == [(expected, [1, 2])] * 2

    @pytest.mark.slow
    def test_two_remember_what_one_with_the_whole_batch_does(
        self,
        defects: Path,
        tiny_config: Callable[..., Config],
        tmp_path: Path,
        in_two_processes: InTwo,
    ) -> None:
        plain = {"augment__symmetry": "none", "augment__shift": 0.0, "augment__brightness": 0.0}
        plain |= {"augment__contrast": 0.0, "finetune__optimizer": "sgd", "finetune__lr": 0.002}
        config = tiny_config(
            **plain, **MEMORY, run__keep="last", finetune__sampler="instance", finetune__epochs=1
        )
        halves = config.updated({"finetune.batch_size": 8})

        def child(_: int) -> Any:
            return str(train(defects, halves, out=tmp_path / "two"))

        assert in_two_processes(child)[1] == 0
        train(defects, config, out=tmp_path / "one")
        memories = []
        for name in ("one", "two"):
            state = torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
            matrix, images = (
                state[f"objective.memory.{part}"]
                for part in ("confusion.matrix", "prototypes.images")
            )
            # Which image of a new class is the first depends on their order.
            memories.append((matrix, images.sum(2)))
        # Sums in another order, and the weights that follow from them.
        torch.testing.assert_close(*memories, rtol=1e-2, atol=1e-2)


def test_history_tells_whether_the_parts_work(ongoing: Ongoing) -> None:
    run = ongoing(
        objective__contrastive_weight=0.05,
        objective__margin_mode="relative",
        model__gate_start=0.5,
        finetune__epochs=3,
        **MEMORY,
    )
    run_finetune(run, run.new_model())
    history = pd.read_csv(run.folder.history_path)
    work = history.filter(like="work/")
    assert list(work.columns) == [
        "work/hard_differs",
        "work/pushed",
        "work/clusters",
        "work/silent",
        "work/gate_mean",
        "work/gate_std",
        "work/gate_varies",
    ]
    assert np.isfinite(work).all(axis=None)
    assert history["work/pushed"].between(0.2, 0.8).all()
    assert (history["work/gate_mean"] - 1).abs().max() < 0.2
    assert (history["work/gate_varies"] > 0).all()
    assert (history["work/clusters"] >= 1).all()
    assert history["work/silent"].between(0, 0.9).all()
    assert list(history.columns).index("work/pushed") > list(history.columns).index("loss")


def test_history_tells_of_a_plain_loss_what_there_is(ongoing: Ongoing) -> None:
    run = ongoing(model__attention="none", objective__hard_weight=0.0, finetune__epochs=1)
    run_finetune(run, run.new_model())
    told = pd.read_csv(run.folder.history_path).filter(like="work/")
    assert list(told.columns) == ["work/silent"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model.gate_start", 1.0, "below 1"),
        ("model.gate_start", 0, "above 0"),
        ("objective.margin_mode", "auto", "absolute or relative"),
        ("objective.intra_mode", "centre", "reference or clusters"),
        ("objective.hard_selection", "all", "or confusion"),
        ("objective.clusters", 0, "from 1"),
    ],
)
def test_settings_that_are_none(name: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: .*{told}"):
        Config().updated({name: value})


def test_a_factor_that_would_push_every_pair_is_refused() -> None:
    relative = {"objective.margin_mode": "relative", "objective.margin": 20.0}
    raw = {"objective.normalise_features": False}
    with pytest.raises(ConfigError, match=r"margin=20\.0 with margin_mode=relative: .*\(0, 2\]"):
        Config().updated(relative | raw)
    assert Config().updated(raw | {"objective.margin": 20.0}).objective.margin == 20.0
    off = Config().updated(relative | raw | {"objective.contrastive_weight": 0.0}).objective
    assert off.margin_mode == "relative"


def test_the_settings_reach_loss_and_network(ongoing: Ongoing) -> None:
    run = ongoing(
        objective__contrastive_weight=0.05,
        objective__margin_mode="relative",
        objective__clusters=2,
        model__gate_start=0.5,
        **MEMORY,
    )
    step, _ = step_of(run)
    objective = step.objective
    assert isinstance(objective, Objective)
    assert objective.margin_mode == "relative"
    assert objective.memory.prototypes is not None
    assert objective.memory.prototypes.sums.shape == (4, 2, 2, step.model.num_features)
    assert step.model.architecture.gate_start == 0.5


def test_divided_gates_are_in_the_run_that_is_left(
    defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(defects, tiny_config(model__gate_start=0.5), out=tmp_path / "run")
    model = recame.load(run.path)
    assert model is not None
    assert any("fc2" in name for name in load_file(run.path / "model.safetensors"))
    facts = (run.path / "model.json").read_text()
    assert '"gate_start": 0.5' in facts
