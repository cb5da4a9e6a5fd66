from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recame.config import Config
from recame.contracts import PreprocessSpec
from recame.errors import ConfigError
from recame.inference.device import choose_device, choose_precision
from recame.label_space import LabelSpace
from recame.training import planner
from recame.training.loop.cost import StepCost
from recame.training.planner import (
    DEFAULT_GPU_PASSES,
    ENOUGH_IMAGES,
    ENOUGH_PASSES,
    TRAINED_PIXELS_PER_S,
    TRAINED_SHARE,
    choose_size,
    embedding_share,
    num_processes,
    plan_epochs,
    plan_experts,
    plan_model,
)

#: As it is when epochs are planned: the symmetry, and with it the views, are decided.
CONFIG = Config().updated({"augment.symmetry": "flips", "evaluation.views": 4})

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def planned_s(config: Config, cost: StepCost) -> float:
    """Seconds that the planned epochs take, validation included."""
    settings = config.finetune
    steps = int(settings.epoch_size) / settings.images_per_step
    return int(settings.epochs) * (steps * cost.step_s + cost.epoch_end_s)


class TestEpochs:
    @pytest.mark.parametrize("left_s", [40.0, 500.0, 3400.0])
    @pytest.mark.parametrize("step_s", [0.05, 0.5, 3.0])
    @pytest.mark.parametrize("num_train", [400, 30_000])
    @pytest.mark.parametrize("val_s", [0.0, 1.0])
    def test_time_is_used_and_kept(
        self, left_s: float, step_s: float, num_train: int, val_s: float
    ) -> None:
        config = CONFIG.updated({"run.time_budget_s": left_s + 20})
        cost = StepCost(step_s, val_s, checkpoint_s=0.1)
        plan = plan_epochs(config, cost, num_train=num_train, left_s=left_s, device=CPU)
        seconds = planned_s(plan.config, cost)
        assert seconds <= left_s
        images = int(plan.config.finetune.epochs) * int(plan.config.finetune.epoch_size)
        enough = max(ENOUGH_IMAGES, ENOUGH_PASSES * num_train)
        assert plan.most_steps == enough // plan.config.finetune.images_per_step
        assert images >= 0.99 * enough or seconds >= 0.95 * left_s
        assert images <= enough * 1.01
        assert f"{left_s + 20:.0f} s in all" in plan.reasons[0]

    def test_nothing_is_left_open(self) -> None:
        cost = StepCost(0.3, 1.0)
        plan = plan_epochs(CONFIG, cost, num_train=1000, left_s=500.0, device=CPU)
        assert isinstance(plan.config.finetune.epochs, int)
        assert isinstance(plan.config.finetune.epoch_size, int)
        assert plan.config.finetune.batch_size == 64
        assert planned_s(plan.config, cost) <= 500

    def test_given_epochs_are_kept(self) -> None:
        config = CONFIG.updated({"finetune.epochs": 3, "run.time_budget_s": 10.0})
        cost = StepCost(100.0, 0.0)
        plan = plan_epochs(config, cost, num_train=77, left_s=1.0, device=CPU)
        assert (plan.config.finetune.epochs, plan.config.finetune.epoch_size) == (3, 77)
        assert plan.config.finetune.batch_size == 64
        assert plan.reasons == ()

    def test_given_epoch_size_is_kept(self) -> None:
        config = CONFIG.updated({"finetune.epoch_size": 640, "run.time_budget_s": 100.0})
        plan = plan_epochs(config, StepCost(1.0, 0.0), num_train=70, left_s=95.0, device=CPU)
        assert plan.config.finetune.epoch_size == 640
        assert plan.config.finetune.epochs == 9  # 95 s, 10 steps of 1 s an epoch

    def test_a_spent_budget_leaves_one_short_epoch(self) -> None:
        config = CONFIG.updated({"run.time_budget_s": 30.0})
        plan = plan_epochs(config, StepCost(2.0, 1.0), num_train=5000, left_s=-60.0, device=CPU)
        assert plan.config.finetune.epochs == 1
        assert plan.config.finetune.epoch_size == plan.config.finetune.batch_size

    @pytest.mark.parametrize(
        ("left_s", "batch"),
        [(100.0, 64), (30.0, 64), (29.0, 32), (2.0, 32)],
    )
    def test_few_steps_become_more_and_smaller_ones(self, left_s: float, batch: int) -> None:
        config = CONFIG.updated({"finetune.freeze_batch_norm": True, "run.time_budget_s": 200.0})
        cost = StepCost(1.0, 0.0)
        plan = plan_epochs(config, cost, num_train=5000, left_s=left_s, device=CPU)
        settings = plan.config.finetune
        assert settings.batch_size == batch
        images = int(settings.epochs) * int(settings.epoch_size)
        assert images == pytest.approx(64 * left_s, rel=0.05)  # as many, in whatever batches
        told = f"finetune.batch_size = {batch}: {left_s:.0f} steps of 64 images fit"
        assert (told in plan.reasons[0]) == (batch < 64)
        # An accumulated step is one step, and what is asked for stays.
        twice = config.updated({"finetune.accumulate": 2})
        halved = plan_epochs(twice, cost, num_train=5000, left_s=2 * left_s, device=CPU)
        assert halved.config.finetune.batch_size == batch
        asked = config.updated({"finetune.batch_size": 128})
        plan = plan_epochs(asked, cost, num_train=5000, left_s=left_s, device=CPU)
        assert plan.config.finetune.batch_size == 128

    def test_moving_batch_norms_see_whole_batches(self) -> None:
        config = CONFIG.updated({"finetune.freeze_batch_norm": False, "run.time_budget_s": 200.0})
        plan = plan_epochs(config, StepCost(1.0, 0.0), num_train=5000, left_s=9.0, device=CPU)
        assert plan.config.finetune.batch_size == 64

    def test_a_short_epoch_has_a_batch_for_each_device(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        config = CONFIG.updated({"run.time_budget_s": 30.0, "run.num_nodes": 2})
        cost = StepCost(2.0, 1.0)
        for devices, processes in ((3, 6), ("auto", 16)):
            asked = config.updated({"run.devices": devices})
            plan = plan_epochs(asked, cost, num_train=5000, left_s=-60.0, device=GPU)
            settings = plan.config.finetune
            assert settings.epoch_size == settings.images_per_step * processes
        assert num_processes(config.updated({"run.devices": "auto"}).run, CPU) == 2

    def test_passes_on_a_gpu(self) -> None:
        plan = plan_epochs(CONFIG, StepCost(0.01, 0.1), num_train=4000, left_s=0.0, device=GPU)
        images = int(plan.config.finetune.epochs) * int(plan.config.finetune.epoch_size)
        assert images == pytest.approx(DEFAULT_GPU_PASSES * 4000, rel=0.05)
        assert plan.most_steps is None  # no time was given that could run out


class TestSize:
    @pytest.mark.parametrize(
        ("native", "size"),
        [((20, 20), 64), ((64, 64), 64), ((90, 100), 96), ((128, 128), 128), ((900, 1300), 128)],
    )
    def test_side(self, native: tuple[int, int], size: int) -> None:
        chosen, why = choose_size(native)
        assert chosen == size
        assert f"{native[1]} x {native[0]} pixels" in why

    @pytest.mark.parametrize(
        ("native", "size", "told"),
        [
            (
                (200, 5000),
                "64x320",
                "64x320 has about as many as 128 x 128, in their shape as far as 1:8",
            ),
            ((8000, 2000), "256x64", "in their shape, and"),
            ((900, 1600), "96x160", "as many as 128 x 128"),
        ],
    )
    def test_shape(self, native: tuple[int, int], size: str, told: str) -> None:
        chosen, why = choose_size(native)
        assert chosen == size
        assert told in why


class TestDevice:
    def test_cpu_is_always_there(self) -> None:
        assert choose_device("cpu") == CPU

    @pytest.mark.parametrize(("has_gpu", "device"), [(True, GPU), (False, CPU)])
    def test_auto(
        self, has_gpu: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        assert choose_device("auto") == device

    def test_missing_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=r"run\.accelerator=gpu.*no CUDA device"):
            choose_device("gpu")

    def test_precision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
        assert choose_precision("auto", CPU) == "32"
        assert choose_precision("auto", GPU) == "16"
        assert choose_precision("bf16", CPU) == "bf16"
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        assert choose_precision("auto", GPU) == "bf16"


def fake_data(channels: int = 3, size: tuple[int, int] = (64, 64)) -> Any:
    mean = (0.5,) * channels
    spec = PreprocessSpec(*size, channels, 8, 255.0, mean, mean)  # type: ignore[arg-type]
    return SimpleNamespace(spec=spec, label_space=LabelSpace(("ok", "crack"), (900, 12)))


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


class TestProbe:
    @pytest.mark.parametrize(
        ("changes", "device", "measured"),
        [
            ({}, CPU, True),  # which has a time by default
            ({"run.time_budget_s": 60.0}, GPU, True),
            ({"run.time_budget_s": 60.0, "finetune.epochs": 3}, CPU, True),
            ({"finetune.epochs": 3}, CPU, False),  # the same on any machine
            ({"probe.enabled": False}, CPU, False),
            ({}, GPU, False),
        ],
    )
    def test_a_measured_speed_decides_where_time_does(
        self, changes: dict[str, Any], device: torch.device, measured: bool
    ) -> None:
        config = Config().updated({"data.size": 64, **changes})
        plan = plan_model(config, fake_data(), device).config
        assert (plan.probe.max_per_class == "auto") == measured
        assert 50 <= int(plan.probe.steps) <= 800

    def test_a_run_that_ends_with_its_probe_gives_it_the_time(self) -> None:
        usual = Config().updated({"data.size": 64, "run.time_budget_s": 60.0})
        alone = usual.updated({"finetune.enabled": False})
        followed = alone.updated({"retrain.enabled": True})
        assert embedding_share(followed) == embedding_share(usual) < embedding_share(alone) < 1
        steps, more = (
            int(plan_model(config, fake_data(), CPU).config.probe.steps)
            for config in (usual, alone)
        )
        assert more > 2 * steps


class TestModel:
    @pytest.mark.parametrize(
        "changes",
        [
            {"probe.enabled": False},
            {"model.pretrained": False},
            {"finetune.scope": "tails"},
            {"finetune.freeze_batch_norm": False},
        ],
    )
    def test_every_stage_learns_where_none_was_probed(self, changes: dict[str, object]) -> None:
        config = Config().updated({"data.size": 64, **changes})
        assert plan_model(config, fake_data(), CPU).config.finetune.frozen_stages == 0

    def test_more_frozen_stages_than_there_are(self) -> None:
        config = Config().updated({"data.size": 64, "finetune.frozen_stages": 8})
        with pytest.raises(ConfigError, match="frozen_stages=8, but tf_efficientnet_lite0 has 7"):
            plan_model(config, fake_data(), CPU)

    def test_only_what_later_steps_measure_stays_open(self) -> None:
        plan = plan_model(Config().updated({"data.size": 64, "data.tiles": 0}), fake_data(), CPU)
        still = {
            name for name, value in leaves(plan.config.model_dump()).items() if value == "auto"
        }
        assert still <= {
            "data.encoding",  # each table's own bytes tell
            "data.calibrate",  # the classes' counts tell, once the set is cut
            "augment.symmetry",  # the probe asks the data
            "evaluation.views",  # follows from the symmetry
            "probe.max_per_class",
            "finetune.epochs",
            "finetune.epoch_size",
            "finetune.batch_size",
            "run.accelerator",
            "run.strategy",
        }
        assert plan.config.model.backbone == "tf_efficientnet_lite0"
        decided = [reason.split(" = ")[0] for reason in plan.reasons]
        assert {"model.backbone", "model.num_experts", "run.precision"} <= set(decided)
        assert plan.config.finetune.freeze_batch_norm is True
        assert plan.config.probe.adapt_batch_norm == 0
        assert plan.config.finetune.frozen_stages == planner.FROZEN_STAGES
        assert plan.config.finetune.lr == planner.FROZEN_LR
        assert len(decided) == len(set(decided))

    def test_what_is_given_is_kept(self) -> None:
        given = {
            "data.size": 64,
            "model.backbone": "test_resnet",
            "model.pretrained": False,
            "model.num_experts": 3,
            "model.shared_stages": 1,
            "augment.symmetry": "mirror",
        }
        plan = plan_model(Config().updated(given), fake_data(1), CPU)
        values = leaves(plan.config.model_dump())
        assert {name: values[name] for name in given} == given
        assert values["data.channels"] == 1
        assert values["evaluation.views"] == 2  # as many as a mirror makes
        assert not any("model.num_experts" in reason for reason in plan.reasons)

    def test_no_quarter_turn_of_what_is_not_square(self) -> None:
        asked = {"augment.symmetry": "square", "evaluation.views": 8, "data.size": "32x96"}
        plan = plan_model(Config().updated(asked), fake_data(size=(32, 96)), CPU)
        config = plan.config
        assert (config.augment.symmetry, config.evaluation.views) == ("flips", 4)
        assert config.probe.views == 4
        why = "images of 32 x 96 pixels (height x width) cannot be turned by 90 degrees"
        assert plan.reasons[:2] == (
            f"augment.symmetry = flips: {why}",
            f"evaluation.views = 4: {why}",
        )
        assert plan_model(config, fake_data(size=(32, 96)), CPU).config == config
        unasked = {"probe.enabled": False, "data.size": "32x96"}
        config = plan_model(Config().updated(unasked), fake_data(size=(32, 96)), CPU).config
        assert (config.augment.symmetry, config.evaluation.views) == ("flips", 4)

    @pytest.mark.parametrize(
        ("experts", "taus"), [("auto", (1.0, 2.0)), (3, (1.0, 1.5, 2.0)), (1, 1.5)]
    )
    def test_experts_part_by_tau_and_two_stages(self, experts: object, taus: object) -> None:
        config = Config().updated({"data.size": 64, "model.num_experts": experts})
        plan = plan_model(config, fake_data(), CPU)
        assert plan.config.objective.tau == taus
        assert plan.config.model.shared_stages == 7 - 2
        told = [reason for reason in plan.reasons if reason.startswith("objective.tau")]
        assert len(told) == 1

    @pytest.mark.parametrize(
        ("budget", "num_train", "side", "cores", "experts"),
        [
            (90, 262, 64, 1, 2),  # few images, seen often
            (90, 1700, 64, 1, 1),
            (90, 1700, 128, 1, 1),
            (600, 1700, 64, 2, 2),
            (300, 1700, 64, 2, 2),
            (300, 1700, 128, 2, 1),  # four times the pixels
            (3600, 20_000, 64, 2, 2),  # images enough in all
            (3600, 20_000, 64, 1, 2),
            (600, 20_000, 64, 2, 1),
            (None, 20_000, 64, 2, 2),
        ],
    )
    def test_a_second_expert_where_there_is_time(
        self, budget: float | None, num_train: int, side: int, cores: int, experts: int
    ) -> None:
        number, why = planner.plan_experts(budget, num_train, pixels=side**2, cores=cores)
        assert number == experts
        assert "second" in why

    def test_the_plan_follows_the_budget(self) -> None:
        data = fake_data()
        plans = [
            plan_model(Config().updated({"run.time_budget_s": budget}), data, CPU)
            for budget in (1.0, 3600.0)
        ]
        assert [plan.config.model.num_experts for plan in plans] == [1, 2]
        assert [plan.config.objective.tau for plan in plans] == [1.5, (1.0, 2.0)]
        assert plan_model(plans[0].config, data, GPU).config.model.num_experts == 1

    @pytest.mark.parametrize("given", [{"finetune.epochs": 3}, {"finetune.scope": "tails"}])
    def test_time_decides_only_where_it_is_short(self, given: dict[str, Any]) -> None:
        config = Config().updated({"run.time_budget_s": 1.0, **given})
        assert plan_model(config, fake_data(), CPU).config.model.num_experts == 2

    @pytest.mark.parametrize("changes", [{"probe.enabled": False}, {"model.pretrained": False}])
    def test_batch_norms_move_where_no_probe_relies_on_them(self, changes: dict[str, Any]) -> None:
        plan = plan_model(Config().updated(changes), fake_data(), CPU)
        assert plan.config.finetune.freeze_batch_norm is False
        assert plan.config.probe.adapt_batch_norm == 0
        assert plan.config.finetune.lr == planner.LR

    @pytest.mark.parametrize(
        ("changes", "share"),
        [
            ({}, planner.ADAPTED_SHARE),
            ({"model.pretrained": False}, 0),
            ({"retrain.enabled": True}, 0),
            ({"probe.adapt_batch_norm": 0.25}, 0.25),
        ],
    )
    def test_batch_norms_learn_the_set_where_heads_alone_do(
        self, changes: dict[str, Any], share: float
    ) -> None:
        config = Config().updated({"finetune.enabled": False, **changes})
        assert plan_model(config, fake_data(), CPU).config.probe.adapt_batch_norm == share

    def test_the_rate_follows_what_is_said_of_the_norms(self) -> None:
        config = Config().updated({"finetune.freeze_batch_norm": False})
        assert plan_model(config, fake_data(), CPU).config.finetune.lr == planner.LR

    def test_one_stage_feeds_the_classifier_where_there_is_one(self) -> None:
        plan = plan_model(Config().updated({"model.stages": 1}), fake_data(), CPU)
        assert plan.config.model.pooled_stages == 1

    def test_a_tau_that_is_given_is_kept(self) -> None:
        plan = plan_model(Config().updated({"objective.tau": 0.5}), fake_data(), CPU)
        assert plan.config.objective.tau == 0.5

    def test_every_step_is_timed_after_the_warm_up(self, ongoing: Callable[..., Any]) -> None:
        run = ongoing(finetune__epochs="auto", run__time_budget_s=30.0)
        from recame.training.phases.finetune import run_finetune

        measured: list[StepCost] = []
        original = planner.plan_epochs

        def spy(config: Config, cost: StepCost, **kwargs: Any) -> Any:
            measured.append(cost)
            assert 0 < kwargs["left_s"] < 30
            return replace(original(config, cost, **kwargs), most_steps=3)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("recame.training.phases.finetune_length.plan_epochs", spy)
            run, _ = run_finetune(run, run.new_model())
        assert 0 < measured[0].step_s < 5
        assert 0 < measured[0].val_s < 5
        assert run.config.finetune.steps == 3
        assert run.folder.load_config() == run.config


@pytest.mark.parametrize(
    ("num_train", "often"),
    [(100_000, "less than once"), (15_000, "about once"), (1000, "about 16 times")],
)
def test_how_often_images_are_seen_is_said_in_words(num_train: int, often: str) -> None:
    pixels = round(TRAINED_SHARE * 1000.0 * TRAINED_PIXELS_PER_S / 16_000)
    _, why = plan_experts(1000.0, num_train, pixels=pixels, cores=1)
    assert f"two would see each of {num_train:,} images {often}," in why
