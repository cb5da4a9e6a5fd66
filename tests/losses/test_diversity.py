from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from recame.contracts import ExpertOutput
from recame.losses import Objective, expert_divergence


def random_logits(num_experts: int) -> torch.Tensor:
    return torch.randn(6, num_experts, 5, generator=torch.Generator().manual_seed(0))


def test_is_the_divergence_of_plain_loops() -> None:
    logits = random_logits(3)
    for image, found in zip(logits, expert_divergence(logits), strict=True):
        ensemble = image.mean(0).softmax(0)
        expected = sum(
            functional.kl_div(expert.log_softmax(0), ensemble, reduction="sum") for expert in image
        )
        torch.testing.assert_close(found, expected)


def test_equal_experts_and_one_expert_have_none() -> None:
    equal = random_logits(1).expand(-1, 3, -1)
    torch.testing.assert_close(expert_divergence(equal), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        expert_divergence(random_logits(1)), torch.zeros(6), atol=1e-6, rtol=0
    )


def test_the_objective_rewards_it() -> None:
    output = ExpertOutput(random_logits(2), torch.zeros(6, 2, 4))
    off = dict.fromkeys(("hard_weight", "distillation_weight", "hard_distillation_weight"), 0.0)
    off |= {"contrastive_weight": 0.0, "intra_weight": 0.0}
    target = torch.arange(6) % 5
    plain, diverse = (
        Objective([5, 4, 3, 2, 1], num_experts=2, diversity_weight=weight, **off)(output, target)
        for weight in (0.0, 0.3)
    )
    assert "diversity" not in plain.parts
    gain = 0.3 * expert_divergence(output.logits).mean()
    torch.testing.assert_close(diverse.parts["diversity"], -gain)
    assert diverse.total.item() == pytest.approx((plain.total - gain).item())


def test_a_step_along_its_gradient_drives_experts_apart() -> None:
    logits = random_logits(2).requires_grad_()
    before = expert_divergence(logits)
    (gradient,) = torch.autograd.grad(before.sum(), logits)
    after = expert_divergence((logits + 0.1 * gradient).detach())
    assert (after > before.detach()).all()
