"""Clusters within classes: the online rule against plain loops, and what it comes to."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from recame.losses.prototypes import (
    LEAST_IMAGES,
    PROTOTYPE_MOMENTUM,
    Prototypes,
    nearest_distance,
    num_prototypes,
    own_distances,
    updated_prototypes,
)

COUNTS = torch.tensor([900.0, 9.0, 1.0, 0.0, 4.0])
NUM_EXPERTS, WIDTH, MOST = 2, 4, 3


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()
    return functional.normalize(values, dim=-1)


def made(most: int = MOST) -> Prototypes:
    return Prototypes(COUNTS, NUM_EXPERTS, WIDTH, most).double()


def one_update(
    sums: Tensor, images: Tensor, room: Tensor, features: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The rule of `updated_prototypes`, class by class and image by image."""
    sums, images = sums.clone(), images.clone()
    for label in range(len(images)):
        rows = [row for row in range(len(target)) if target[row] == label]
        for expert in range(images.shape[1]):
            stands = images[label, expert].clone()
            live = [k for k in range(len(stands)) if stands[k] >= LEAST_IMAGES]
            free = [k for k in range(len(stands)) if room[label, k] and k not in live]
            nearest, distance = {}, {}
            for row in rows:
                far = {
                    k: 1 - functional.cosine_similarity(features[row, expert], place, dim=0).item()
                    for k, place in enumerate(sums[label, expert])
                    if k in live
                }
                nearest[row] = min(far, key=lambda k: far[k]) if far else None
                distance[row] = min(far.values()) if far else math.inf
            whole = [row for row in rows if weight[row] >= LEAST_IMAGES and distance[row] > 1e-4]
            opener = max(whole, key=lambda row: (distance[row], -row)) if free and whole else None
            if opener is not None:
                nearest[opener] = free[0]
                sums[label, expert, free[0]] = images[label, expert, free[0]] = 0.0
            faded = PROTOTYPE_MOMENTUM ** float(sum(weight[row] for row in rows))
            sums[label, expert] *= faded
            images[label, expert] *= faded
            for row in rows:
                if nearest[row] is not None:
                    sums[label, expert, nearest[row]] += weight[row] * features[row, expert]
                    images[label, expert, nearest[row]] += weight[row]
    return sums, images


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), size=st.integers(0, 9), mixed=st.booleans())
def test_updates_equal_loops_over_classes_and_images(seed: int, size: int, mixed: bool) -> None:
    memory = made()
    room = memory.room
    generator = torch.Generator().manual_seed(seed)
    sums, images = memory.sums, memory.images
    for step in range(6):
        features = unit(size, NUM_EXPERTS, WIDTH, seed=seed + step)
        target = torch.randint(0, len(COUNTS), (size,), generator=generator)
        weight = torch.ones(size).double()
        if mixed:
            weight = torch.rand(size, generator=generator).double()
        expected = one_update(sums, images, room, features, target, weight)
        sums, images = updated_prototypes(sums, images, room, features, target, weight)
        torch.testing.assert_close((sums, images), expected)


def test_how_many_a_class_has() -> None:
    assert num_prototypes(COUNTS, 3).tolist() == [3, 3, 1, 1, 2]
    assert made().room.sum(1).tolist() == [3, 3, 1, 1, 2]
    # No class has room for more than its images allow, and none is kept for nobody.
    assert Prototypes(torch.tensor([3.0, 5.0]), 1, WIDTH, 8).sums.shape == (2, 1, 2, WIDTH)


def test_distances_are_one_minus_the_cosine_and_infinite_at_free_places() -> None:
    memory, features = made(), unit(3, NUM_EXPERTS, WIDTH)
    target = torch.tensor([0, 2, 0])
    distances = own_distances(features, target, memory.sums, memory.images)
    assert distances.isinf().all()
    assert (nearest_distance(distances) == 0).all()
    memory.sums[0, :, 1] = 7.0 * features[0]
    memory.images[0, :, 1] = 1.0
    distances = own_distances(features, target, memory.sums, memory.images)
    cosine = functional.cosine_similarity(features[2], features[0], dim=-1)
    torch.testing.assert_close(distances[2, :, 1], 1 - cosine)
    torch.testing.assert_close(nearest_distance(distances)[0], torch.zeros(2).double())
    assert distances[:, :, [0, 2]].isinf().all()
    assert distances[1].isinf().all()


