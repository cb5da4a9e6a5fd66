"""Experts weighed by stability: what it finds, its limits, and where it is used and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

import recame
from recame.config import Config
from recame.contracts import ExpertOutput, PreprocessSpec, ensemble_logits
from recame.data.transforms import dihedral_view
from recame.errors import ConfigError
from recame.export.export import export
from recame.inference.predict import predict_split
from recame.inference.torch_session import TorchSession
from recame.inference.weighting import prediction_stability, stability_weights, weighted_logits
from recame.reports.evaluate import evaluate
from recame.training.student.distill import distill

IMAGES, EXPERTS, CLASSES = 200, 3, 5


def two_views(stable: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of two views: one expert says the same twice, the others anything."""
    generator = torch.Generator().manual_seed(seed)
    first, second = 3 * torch.randn(2, IMAGES, EXPERTS, CLASSES, generator=generator)
    second[:, stable] = first[:, stable]
    return first, second


@pytest.mark.parametrize("stable", range(EXPERTS))
def test_a_stable_expert_among_noise_gets_the_weight(stable: int) -> None:
    first, second = two_views(stable)
    weights = stability_weights(first, second)
    assert int(weights.argmax()) == stable
    assert weights[stable] > 0.6
    assert float(weights.sum()) == pytest.approx(1)
    assert bool((weights > 0).all())
    equal = torch.full((EXPERTS,), 1 / EXPERTS)
    before = prediction_stability(first, second, equal).mean()
    assert prediction_stability(first, second, weights).mean() > before + 0.1


def test_learning_stops_before_one_expert_is_left() -> None:
    first, second = two_views(0)
    for steps in (500, 1000):
        weights = stability_weights(first, second, steps=steps)
        assert 0.02 < float(weights.min()) < 0.05
    few = stability_weights(first, second, steps=3)
    assert 1 / EXPERTS < float(few.max()) < float(weights.max())


def test_equal_experts_predict_the_same_under_any_weights() -> None:
    logits = torch.randn(9, 1, CLASSES, generator=torch.Generator().manual_seed(1))
    same = logits.expand(-1, EXPERTS, -1)
    for weights in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.2, 0.3, 0.5])):
        torch.testing.assert_close(weighted_logits(same, weights), logits[:, 0])
    torch.testing.assert_close(
        stability_weights(same, same.flip(-1)), torch.full((EXPERTS,), 1 / 3)
    )


def test_equal_weights_are_the_ensemble_rule() -> None:
    logits = two_views(0)[0]
    equal = torch.full((EXPERTS,), 1 / EXPERTS)
    torch.testing.assert_close(weighted_logits(logits, equal), ensemble_logits(logits))


def test_neither_order_nor_direction_matters() -> None:
    first, second = two_views(1)
    weights = stability_weights(first, second)
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(stability_weights(first[order], second[order]), weights)
    torch.testing.assert_close(stability_weights(second, first), weights)
    experts = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        stability_weights(first[:, experts], second[:, experts]), weights[experts]
    )


def test_chunks_give_the_gradient_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_views(2)
    weights = stability_weights(first, second, steps=20)
    monkeypatch.setattr("recame.inference.weighting._CHUNK", 64)
    torch.testing.assert_close(stability_weights(first, second, steps=20), weights)


def test_a_caller_in_inference_mode() -> None:
    first, second = two_views(0)
    with torch.inference_mode():
        inside = stability_weights(first * 1.0, second * 1.0, steps=5)
    torch.testing.assert_close(inside, stability_weights(first, second, steps=5))


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 1, 4)])
def test_nothing_to_learn(shape: tuple[int, int, int]) -> None:
    weights = stability_weights(torch.zeros(shape), torch.zeros(shape))
    torch.testing.assert_close(weights, torch.full((shape[1],), 1 / shape[1]))


