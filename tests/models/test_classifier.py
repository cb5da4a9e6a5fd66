from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recame.errors import ConfigError
from recame.models import CosineClassifier, ExpertHead, LinearClassifier, cosine_logits

GOLDEN = Path(__file__).parents[1] / "golden" / "recame_reference.npz"


def test_cosine_golden() -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        x, weight, bias, logits = (
            torch.from_numpy(file[f"cosine_{k}"]) for k in ("x", "weight", "bias", "logits")
        )
    found = cosine_logits(x[:, None], weight[None], bias[None], 16.0)
    torch.testing.assert_close(found[:, 0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_experts_equal_a_loop_over_them(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8)
    classifier = CosineClassifier(3, 8, 4) if kind == "cosine" else LinearClassifier(3, 8, 4)
    torch.nn.init.normal_(classifier.bias)
    logits = classifier(x)
    assert logits.shape == (5, 3, 4)
    for e in range(3):
        weight, bias = classifier.weight[e], classifier.bias[e]
        if kind == "cosine":
            cosine = torch.cosine_similarity(x[:, e, None], weight[None], dim=-1)
            expected = 16 * cosine + bias
        else:
            expected = torch.nn.functional.linear(x[:, e], weight, bias)
        torch.testing.assert_close(logits[:, e], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_vectors_have_cosine_zero(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 1, 8, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(1, 3, 8, dtype=dtype), torch.ones(1, 3, dtype=dtype)
    logits = cosine_logits(x, weight, bias, 16.0)
    logits.sum().backward()
    torch.testing.assert_close(logits, torch.ones(2, 1, 3))
    assert x.grad is not None
    assert x.grad.abs().max() == 0


def test_half_precision_tells_confident_classes_apart() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(6, 1, 32), torch.randn(1, 5, 32), torch.zeros(1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = cosine_logits(x, weight, bias, 16.0)
    torch.testing.assert_close(logits, cosine_logits(x, weight, bias, 16.0))


def test_head_standardises_and_shows_what_the_classifier_saw() -> None:
    torch.manual_seed(0)
    head = ExpertHead(2, 6, 3, classifier="linear", dropout=0.5).eval()
    pooled = torch.randn(40, 2, 6) * 5 + 3
    flat = pooled.flatten(0, 1)
    head.set_standardisation(flat.mean(0), flat.std(0, correction=0))
    output = head(pooled)
    assert output.logits.shape == (40, 2, 3)
    torch.testing.assert_close(output.features.mean((0, 1)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.features.pow(2).mean((0, 1)), torch.ones(6))
    torch.testing.assert_close(output.logits, head.classifier(output.features))


def test_standardisation_follows_each_experts_features_in_training() -> None:
    head = ExpertHead(2, 6, 3).train()
    pooled = torch.randn(64, 2, 6) * 5 + torch.tensor([3.0, -40.0])[:, None]
    features = head(pooled).features
    torch.testing.assert_close(features.mean(0), torch.zeros(2, 6), atol=1e-5, rtol=0)
    for _ in range(80):
        head(pooled)
    torch.testing.assert_close(head.mean, pooled.mean(0), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(head.std, pooled.std(0), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(head.eval()(pooled).features, features, rtol=0.02, atol=0.02)


def test_published_head_sees_the_features_as_they_are() -> None:
    head = ExpertHead(2, 6, 3, standardise=False).train()
    head.set_standardisation(torch.full((6,), 9.0), torch.full((6,), 9.0))
    pooled = torch.randn(4, 2, 6) + 3
    assert torch.equal(head(pooled).features, pooled)
    assert torch.equal(head.mean, torch.zeros(2, 6))
    assert torch.equal(head.std, torch.ones(2, 6))


def test_taken_experts_answer_as_before() -> None:
    heads = []
    for seed in range(2):
        torch.manual_seed(seed)
        heads.append(ExpertHead(3, 6, 4, hidden=5).eval())
        heads[-1].set_standardisation(torch.rand(6), torch.rand(6) + 1)
    head = ExpertHead(2, 6, 4, hidden=5).eval()
    head.take_experts([(heads[0], 0), (heads[1], 2)])
    pooled = torch.randn(7, 3, 6)
    alone = torch.stack([heads[0](pooled).logits[:, 0], heads[1](pooled).logits[:, 2]], 1)
    torch.testing.assert_close(head(pooled[:, [0, 2]]).logits, alone)


def test_constant_features_are_not_divided_by_zero() -> None:
    head = ExpertHead(1, 3, 2)
    head.set_standardisation(torch.zeros(3), torch.tensor([0.0, float("nan"), 2.0]))
    torch.testing.assert_close(head.std, torch.tensor([[1.0, 1.0, 2.0]]))


def test_hidden_layer_and_own_starts() -> None:
    torch.manual_seed(0)
    head = ExpertHead(3, 6, 4, hidden=10)
    output = head(torch.randn(5, 1, 6).expand(-1, 3, -1))
    assert output.features.shape == (5, 3, 10)
    assert not torch.equal(output.logits[:, 0], output.logits[:, 1])
    output.logits.sum().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert (parameter.grad.flatten(1).abs().sum(1) > 0).all()


def test_dropout_acts_in_training_only() -> None:
    head = ExpertHead(1, 100, 2, dropout=0.5, standardise=False)
    pooled = torch.ones(4, 1, 100)
    assert 0.3 < (head.train()(pooled).features == 0).float().mean() < 0.7
    torch.testing.assert_close(head.eval()(pooled).features, pooled)


def test_unknown_classifier() -> None:
    with pytest.raises(ConfigError, match="'euclid'"):
        ExpertHead(1, 4, 2, classifier="euclid")