def test_the_pull_is_the_gradient_of_the_cosine_and_reaches_no_prototype() -> None:
    memory = made()
    memory.remember(unit(1, NUM_EXPERTS, WIDTH, seed=1), torch.tensor([0]), torch.ones(1))
    features = unit(2, NUM_EXPERTS, WIDTH).requires_grad_()
    memory(features, torch.tensor([0, 1])).sum().backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad[0], -unit(1, NUM_EXPERTS, WIDTH, seed=1)[0])
    assert (features.grad[1] == 0).all()  # a class that has not been seen
    assert not any(buffer.requires_grad for buffer in memory.buffers())


def test_two_clusters_of_a_class_stay_apart() -> None:
    memory = made()
    poles = unit(2, 1, WIDTH, seed=3).expand(-1, NUM_EXPERTS, -1)
    for step in range(40):
        near = poles.repeat(3, 1, 1) + 0.02 * unit(6, NUM_EXPERTS, WIDTH, seed=step)
        memory.remember(functional.normalize(near, dim=-1), torch.zeros(6).long(), torch.ones(6))
    distances = own_distances(poles, torch.zeros(2).long(), memory.sums, memory.images)
    assert (distances.min(2).values < 1e-2).all()
    assert (distances.argmin(2)[0] != distances.argmin(2)[1]).all()


def test_one_prototype_is_the_mean_direction_of_its_class() -> None:
    memory, features = made(most=1), unit(8, NUM_EXPERTS, WIDTH)
    target = torch.zeros(8).long()
    memory.remember(features[:1], target[:1], torch.ones(1))
    for _ in range(2000):
        memory.remember(features, target, torch.ones(8))
    direction = functional.normalize(memory.sums[0, :, 0], dim=-1)
    torch.testing.assert_close(direction, functional.normalize(features.mean(0), dim=-1))


def test_a_place_that_nobody_comes_to_is_given_away() -> None:
    memory = made(most=2)
    usual, odd = unit(2, NUM_EXPERTS, WIDTH, seed=5)[:, None]
    target = torch.tensor([0])
    for image in (usual, odd):
        memory.remember(image, target, torch.ones(1))
    assert memory.num_live() == 2.0
    for _ in range(200):
        memory.remember(usual, target, torch.ones(1))
    assert memory.num_live() == 1.0
    memory.remember(odd, target, torch.ones(1))
    assert memory.num_live() == 2.0
    assert memory(odd, target).max() < 1e-6


def test_a_class_that_does_not_come_keeps_what_it_has() -> None:
    memory = made()
    memory.remember(unit(1, NUM_EXPERTS, WIDTH), torch.tensor([2]), torch.ones(1))
    before = memory.sums[2].clone()
    for step in range(300):
        memory.remember(
            unit(4, NUM_EXPERTS, WIDTH, seed=step), torch.zeros(4).long(), torch.ones(4)
        )
    assert torch.equal(memory.sums[2], before)
    assert torch.equal(memory.images[2].sum(1), torch.ones(NUM_EXPERTS).double())


def test_what_weighs_nothing_or_lies_at_a_prototype_opens_none() -> None:
    memory, image = made(), unit(1, NUM_EXPERTS, WIDTH)
    for weight in (0.0, 0.3):
        memory.remember(image, torch.tensor([0]), torch.tensor([weight]))
    assert memory.num_live() == 0.0
    for _ in range(5):
        memory.remember(image, torch.tensor([0]), torch.ones(1))
    assert memory.num_live() == 1.0
    memory.forget()
    assert memory.num_live() == 0.0
    assert not memory.sums.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_batch_changes_nothing(dtype: torch.dtype) -> None:
    memory = made().to(dtype)
    memory.remember(unit(3, NUM_EXPERTS, WIDTH), torch.tensor([0, 1, 2]), torch.ones(3))
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    assert set(before) == {"sums", "images"}
    nothing = torch.zeros(0)
    memory.remember(torch.zeros(0, NUM_EXPERTS, WIDTH), nothing.long(), nothing)
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())
    assert memory(torch.zeros(0, NUM_EXPERTS, WIDTH), nothing.long()).shape == (0, NUM_EXPERTS)
