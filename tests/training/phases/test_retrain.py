from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recame.config import Config
from recame.contracts import ensemble_logits
from recame.errors import ConfigError
from recame.losses import Objective, TrainingLoss
from recame.models import load_checkpoint
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.retrain import run_retrain
from recame.training.train import train

Tiny = Callable[..., Config]


def test_heads_are_new_and_the_network_stays(ongoing: Callable[..., OngoingRun]) -> None:
    run = ongoing(retrain__enabled=True, retrain__steps=60, retrain__lr=0.01)
    model = run.new_model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    retrained = run_retrain(run, model)
    for name, value in retrained.state_dict().items():
        if name.startswith("head.classifier"):
            assert not torch.equal(value, before[name]), name
        elif not name.startswith("head."):
            assert torch.equal(value, before[name]), name
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    view = run.data.view("train")
    images = run.data.images(view.rows)
    target = torch.from_numpy(view.targets)
    with torch.no_grad():
        hits = ensemble_logits(retrained(images).logits).argmax(1) == target
    recalls = [hits[target == label].float().mean().item() for label in range(4)]
    assert sum(recalls) / 4 > 0.5  # chance is 0.25, and the trunk is random


def test_it_is_the_last_phase_of_a_run(defects: Path, tiny_config: Tiny, tmp_path: Path) -> None:
    config = tiny_config(
        probe__enabled=False, retrain__enabled=True, retrain__steps=20, run__keep="last"
    )
    run = train(defects, config, out=tmp_path / "run")
    phases = json.loads((run.path / "phases.json").read_text())
    assert list(phases["val_balanced_accuracy"]) == ["finetune", "retrained"]
    assert phases["kept"] == "retrained"


def test_the_join_can_be_kept_whatever_val_says(
    defects: Path, tiny_config: Tiny, tmp_path: Path
) -> None:
    run = train(defects, tiny_config(run__keep="joined"), out=tmp_path / "run")
    assert json.loads((run.path / "phases.json").read_text())["kept"] == "joined"
    assert load_checkpoint(run.path).model.num_experts == 2


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, "joined"), ({"retrain__enabled": True, "retrain__steps": 20}, "retrained")],
)
def test_without_val_the_last_word_is_kept(
    changes: dict[str, object], kept: str, tiny_config: Tiny, defects: Path, tmp_path: Path
) -> None:
    run = train(defects, tiny_config(data__val_fraction=0, **changes), out=tmp_path / "run")
    assert json.loads((run.path / "phases.json").read_text()) == {"kept": kept}


def test_a_join_needs_both_phases(tiny_config: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"run\.keep=joined makes an ensemble"):
        tiny_config(run__keep="joined", probe__enabled=False)


def test_shared_stages_count_from_the_end(ongoing: Callable[..., OngoingRun]) -> None:
    run = ongoing(model__shared_stages=-2)
    model = run.new_model()
    assert model.architecture.shared_stages == model.num_stages - 2
    with pytest.raises(ConfigError, match="shared_stages=-9"):
        ongoing(model__shared_stages=-9).new_model()


@pytest.mark.slow
def test_a_loss_of_ones_own_trains_the_run(
    defects: Path, tiny_config: Tiny, tmp_path: Path
) -> None:
    seen = []

    def make_loss(counts: tuple[int, ...], num_experts: int, prior: torch.Tensor) -> TrainingLoss:
        seen.append((tuple(counts), num_experts, prior.shape))
        return Objective(
            counts,
            num_experts=num_experts,
            base="cross_entropy",
            hard_weight=0,
            distillation_weight=0,
            hard_distillation_weight=0,
            contrastive_weight=0,
            intra_weight=0,
        )

    own = train(defects, tiny_config(), out=tmp_path / "own", make_loss=make_loss)
    assert seen[0][0] == load_checkpoint(own.path).label_space.counts
    assert seen[0][1:] == (2, (4,))
    plain = tiny_config(
        objective__base="cross_entropy",
        objective__hard_weight=0,
        objective__distillation_weight=0,
        objective__hard_distillation_weight=0,
    )
    same = train(defects, plain, out=tmp_path / "same")
    assert own.weights_sha256() == same.weights_sha256()
