from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from recame.contracts import Batch, LossResult
from recame.losses.objective import Base
from recame.models import Architecture, MultiExpertClassifier
from recame.training.loop.module import FinetuneModule, MovingAverage
from recame.training.loop.step import TrainingStep, weighted
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.finetune import _step, run_finetune

Ongoing = Callable[..., OngoingRun]


def module_of(run: OngoingRun) -> FinetuneModule:
    return FinetuneModule(
        *_step(run, run.new_model()),
        run.config.finetune,
        deferred_reweighting=run.config.objective.deferred_reweighting,
        seed=run.config.run.seed,
    )


def first_batch(module: FinetuneModule, number: int = 8) -> Batch:
    return module._data.train[list(range(number))]


def with_trainer(module: FinetuneModule, **facts: object) -> FinetuneModule:
    facts = {
        "estimated_stepping_batches": 100,
        "max_epochs": 10,
        "global_rank": 0,
        "precision_plugin": None,
        **facts,
    }
    module._trainer = SimpleNamespace(**facts)
    return module


class TestOptimiser:
    def groups(self, run: OngoingRun) -> tuple[FinetuneModule, list[dict[str, Any]]]:
        module = with_trainer(module_of(run))
        return module, module.configure_optimizers()["optimizer"].param_groups

    def test_biases_and_norms_do_not_decay(self, ongoing: Ongoing) -> None:
        module, groups = self.groups(ongoing(model__hidden=8))
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        norms = {
            id(p)
            for part in module.model.modules()
            if isinstance(part, nn.BatchNorm2d)
            for p in part.parameters()
        }
        for name, parameter in module.model.named_parameters():
            free = name.endswith("bias") or id(parameter) in norms
            assert decay[id(parameter)] == (0.0 if free else 0.02), name
        assert norms

    def test_heads_have_their_own_rate(self, ongoing: Ongoing) -> None:
        run = ongoing(finetune__lr=1e-4, finetune__head_lr=1e-2)
        module, groups = self.groups(run)
        rate = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
        for name, parameter in module.model.named_parameters():
            assert rate[id(parameter)] == (1e-2 if name.startswith("head.") else 1e-4)

    def test_frozen_trunk_is_left_out(self, ongoing: Ongoing) -> None:
        module, groups = self.groups(ongoing(finetune__scope="tails"))
        learned = {id(p) for group in groups for p in group["params"]}
        trunk = module.model.parameter_groups()["trunk"]
        assert trunk
        assert not learned & {id(p) for p in trunk}

    @pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adamw", "AdamW")])
    def test_kinds(self, name: str, kind: str, ongoing: Ongoing) -> None:
        module = with_trainer(module_of(ongoing(finetune__optimizer=name)))
        assert type(module.configure_optimizers()["optimizer"]).__name__ == kind

    def test_schedule_warms_up_and_falls(self, ongoing: Ongoing) -> None:
        run = ongoing(finetune__warmup=0.1, finetune__min_lr_fraction=0.01)
        module = with_trainer(module_of(run))
        factor = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
        values = [factor(step) for step in range(101)]
        assert values[0] == pytest.approx(0.1, rel=0.01)
        assert np.argmax(values) == 9
        assert all(np.diff(values[10:]) < 0)
        assert values[-1] == pytest.approx(0.01)


def trainer_on(device: str) -> SimpleNamespace:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))


class TestMovingAverage:
    def averaged(self, decay: float, steps: int) -> tuple[list[float], float]:
        network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
        module = pl.LightningModule()
        module.network = network
        average = MovingAverage(decay)
        average.setup(trainer_on("cpu"), module, "fit")  # type: ignore[arg-type]
        seen = []
        for step in range(1, steps + 1):
            with torch.no_grad():
                network[0].weight.fill_(float(step))
            network[1].num_batches_tracked.fill_(step)
            seen.append(float(step))
            trainer = SimpleNamespace(global_step=step)
            average.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
        average.on_fit_end(SimpleNamespace(), module)  # type: ignore[arg-type]
        assert int(network[1].num_batches_tracked) == steps
        return seen, network[0].weight.item()

    @pytest.mark.parametrize(("decay", "steps"), [(0.99, 12), (0.3, 12)])
    def test_is_the_formula(self, decay: float, steps: int) -> None:
        seen, ours = self.averaged(decay, steps)
        expected = seen[0]  # the first update takes the weights as they are
        for n, value in enumerate(seen[1:], start=1):
            weight = 1 - min(decay, (1 + n) / (10 + n))
            expected += weight * (value - expected)
        assert ours == pytest.approx(expected, rel=1e-5)

    def test_it_lies_where_training_runs(self) -> None:
        average = MovingAverage(0.9)
        average.setup(trainer_on("meta"), pl.LightningModule(), "fit")  # type: ignore[arg-type]
        assert average._average_model is not None
        assert average._average_model.n_averaged.device.type == "meta"

    def test_the_copy_shares_the_images(self, ongoing: Ongoing) -> None:
        module = module_of(ongoing())
        copied = copy.deepcopy(module)
        assert copied._data is module._data
        assert copied.model is not module.model
        ours, theirs = (m.step.forward.__self__ for m in (copied, module))
        assert ours is copied.model
        assert theirs is module.model