class MirroredExperts(nn.Module):
    """The first expert sees the rows' means, which a mirror keeps; the others each pixel."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(
            0.4 * torch.randn(EXPERTS, CLASSES, 3, 8, 8, generator=generator)
        )

    def forward(self, images: Tensor) -> ExpertOutput:
        centred = 2 * images - 1
        rows = centred.mean(-1, keepdim=True).expand_as(centred) * 3
        seen = torch.stack([rows, centred, centred], 1)
        logits = torch.einsum("beijk,ecijk->bec", seen, self.weight)
        return ExpertOutput(logits, logits)


@pytest.mark.parametrize("num_views", [1, 4])
def test_a_split_is_predicted_with_its_own_weights(num_views: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    rows = np.arange(29, 4, -1)
    view = SimpleNamespace(indices=np.arange(25), targets=np.zeros(25), rows=rows)
    data: Any = SimpleNamespace(
        table=pd.DataFrame({"image": map(str, range(25))}),
        spec=PreprocessSpec(8, 8, 3, 8, 255.0, (0.5,) * 3, (0.5,) * 3),
        cache=SimpleNamespace(images=stored),
        view={"test": view}.__getitem__,
    )
    model, words = MirroredExperts(), {"num_views": num_views, "batch_size": 4, "device": "cpu"}
    done: list[tuple[int, int]] = []
    found = predict_split(
        model,
        data,
        "test",
        weighting="stability",
        on_progress=lambda _, n, __: done.append(n),
        **words,
    )
    plain = predict_split(model, data, "test", **words)
    unit = torch.from_numpy(stored[rows]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        views = [model(dihedral_view(unit, number)).logits for number in range(4)]
    weights = stability_weights(views[0], views[1])
    assert weights[0] > 0.5
    assert found.expert_weights is not None
    np.testing.assert_allclose(found.expert_weights, weights.numpy(), atol=1e-3)
    expected = torch.stack([weighted_logits(v, weights).softmax(-1) for v in views[:num_views]])
    np.testing.assert_allclose(found.probabilities, expected.mean(0).numpy(), atol=2e-3)
    np.testing.assert_allclose(found.expert_probabilities, plain.expert_probabilities, atol=1e-5)
    assert done[-1] == 25
    assert plain.expert_weights is None
    assert np.abs(found.probabilities - plain.probabilities).max() > 0.1


@pytest.fixture(scope="module")
def three(
    defects: Path, tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of three experts of different priors that are weighed by stability."""
    config = tiny_config(
        model__num_experts=3,
        objective__tau=(0, 1, 2),
        evaluation__weighting="stability",
        finetune__epochs=1,
        probe__enabled=False,
    )
    return recame.train(defects, config, out=tmp_path_factory.mktemp("weighted") / "run").path


def test_the_weights_are_recorded(three: Path) -> None:
    judged = evaluate(three, report=False)
    metrics = json.loads((three / "metrics.json").read_text())
    weights = metrics["test"]["expert_weights"]
    assert len(weights) == 3
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    assert judged.evaluation.expert_weights == tuple(weights)
    assert len(metrics["val"]["expert_weights"]) == 3


def test_what_judges_images_one_by_one_refuses(three: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weighting=stability.*single images"):
        TorchSession(three, device="cpu", threads=None)
    with pytest.raises(ConfigError, match=r"weighting=stability.*single images"):
        export(three, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(ConfigError, match="a teacher answers batch by batch"):
        distill(three, out=tmp_path / "student")
    mean = Path(shutil.copytree(three, tmp_path / "mean"))
    settings = yaml.safe_load((mean / "config.yaml").read_text())
    settings["evaluation"]["weighting"] = "mean"
    (mean / "config.yaml").write_text(yaml.safe_dump(settings))
    assert TorchSession(mean, device="cpu", threads=None).num_views == 1
    evaluate(mean, report=False)
    assert "expert_weights" not in json.loads((mean / "metrics.json").read_text())["test"]
