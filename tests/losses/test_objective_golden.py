"""The published implementation's values, terms, ablations and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recame.contracts import ExpertOutput
from recame.losses import (
    Objective,
    balanced_softmax,
    batch_mean,
    contrastive,
    hard_categories,
    intra_class,
    keep_hard,
    log_class_counts,
    masked_cross_entropy,
    mutual_distillation,
    pairwise_distances,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "recame_reference.npz"
FAMILIES = ("k2", "k3", "onlyone")
ABLATIONS: dict[str, dict[str, Any]] = {
    "loss_woARB_total": {"base": "cross_entropy"},
    "loss_woHCM_total": {"hard_weight": 0.0, "hard_distillation_weight": 0.0},
    "loss_woContra_total": {"contrastive_weight": 0.0},
    "loss_woCenter_total": {"intra_weight": 0.0},
    "loss_woKD_total": {"distillation_weight": 0.0, "hard_distillation_weight": 0.0},
}


class Case:
    def __init__(self, family: str) -> None:
        with np.load(GOLDEN, allow_pickle=False) as file:
            prefix = f"loss_{family}_"
            self.values = {
                key.removeprefix(prefix): torch.from_numpy(file[key])
                for key in file.files
                if key.startswith(prefix)
            }
        self.logits = self["logits"].transpose(0, 1).contiguous().requires_grad_()
        self.features = self["features"].transpose(0, 1).contiguous().requires_grad_()
        self.target = self["targets"]
        self.counts = self["class_counts"]
        self.num_hard = int(self["hcm_n"])
        self.num_experts = self.logits.shape[1]

    def __getitem__(self, key: str) -> Tensor:
        return self.values[key]

    def objective(self, **changes: Any) -> Objective:
        return Objective(
            self.counts, num_experts=self.num_experts, num_hard=self.num_hard, **changes
        )

    def output(self) -> ExpertOutput:
        return ExpertOutput(self.logits, self.features)

    def balanced(self) -> Tensor:
        return self.logits + self.counts.float().log()

    def categories(self) -> Tensor:
        chosen = hard_categories(self.logits[:, :1], self.target, self.num_hard)
        return chosen.expand(-1, self.num_experts, -1)


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def assert_close(actual: Tensor, expected: Tensor, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=atol)


def test_balanced_softmax_is_ce(case: Case) -> None:
    tau = torch.ones(case.num_experts)
    losses = balanced_softmax(case.logits, case.target, log_class_counts(case.counts.float()), tau)
    assert_close(batch_mean(losses), case["ce"])


def test_hard_categories_are_hcm_mask(case: Case) -> None:
    kept = torch.zeros(case["hcm_mask"].shape).scatter(1, case.categories()[:, 0], 1.0)
    assert_close(kept, case["hcm_mask"])


def test_masked_cross_entropy_is_hcm_ce(case: Case) -> None:
    losses = masked_cross_entropy(case.balanced(), case.target, case.categories())
    assert_close(batch_mean(losses), case["hcm_ce"])


def test_distillation_is_kd(case: Case) -> None:
    balanced = case.balanced()
    assert_close(0.6 * batch_mean(mutual_distillation(balanced)), case["kd_all"])
    masked = keep_hard(balanced, case.categories())
    assert_close(0.6 * batch_mean(mutual_distillation(masked)), case["kd_hcm"])


def test_metric_terms_per_expert(case: Case) -> None:
    distances = pairwise_distances(case.features)
    pairs = contrastive(distances, case.target, 20.0)
    inner = intra_class(distances, case.target)
    assert_close(pairs, case["contrastive_per_expert"])
    assert_close(inner, case["intra_per_expert"])
    assert_close((0.05 * pairs + 0.05 * 0.0125 * inner).sum(), case["metric"])


def test_total_parts_and_gradients(case: Case) -> None:
    result = case.objective()(case.output(), case.target)
    result.total.backward()
    parts = result.parts
    assert_close(result.total, case["loss_all_total"])
    assert_close(parts["base"], case["ce"])
    assert_close(parts["hard"], case["hcm_ce"])
    assert_close(parts["distillation"], case["kd_all"])
    assert_close(parts["hard_distillation"], case["kd_hcm"])
    assert_close(parts["contrastive"] + parts["intra"], case["metric"])
    assert case.logits.grad is not None
    assert case.features.grad is not None
    # Entries near 0 are judged against the gradient's largest entry.
    for grad, name in ((case.logits.grad, "grad_logits"), (case.features.grad, "grad_features")):
        expected = case[name]
        assert_close(grad.transpose(0, 1), expected, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("key", ABLATIONS)
def test_ablation_totals(case: Case, key: str) -> None:
    result = case.objective(**ABLATIONS[key])(case.output(), case.target)
    assert_close(result.total, case[key])
