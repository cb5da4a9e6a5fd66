from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recame.contracts import PreprocessSpec, ensemble_logits
from recame.errors import CheckpointError, ConfigError
from recame.models import Architecture, MultiExpertClassifier

SPEC = PreprocessSpec(32, 32, 3, 8, 255.0, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))


def build(num_classes: int = 5, **changes: Any) -> MultiExpertClassifier:
    torch.manual_seed(0)
    plan = Architecture("resnet10t", **{"shared_stages": 3, **changes})
    return MultiExpertClassifier(plan, num_classes, SPEC)


def images(num: int = 2) -> Tensor:
    return torch.rand(num, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shared", [0, 2, 3, 4])
def test_every_expert_gets_gradients(shared: int) -> None:
    model = build(shared_stages=shared, pooled_stages=2, num_experts=3).train()
    output = model(images(4))
    assert output.logits.shape == (4, 3, 5)
    assert output.features.shape == (4, 3, 768)
    output.logits.square().sum().backward()
    groups = model.parameter_groups()
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert bool(groups["trunk"]) == (shared > 0)
    assert bool(groups["tails"]) == (shared < 4)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_sharing_costs_fewer_parameters() -> None:
    sizes = [sum(p.numel() for p in build(shared_stages=s).parameters()) for s in (0, 2, 3, 4)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize(("hidden", "expert"), [(0, -1), (6, 1)])
def test_joined_experts_answer_as_they_did_alone(shared: int, hidden: int, expert: int) -> None:
    first = build(shared_stages=shared, pooled_stages=2, hidden=hidden).eval()
    torch.manual_seed(5)
    plan = Architecture("resnet10t", 3, shared_stages=1, pooled_stages=2, hidden=hidden)
    second = MultiExpertClassifier(plan, 5, SPEC).eval()
    for model in (first, second):
        model.head.set_standardisation(torch.full((768,), 0.2), torch.full((768,), 3.0))
    joined = first.joined(second, expert)
    assert joined.architecture == replace(plan, num_experts=2, shared_stages=0)
    x = images(3)
    with torch.no_grad():
        alone = torch.stack([first(x).logits[:, 0], second(x).logits[:, expert]], 1)
        torch.testing.assert_close(joined(x).logits, alone)


def test_joined_experts_share_the_stages_that_are_equal() -> None:
    first = build(shared_stages=2)
    first.tails[1].load_state_dict(first.tails[0].state_dict())
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.tails[-1][1].parameters():
            parameter.add_(1)
    joined = first.joined(second)
    assert joined.architecture.shared_stages == 3  # the two shared ones, and a tail's first
    same = first.joined(first)
    assert same.architecture.shared_stages == same.num_stages == 4


def test_divided_gates_start_as_a_network_without_and_stay_divided_when_joined() -> None:
    plain, gated = build(attention="none").eval(), build(gate_start=0.5).eval()
    names = plain.state_dict().keys()
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert names <= gated.state_dict().keys()
    with torch.no_grad():
        expected = plain(images()).logits
        torch.testing.assert_close(gated(images()).logits, expected, rtol=1e-4, atol=1e-4)
        for name, parameter in gated.named_parameters():
            if ".fc2." in name:
                parameter.normal_()
        joined = gated.joined(gated, 1)
        assert joined.architecture.gate_start == 0.5
        torch.testing.assert_close(joined(images()).logits, gated(images()).logits)


@pytest.mark.parametrize("shared", [0, 3, 4])
def test_forward_composes(shared: int) -> None:
    model = build(shared_stages=shared, pooled_stages=2).eval()
    x = images()
    with torch.no_grad():
        output = model(x)
        maps, parts = model.trunk_features(x)
        torch.testing.assert_close(model.from_trunk(maps, parts).logits, output.logits)
        pooled = model.pooled(x)
        torch.testing.assert_close(model.head(pooled).logits, output.logits)
        single = torch.stack([model.pooled_single(x, e) for e in range(2)], 1)
        torch.testing.assert_close(single, pooled)
        by_hand = (x - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
        expected = []
        for stage in [*model.trunk, *model.tails[1]]:
            by_hand = stage(by_hand)
            expected.append(by_hand.mean((2, 3)))
    assert parts.shape == (2, {0: 0, 3: 256, 4: 768}[shared])
    torch.testing.assert_close(pooled[:, 1], torch.cat(expected[-2:], 1), rtol=1e-4, atol=1e-5)


def test_shared_stages_run_once() -> None:
    model = build(shared_stages=4, num_experts=3).eval()
    calls = []
    model.trunk[-1].register_forward_hook(lambda *_: calls.append(1))
    model(images())
    assert len(calls) == 1


def test_tails_are_copies_only_with_pretrained_weights() -> None:
    assert not build().tails_identical()
    assert build(shared_stages=4).tails_identical()
    plan = Architecture("tf_efficientnet_lite0", shared_stages=6)
    model = MultiExpertClassifier(plan, 3, SPEC, pretrained="package")
    assert model.tails_identical()
    with torch.no_grad():
        pooled = model.eval().pooled(images())
        torch.testing.assert_close(pooled[:, 0], pooled[:, 1])
        logits = model(images()).logits
        assert not torch.allclose(logits[:, 0], logits[:, 1])
        next(model.tails[1].parameters()).add_(1.0)
    assert not model.tails_identical()


def test_frozen_batch_norms() -> None:
    model = build().train()
    norm = model.trunk[0][1]
    assert isinstance(norm, nn.BatchNorm2d)
    before = norm.running_mean.clone()
    model.set_batch_norm_frozen(True)
    model.train()(images())
    torch.testing.assert_close(norm.running_mean, before)
    assert model.head.training
    model.set_batch_norm_frozen(False)
    model(images())
    assert not torch.equal(norm.running_mean, before)
    model.eval().set_batch_norm_frozen(False)
    assert not norm.training


@pytest.mark.parametrize("shared", [0, 3])
def test_frozen_stages_learn_nothing_until_they_are_freed(shared: int) -> None:
    model = build(num_experts=2, shared_stages=shared)
    model.set_frozen_stages(2)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(images(4)).logits.sum().backward()
    first = {id(p) for e in range(2) for s in model.stages(e)[:2] for p in s.parameters()}
    learning = {id(p) for p in model.parameters() if p.grad is not None}
    assert learning == {id(p) for p in model.parameters()} - first
    moved = {
        name for name, value in model.state_dict().items() if not torch.equal(before[name], value)
    }
    after = {name for name in moved if name.startswith(("trunk.", "tails."))}
    statistics = [
        name
        for name, _ in model.named_buffers()
        if name.startswith(("trunk.", "tails.")) and "running" in name
    ]
    assert after
    assert not [n for n in after if _stage(n, shared) < 2]
    assert {n for n in statistics if _stage(n, shared) >= 2} <= after
    model.set_frozen_stages(0)
    assert all(p.requires_grad for p in model.parameters())
    assert all(part.training for part in model.modules())


def test_freeing_stages_frees_only_what_was_stopped() -> None:
    model = build(tuning="bias")
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    model.set_frozen_stages(2)
    assert [name for name, p in model.named_parameters() if p.requires_grad] != learning
    model.set_frozen_stages(0)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == learning


def _stage(name: str, shared: int) -> int:
    """Number of the stage that holds a parameter or buffer: trunk.N..., tails.EXPERT.N..."""
    part, first, second = name.split(".")[:3]
    return int(first) if part == "trunk" else shared + int(second)


def test_channels_last_autocast_and_compile() -> None:
    model = build().eval()
    x = images()
    with torch.no_grad():
        expected = model(x).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x).logits, expected, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).logits.float(), expected, rtol=0.1, atol=0.3)
        model.to(memory_format=torch.channels_last)
        found = model(x.to(memory_format=torch.channels_last)).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Ensemble(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return ensemble_logits(self.model(x).logits)


@pytest.mark.slow
def test_exports_to_onnx(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = Ensemble(build(hidden=8)).eval()
    torch.onnx.export(
        model,
        (images(),),
        tmp_path / "m.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    session = ort.InferenceSession(tmp_path / "m.onnx")
    x = images(3)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shared_stages": 5}, r"shared_stages=5, but resnet10t has 4 stages"),
        ({"shared_stages": -1}, r"shared_stages=-1"),
        ({"pooled_stages": 5}, r"pooled_stages=5, but resnet10t has 4 stages"),
        ({"pooled_stages": 0}, r"pooled_stages=0"),
        ({"num_experts": 0}, r"num_experts=0"),
    ],
)
def test_impossible_plans(changes: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build(**changes)


def test_architecture_travels_as_json() -> None:
    plan = Architecture("resnet18", regions=(3, 2), hidden=7)
    assert Architecture.from_dict(plan.to_dict()) == plan
    assert plan.to_dict()["regions"] == [3, 2]
    for broken in ({}, {**plan.to_dict(), "regions": 3}, {**plan.to_dict(), "more": 1}):
        with pytest.raises(CheckpointError, match="architecture cannot be read"):
            Architecture.from_dict(broken)
