from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from recame.contracts import PreprocessSpec
from recame.models import Architecture, MultiExpertClassifier, adapt_batch_norms

SPEC = PreprocessSpec(32, 32, 3, 8, 255.0, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def model() -> MultiExpertClassifier:
    torch.manual_seed(0)
    plan = Architecture(backbone="test_resnet", num_experts=2, shared_stages=2, pooled_stages=2)
    return MultiExpertClassifier(plan, 3, SPEC).eval()


def norms(model: MultiExpertClassifier) -> dict[str, Tensor]:
    """The statistics of the backbone's batch norms."""
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if "running" in name and not name.startswith("head")
    }


def first_inputs(model: MultiExpertClassifier, images: Tensor) -> Tensor:
    """What the first batch norm sees."""
    seen: list[Tensor] = []
    first = next(m for m in model.trunk.modules() if hasattr(m, "running_mean"))
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.pooled(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_statistics_are_a_mixture(model: MultiExpertClassifier, share: float) -> None:
    images = torch.rand(32, 3, 32, 32)
    before, inputs = norms(model), first_inputs(model, images)
    adapt_batch_norms(model, images.split(16), share)
    after = norms(model)
    name = next(name for name in after if name.endswith("running_mean"))
    own = inputs.mean((0, 2, 3))
    torch.testing.assert_close(after[name], share * own + (1 - share) * before[name])
    name = name.replace("mean", "var")
    own = torch.stack([half.var((0, 2, 3)) for half in inputs.split(16)]).mean(0)
    torch.testing.assert_close(after[name], share * own + (1 - share) * before[name])
    assert all(not torch.equal(after[each], before[each]) for each in after)


def test_experts_stay_alike_and_nothing_else_moves(model: MultiExpertClassifier) -> None:
    untouched = copy.deepcopy(model)
    alike = model.tails_identical()
    adapt_batch_norms(model, [torch.rand(16, 3, 32, 32)], 0.5)
    assert model.tails_identical() is alike
    assert not model.training
    momenta = [
        [m.momentum for m in each.modules() if hasattr(m, "running_mean")]
        for each in (model, untouched)
    ]
    assert momenta[0] == momenta[1]
    for (name, now), then in zip(
        model.state_dict().items(), untouched.state_dict().values(), strict=True
    ):
        moved = ("running" in name or "num_batches" in name) and not name.startswith("head")
        assert moved or torch.equal(now, then), name


def test_without_a_share_or_norms_nothing_happens(model: MultiExpertClassifier) -> None:
    before = norms(model)
    adapt_batch_norms(model, iter(()), 0.0)
    assert all(torch.equal(value, before[name]) for name, value in norms(model).items())
