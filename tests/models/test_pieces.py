"""A classifier of images that are seen in pieces."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from recame.contracts import PreprocessSpec
from recame.inference.graph import OneView
from recame.models import Architecture, ExpertHead, MultiExpertClassifier
from recame.models.recorded_graph import record

PLAN = Architecture("test_resnet", shared_stages=2, pooled_stages=2)
WHOLE = PreprocessSpec(32, 32, 1, 8, 255.0, (0.5,), (0.5,))
PIECES = replace(WHOLE, height=96, tiles=2)


def network(spec: PreprocessSpec, plan: Architecture = PLAN) -> MultiExpertClassifier:
    torch.manual_seed(0)
    return MultiExpertClassifier(plan, 3, spec).eval()


@pytest.mark.parametrize("shared", [0, 2, 4])
def test_equal_pieces_are_classified_as_one(shared: int) -> None:
    plan = replace(PLAN, shared_stages=shared)
    pieces = network(PIECES, plan)
    torch.nn.init.normal_(pieces.head.attention.weigh.weight)  # type: ignore[union-attr]
    whole = network(WHOLE, plan)
    whole.load_state_dict(pieces.state_dict(), strict=False)
    images = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        once, thrice = whole(images), pieces(images.repeat(1, 1, 3, 1))
    torch.testing.assert_close(thrice.logits, once.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(thrice.features, once.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [0, 2, 4])
def test_cached_features_lead_to_the_same_logits(shared: int) -> None:
    model = network(PIECES, replace(PLAN, shared_stages=shared))
    images = torch.rand(4, 1, 96, 32)
    with torch.no_grad():
        expected = model(images)
        maps, pooled = model.trunk_features(images)
        assert len(maps) == len(pooled) == 4
        torch.testing.assert_close(model.from_trunk(maps, pooled).logits, expected.logits)
        torch.testing.assert_close(model.head(model.pooled(images)).logits, expected.logits)
        alone = model.pooled_single(images)
    assert alone.shape == (4, 3 * model.head.shape[1])
    torch.testing.assert_close(alone, model.pooled(images)[:, 0])


def test_the_order_of_pieces_does_not_count() -> None:
    model = network(PIECES)
    torch.nn.init.normal_(model.head.attention.weigh.weight)  # type: ignore[union-attr]
    images = torch.rand(3, 1, 96, 32)
    swapped = torch.cat([images[:, :, 64:], images[:, :, :64]], 2)
    with torch.no_grad():
        torch.testing.assert_close(model(swapped).logits, model(images).logits)


def bags(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of four pieces of which one, marked, tells the class; the others say anything."""
    torch.manual_seed(seed)
    target = torch.arange(256) % 2
    pooled = torch.randn(256, 4, 8) * 0.1
    pooled[..., 1] = 3.0 * torch.randint(2, (256, 4)).mul(2).sub(1)
    told = torch.randint(4, (256,))
    pooled[torch.arange(256), told, 0] = 3.0
    pooled[torch.arange(256), told, 1] = 3.0 * (2.0 * target - 1)
    return pooled.view(256, 1, -1), target


def test_attention_starts_undecided_and_finds_the_piece_that_decides() -> None:
    torch.manual_seed(0)
    head = ExpertHead(1, 8, 2, classifier="linear", pieces=4)
    assert head.attention is not None
    weights = head.attention.weights(torch.randn(6 * 4, 1, 8), 4)
    torch.testing.assert_close(weights, torch.full((6, 4, 1, 1), 0.25))
    pooled, target = bags(1)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(head(pooled).logits[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    others, target = bags(2)
    with torch.no_grad():
        called = head.eval()(others).logits[:, 0].argmax(1)
        mean = head.mean_piece(others)[:, 0, 1].sign().add(1).div(2)
    assert float((called == target).float().mean()) > 0.95
    assert float((mean == target).float().mean()) < 0.75  # what their mean tells


def test_a_joined_pair_keeps_each_expert_s_attention() -> None:
    first, second = network(PIECES), network(PIECES)
    second = copy.deepcopy(second)
    for model in (first, second):
        torch.nn.init.normal_(model.head.attention.weigh.weight)  # type: ignore[union-attr]
    images = torch.rand(2, 1, 96, 32)
    with torch.no_grad():
        pair = first.joined(second)(images).logits
        torch.testing.assert_close(pair[:, 0], first(images).logits[:, 0])
        torch.testing.assert_close(pair[:, 1], second(images).logits[:, -1])


def test_the_graph_takes_pieces_apart() -> None:
    model = network(PIECES)
    torch.nn.init.normal_(model.head.attention.weigh.weight)  # type: ignore[union-attr]
    stored = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 96, 32, 1), np.uint8))
    graph = OneView(model).eval()
    with torch.no_grad():
        logits, features = graph(stored)
        expected = model(stored.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features, expected.features, atol=1e-5, rtol=1e-5)
    assert record(graph, stored).outputs[0].shape[1:] == (2, 3)
