"""Batch norms of two processes on a CPU, against those of one with all images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from recame.training.loop.batch_norms import shared_batch_norms

CPU = torch.device("cpu")
IMAGES = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 50
SHARES = (slice(0, 4), slice(4, 7))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        BatchNormAct2d(4, act_layer=nn.SiLU),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4, affine=False, momentum=None),
        nn.Linear(4, 2),
    ).double()


def step(model: nn.Module, images: Tensor, weight: float = 1.0) -> None:
    """Two forwards, so that running statistics run, and the gradients of a loss."""
    model(images.double())
    (weight * model(images.double()).square().sum(1).mean()).backward()


def values(model: nn.Module) -> dict[str, Any]:
    found = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: v.tolist() for n, v in (found | model.state_dict()).items()}


def share_of(rank: int) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    model = network()
    kinds = [type(module) for module in model]
    with shared_batch_norms(model, CPU, 2):
        assert type(copy.deepcopy(model)[1]).__name__ == "SharedBatchNorm2d"
        images = IMAGES[SHARES[rank]]
        step(model, images, weight=len(images) * 2 / len(IMAGES))
        for parameter in model.parameters():
            assert parameter.grad is not None
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= 2  # as several processes average them
    assert [type(module) for module in model] == kinds
    return values(model)


def test_two_processes_are_as_one(
    in_two_processes: Callable[[Callable[[int], Any]], list[Any]],
) -> None:
    whole = network()
    step(whole, IMAGES)
    expected = values(whole)
    for found in in_two_processes(share_of):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(value), msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_alone_nothing_changes(training: bool) -> None:
    model = network().train(training)
    before = copy.deepcopy(model)
    with shared_batch_norms(model, CPU, 1):
        assert [type(module) for module in model] == [type(module) for module in before]
        torch.testing.assert_close(model(IMAGES.double()), before(IMAGES.double()))