class TestStep:
    def test_seeds_differ_by_step_epoch_and_device(self, ongoing: Ongoing) -> None:
        module = module_of(ongoing())
        seeds = set()
        for rank in (0, 1):
            for epoch in (0, 1):
                with_trainer(module, global_rank=rank, current_epoch=epoch)
                seeds |= {module._step_seed(number) for number in range(3)}
        assert len(seeds) == 12

    def test_same_seed_same_loss(self, ongoing: Ongoing) -> None:
        run = ongoing(augment__mixup=0.5, augment__blur=0.5, augment__rand_augment=1)
        module = module_of(run).eval()
        batch = first_batch(module)
        losses = [
            float(module.step(batch, torch.Generator().manual_seed(seed)).total.detach())
            for seed in (0, 0, 1)
        ]
        assert losses[0] == losses[1] != losses[2]

    def test_weighted_loss(self) -> None:
        def result(value: float) -> LossResult:
            total = torch.tensor(value, requires_grad=True)
            return LossResult(total, {"base": total.detach()})

        first, second = result(2.0), result(10.0)
        mixed = weighted([(first, 0.75), (second, 0.25)])
        assert mixed.total.item() == 4.0
        assert mixed.parts["base"].item() == 4.0
        mixed.total.backward()
        assert first.total.grad is not None
        assert first.total.grad.item() == 0.75

    def test_mixup_weighs_both_labels(
        self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = ongoing(augment__mixup=0.5)
        module = module_of(run).eval()
        batch = first_batch(module)
        permutation = torch.arange(8).flip(0)

        def mix(images: Tensor, _: torch.Generator) -> tuple[Tensor, Tensor, float]:
            return images, permutation, 0.25

        monkeypatch.setattr(module.step, "mix", mix)
        monkeypatch.setattr(module.step, "augment", None)
        with torch.no_grad():
            ours = module.step(batch, torch.Generator()).total
            output = module.step.forward(batch.images.float() / 255)
            own = module.objective(output, batch.target).total
            other = module.objective(output, batch.target[permutation]).total
        torch.testing.assert_close(ours, 0.25 * own + 0.75 * other)

    @pytest.mark.parametrize(
        ("share", "expected"),
        [(0.75, [False] * 3 + [True]), (1.0, [False] * 4), (0, [True] * 4)],
    )
    def test_deferred_reweighting(
        self, share: float, expected: list[bool], ongoing: Ongoing
    ) -> None:
        module = module_of(ongoing(objective__deferred_reweighting=share))
        seen = []
        module.pace.begin(4)
        for step in range(4):  # two epochs of two steps
            trained = with_trainer(module, current_epoch=step // 2, global_step=step)
            trained.on_train_batch_start(first_batch(trained), step % 2)
            seen.append(module.objective.deferred)
        assert seen == expected

    def test_deferred_reweighting_does_not_end_when_epochs_are_added(
        self, ongoing: Ongoing
    ) -> None:
        module = module_of(ongoing(objective__deferred_reweighting=0.75))
        module.pace.begin(8)
        module.pace.change(6, 60)
        trained = with_trainer(module, current_epoch=6, global_step=7)
        trained.on_train_batch_start(first_batch(trained), 0)
        assert module.objective.deferred

    def test_validation_is_the_mean_recall(self, ongoing: Ongoing) -> None:
        module = with_trainer(module_of(ongoing()), world_size=1)
        told = {}
        module.log = lambda name, value, **_: told.update({name: float(value)})  # type: ignore[method-assign]
        module.on_validation_epoch_start()
        module._confusion += torch.tensor(
            [[8, 2, 0, 0], [1, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]]
        )  # the last class is not there
        module.on_validation_epoch_end()
        assert told["val/balanced_accuracy"] == pytest.approx((0.8 + 0.5 + 1.0) / 3)


@pytest.mark.parametrize(
    ("base", "sampler"),
    [
        *((base, "square_root") for base in get_args(Base)),
        ("ldam", "m_per_class"),
        ("balanced_softmax", "instance"),
        ("balanced_softmax", "class_balanced"),
    ],
)
def test_every_objective_learns(base: str, sampler: str, ongoing: Ongoing) -> None:
    run = ongoing(
        objective__base=base,
        # Weights that come half-way change what the loss is the mean of: only with their own base.
        objective__deferred_reweighting=0.5 if base == "ldam" else 1.0,
        finetune__sampler=sampler,
        finetune__epochs=4,
        finetune__lr=3e-3,
        finetune__head_lr=1e-2,
        finetune__ema_decay=0.0,
    )
    run, model = run_finetune(run, run.new_model())
    history = pd.read_csv(run.folder.history_path)
    assert len(history) == 4
    assert np.isfinite(history.filter(like="loss")).all(axis=None)
    assert history["loss/base"].iloc[-1] < 0.95 * history["loss/base"].iloc[0]
    assert not model.training


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_half_precision_trains_with_clipped_gradients(optimizer: str, ongoing: Ongoing) -> None:
    run = ongoing(run__precision="bf16", finetune__optimizer=optimizer)  # as on a GPU
    assert run.config.finetune.clip_norm > 0
    run, _ = run_finetune(run, run.new_model())
    history = pd.read_csv(run.folder.history_path)
    assert len(history) == run.config.finetune.epochs
    assert np.isfinite(history["loss"]).all()


class TestModes:
    def test_everything_trains_after_the_probe(
        self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = ongoing(model__dropout=0.2, finetune__epochs=1)
        model = run.new_model()
        model.head.eval()  # as the probe leaves it
        modes = []

        def spy(step: TrainingStep, *_: object) -> LossResult:
            modes.append({part.training for part in step.model.modules()})
            return original(step, *_)

        original = TrainingStep.__call__
        monkeypatch.setattr(TrainingStep, "__call__", spy)
        run_finetune(run, model)
        assert all(mode == {True} for mode in modes)
        assert len(modes) == 5

    def test_frozen_batch_norms_keep_their_statistics(self, ongoing: Ongoing) -> None:
        run = ongoing(finetune__freeze_batch_norm=True, finetune__epochs=1)
        model = run.new_model()
        before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        _, trained = run_finetune(run, model)
        after = trained.state_dict()
        moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
        # The backbone's; the head's standardisation follows the features.
        assert moved == {name for name in before if name.startswith("head.")} != set(before)

    def test_frozen_stages_end_as_they_were_loaded(self, ongoing: Ongoing) -> None:
        run = ongoing(finetune__frozen_stages=2, finetune__epochs=1)
        model = run.new_model()
        before = copy.deepcopy(model.state_dict())
        _, trained = run_finetune(run, model)
        first = nn.ModuleList(trained.stages(0)[:2]).state_dict()
        kept = nn.ModuleList(run.new_model().stages(0)[:2]).state_dict()
        assert all(torch.equal(first[name], kept[name]) for name in kept)
        learnt = {n for n, v in trained.state_dict().items() if not torch.equal(before[n], v)}
        weights = {name for name, _ in trained.named_parameters()}
        assert len(weights - learnt) == len(list(nn.ModuleList(trained.stages(0)[:2]).parameters()))
        assert all(parameter.requires_grad for parameter in trained.parameters())

    def test_synchronised_norms_keep_their_activations(self) -> None:
        from recame.contracts import PreprocessSpec

        torch.manual_seed(0)
        spec = PreprocessSpec(32, 32, 3, 8, 255.0, (0.5,) * 3, (0.5,) * 3)
        plan = Architecture("tf_efficientnet_lite0", num_experts=1)
        model = MultiExpertClassifier(plan, 3, spec).eval()
        assert any(isinstance(part, BatchNormAct2d) for part in model.modules())
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            expected = model(images).logits
            convert_sync_batchnorm(model)
            assert not any(isinstance(part, BatchNormAct2d) for part in model.modules())
            torch.testing.assert_close(model(images).logits, expected)
