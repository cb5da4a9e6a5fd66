"""Each term against plain loops, and properties that hold for any input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recame.losses import (
    active_share,
    batch_mean,
    category_distillation,
    class_balanced_weights,
    contrastive,
    cross_entropy,
    focal,
    gathered_cross_entropy,
    hard_categories,
    intra_class,
    keep_hard,
    ldam,
    ldam_margins,
    log_class_counts,
    mutual_distillation,
    num_hard_categories,
    pairwise_distances,
    relative_margin,
)

seeds = st.integers(0, 10_000)
quick = settings(max_examples=15, deadline=None, derandomize=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(seed: int, images: int = 4, experts: int = 3, classes: int = 6) -> Tensor:
    return 2.0 * torch.randn(images, experts, classes, generator=generator(seed))


def loop_metric(features: Tensor, target: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    size, experts = features.shape[:2]
    pairs, inner = features.new_zeros(experts), features.new_zeros(experts)
    for expert in range(experts):
        for i in range(size):
            for j in range(i + 1, size):
                distance = (features[i, expert] - features[j, expert]).norm()
                if target[i] == target[j]:
                    inner[expert] += distance
                    pairs[expert] += distance
                else:
                    pairs[expert] += (margin - distance).clamp_min(0)
    return pairs / size**2, inner / size**2


@quick
@given(seed=seeds, size=st.integers(1, 7), scale=st.sampled_from([0.01, 1.0, 100.0]))
def test_metric_terms_and_gradients_equal_pair_loops(seed: int, size: int, scale: float) -> None:
    features = (scale * torch.randn(size, 2, 5, generator=generator(seed))).double()
    target = torch.randint(0, 3, (size,), generator=generator(seed))
    fast, slow = features.clone().requires_grad_(), features.clone().requires_grad_()
    distances = pairwise_distances(fast)
    actual = contrastive(distances, target, 2.0), intra_class(distances, target)
    expected = loop_metric(slow, target, 2.0)
    torch.testing.assert_close(actual, expected)
    if size > 1:
        (actual[0] + 2 * actual[1]).sum().backward()
        (expected[0] + 2 * expected[1]).sum().backward()
        torch.testing.assert_close(fast.grad, slow.grad)


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_distances_of_close_pairs_keep_their_digits(offset: float) -> None:
    points = offset + torch.rand(6, 1, 256, generator=generator(0))
    points = torch.cat([points, points + 1e-3 * torch.rand(6, 1, 256, generator=generator(1))])
    points.requires_grad_()
    distances = pairwise_distances(points)
    wide = points.detach().double()[:, 0].requires_grad_()
    expected = (wide[:6] - wide[6:]).norm(dim=1)
    actual = distances[0, :6, 6:].diagonal()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
    grad = torch.autograd.grad(actual.sum(), points)[0][:, 0]
    torch.testing.assert_close(
        grad.double(), torch.autograd.grad(expected.sum(), wide)[0], rtol=1e-5, atol=1e-7
    )


def test_distances_pass_gradcheck() -> None:
    points = torch.randn(5, 2, 3, dtype=torch.float64, generator=generator(0), requires_grad=True)
    assert torch.autograd.gradcheck(pairwise_distances, (points,))
    assert torch.autograd.gradcheck(lambda x: pairwise_distances(x, normalise=True), (points,))


def test_duplicates_are_at_distance_zero_without_gradient() -> None:
    point = torch.randn(1, 1, 64, generator=generator(0))
    points = torch.cat([point, point, point + 1.0]).requires_grad_()
    distances = pairwise_distances(points)
    assert distances[0, 0, 1] == 0.0
    assert distances[0, 0, 2].item() == pytest.approx(8.0)
    assert (torch.autograd.grad(distances[0, 0, 1], points)[0] == 0).all()


def test_normalised_distances_lie_in_0_2_and_ignore_length() -> None:
    points = torch.randn(8, 2, 4, generator=generator(0))
    distances = pairwise_distances(points, normalise=True)
    assert 0.0 <= distances.min() <= distances.max() <= 2.0 + 1e-6
    torch.testing.assert_close(pairwise_distances(7.0 * points, normalise=True), distances)
    opposite = torch.tensor([[[1.0, 0.0]], [[-3.0, 0.0]]])
    assert pairwise_distances(opposite, normalise=True)[0, 0, 1].item() == pytest.approx(2.0)


@quick
@given(seed=seeds, size=st.integers(0, 7), factor=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_relative_margin_and_active_share_equal_pair_loops(
    seed: int, size: int, factor: float
) -> None:
    features = torch.randn(size, 2, 5, generator=generator(seed)).double()
    target = torch.randint(0, 3, (size,), generator=generator(seed))
    distances = pairwise_distances(features.clone().requires_grad_())
    margin = relative_margin(distances, target, factor)
    share = active_share(distances, target, margin)
    assert not margin.requires_grad
    for expert in range(2):
        apart = [
            float((features[i, expert] - features[j, expert]).norm())
            for i in range(size)
            for j in range(i + 1, size)
            if target[i] != target[j]
        ]
        limit = factor * sum(apart) / len(apart) if apart else 0.0
        assert margin[expert].item() == pytest.approx(limit)
        within = [distance < limit for distance in apart]
        assert share[expert].item() == pytest.approx(sum(within) / max(len(within), 1))


def test_a_relative_margin_does_not_see_the_scale() -> None:
    features = torch.randn(40, 1, 32, generator=generator(0))
    target = torch.arange(40) % 4
    shares = []
    for scale in (0.01, 1.0, 100.0):
        distances = pairwise_distances(scale * features)
        margin = relative_margin(distances, target, 1.0)
        shares.append(active_share(distances, target, margin).item())
    assert shares == pytest.approx([shares[0]] * 3)
    assert 0.4 < shares[0] < 0.6
    # The published margin pushes everything or nothing, as the scale has it.
    assert active_share(pairwise_distances(features), target, 20.0).item() == 1.0
    assert active_share(pairwise_distances(100.0 * features), target, 20.0).item() == 0.0


def test_a_relative_margin_rests_where_all_classes_are_equally_far() -> None:
    corners = torch.eye(4)[:, None].repeat(2, 1, 1)
    target = torch.arange(4).repeat(2)
    distances = pairwise_distances(corners)
    margin = relative_margin(distances, target, 0.9)
    assert active_share(distances, target, margin).item() == 0.0
    assert contrastive(distances, target, margin).item() == 0.0  # no class is spread either
    one_class = torch.zeros(8).long()
    assert relative_margin(distances, one_class, 1.0).item() == 0.0
    assert active_share(distances, one_class, 2.0).item() == 0.0


def test_without_the_pull_the_margin_alone_counts() -> None:
    distances = pairwise_distances(torch.randn(7, 2, 5, generator=generator(0)))
    target = torch.tensor([0, 0, 1, 1, 1, 2, 0])
    whole = contrastive(distances, target, 4.0)
    pushed = contrastive(distances, target, 4.0, pull=False)
    torch.testing.assert_close(pushed + intra_class(distances, target), whole)
    torch.testing.assert_close(contrastive(distances, target, torch.full((2,), 4.0)), whole)


@quick
@given(seed=seeds, experts=st.integers(2, 4))
def test_distillation_equals_the_sum_over_ordered_pairs(seed: int, experts: int) -> None:
    logits = random_logits(seed, experts=experts)
    logs = logits.log_softmax(-1)
    expected = torch.zeros(len(logits))
    for i in range(experts):
        for j in range(experts):
            expected += (logs[:, j].exp() * (logs[:, j] - logs[:, i])).sum(-1)
    torch.testing.assert_close(
        mutual_distillation(logits), expected / (experts - 1), rtol=1e-4, atol=1e-6
    )


@quick
@given(seed=seeds)
def test_category_distillation_compares_on_the_targets_categories(seed: int) -> None:
    logits = random_logits(seed)
    target = torch.randint(0, 6, (4,), generator=generator(seed))
    categories = hard_categories(logits, target, 3)
    expected = torch.zeros(4)
    for j in range(3):
        kept = categories[:, j]
        own = logits[:, j].gather(1, kept).log_softmax(-1)
        for i in range(3):
            other = logits[:, i].gather(1, kept).log_softmax(-1)
            expected += (own.exp() * (own - other)).sum(-1) / 2
    actual = category_distillation(logits, categories)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_detached_target_keeps_the_value_and_lets_only_the_learner_move() -> None:
    logits = random_logits(3, experts=2).requires_grad_()
    free, fixed = mutual_distillation(logits), mutual_distillation(logits, detach_target=True)
    torch.testing.assert_close(free, fixed)
    # Cross-entropy against a constant target has the gradient p_i - p_j.
    probabilities = logits.detach().softmax(-1)
    grad = torch.autograd.grad(fixed.sum(), logits)[0]
    torch.testing.assert_close(grad, probabilities - probabilities.flip(1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(torch.autograd.grad(free.sum(), logits)[0], grad)


@quick
@given(seed=seeds, num_hard=st.integers(1, 6))
def test_hard_categories_are_the_target_and_the_highest_others(seed: int, num_hard: int) -> None:
    logits = random_logits(seed)
    target = torch.randint(0, 6, (4,), generator=generator(seed))
    categories = hard_categories(logits, target, num_hard)
    assert categories.shape == (4, 3, num_hard)
    for image in range(4):
        for expert in range(3):
            scores, own = logits[image, expert].tolist(), int(target[image])
            others = sorted((c for c in range(6) if c != own), key=lambda c: -scores[c])
            assert categories[image, expert].tolist() == [own, *others[: num_hard - 1]]


def test_kept_logits_and_gathered_logits() -> None:
    logits = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    categories = torch.tensor([[[0, 3]]])
    assert keep_hard(logits, categories).tolist() == [[[1.0, 0.0, 0.0, 4.0]]]
    kept = cross_entropy(torch.tensor([[[1.0, 4.0]]]), torch.tensor([0]))
    assert torch.equal(gathered_cross_entropy(logits, categories), kept)


@pytest.mark.parametrize(
    ("num_classes", "fraction", "expected"),
    [(31, 0.3, 9), (14, 0.3, 4), (5, 0.3, 2), (2, 0.3, 2), (10, 0.0, 2), (10, 1.0, 10)],
)
def test_num_hard_categories(num_classes: int, fraction: float, expected: int) -> None:
    assert num_hard_categories(num_classes, fraction) == expected


def test_log_class_counts_keep_their_level_and_stay_finite() -> None:
    counts = torch.tensor([100.0, 10.0, 0.0])
    torch.testing.assert_close(
        log_class_counts(counts), torch.tensor([math.log(100), math.log(10), 0.0])
    )
    level = log_class_counts(counts, torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(level, torch.tensor([math.log(55.5), math.log(55.5), 0.0]))


@quick
@given(counts=st.lists(st.integers(0, 10**6), min_size=2, max_size=8), beta=st.floats(0, 1))
def test_class_balanced_weights_are_finite_and_favour_the_rare(
    counts: list[int], beta: float
) -> None:
    weights = class_balanced_weights(torch.tensor(counts, dtype=torch.float64), beta)
    assert weights.isfinite().all()
    assert weights.sum().item() == pytest.approx(len(counts))
    rarest, commonest = counts.index(min(counts)), counts.index(max(counts))
    assert weights[rarest] >= weights[commonest] * (1 - 1e-12)


def test_focal_follows_its_formula_and_is_smooth_at_certainty() -> None:
    logits, target = random_logits(0), torch.tensor([0, 1, 2, 3])
    p = logits.softmax(-1)[torch.arange(4), :, target]
    torch.testing.assert_close(focal(logits, target, 2.0), -((1 - p) ** 2) * p.log())
    sure = torch.tensor([[[200.0, 0.0]]], requires_grad=True)
    loss = focal(sure, torch.tensor([0]), 0.5)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss.sum(), sure)[0].isfinite().all()


def test_ldam_takes_the_scaled_margin_off_the_target() -> None:
    margins = ldam_margins(torch.tensor([10_000.0, 1.0, 0.0]), 0.5)
    torch.testing.assert_close(margins, torch.tensor([0.05, 0.5, 0.5]))
    cosines, target = torch.tensor([[[0.2, -0.1, 0.4]]]), torch.tensor([1])
    shifted = 16.0 * (cosines[0, 0] - torch.tensor([0.0, 0.5, 0.0]))
    actual = ldam(16.0 * cosines, target, margins, scale=16.0)
    assert actual.item() == pytest.approx(-shifted.log_softmax(-1)[1].item(), rel=1e-5)


def test_batch_mean_sums_experts_and_averages_images() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert batch_mean(losses).item() == 5.0
    assert batch_mean(losses, torch.tensor([3.0, 1.0])).item() == 4.0
    assert batch_mean(losses[:0], torch.ones(0)).item() == 0.0
