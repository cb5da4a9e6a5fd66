"""The data decide which flips and turns keep an image's class."""

from __future__ import annotations

import pytest
import torch

from recame.config import SYMMETRIES, Config, ProbeConfig, largest_symmetry
from recame.losses import Objective
from recame.models import ExpertHead
from recame.training.phases.features import ProbeFeatures
from recame.training.phases.symmetry import choose_symmetry
from recame.training.views import with_symmetry

NUM_CLASSES, WIDTH = 4, 8


def features(num_images: int, num_honest: int, seed: int, num_views: int = 8) -> ProbeFeatures:
    """Up to eight views of each image; those after the first `num_honest` look like others'."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(num_images) % NUM_CLASSES
    centres = 4 * torch.eye(NUM_CLASSES, WIDTH)
    seen = target[:, None].repeat(1, 8)
    shift = torch.arange(8) * (torch.arange(8) >= num_honest)
    seen = (seen + shift) % NUM_CLASSES
    noise = torch.randn(num_images, 8, WIDTH, generator=generator)
    return ProbeFeatures((centres[seen] + noise)[:, :num_views], target)


def choose(num_honest: int, num_views: int = 8) -> tuple[str, dict[str, float]]:
    torch.manual_seed(0)
    head = ExpertHead(1, WIDTH, NUM_CLASSES)
    objective = Objective([40] * NUM_CLASSES, num_experts=1, hard_weight=0, contrastive_weight=0)
    return choose_symmetry(
        head,
        features(160, num_honest, 1, num_views),
        features(200, num_honest, 2, num_views),
        objective,
        ProbeConfig(steps=60, batch_size=64, lr=0.01),
        num_experts=1,
        seed=0,
    )


@pytest.mark.parametrize(
    ("num_honest", "expected"), [(1, "none"), (2, "mirror"), (4, "flips"), (8, "square")]
)
def test_largest_group_that_keeps_the_class_is_taken(num_honest: int, expected: str) -> None:
    name, scores = choose(num_honest)
    assert name == expected
    assert list(scores) == ["none", "mirror", "flips", "square"]
    assert scores[name] < 0.7


def test_images_that_are_not_square_are_asked_for_flips_at_most() -> None:
    assert largest_symmetry(32, 96) == "flips"
    name, scores = choose(8, num_views=SYMMETRIES[largest_symmetry(32, 96)])
    assert name == "flips"
    assert list(scores) == ["none", "mirror", "flips"]
    assert largest_symmetry(64, 64) == "square"


def test_a_turned_class_costs_likelihood() -> None:
    _, scores = choose(2)
    assert scores["square"] - scores["mirror"] > 0.2


def test_views_of_the_symmetry_travel_with_the_settings() -> None:
    assert with_symmetry(Config(), "flips").evaluation.views == 4
    fixed = Config().updated({"evaluation.views": 1})
    decided = with_symmetry(fixed, "square")
    assert (decided.evaluation.views, decided.augment.symmetry) == (1, "square")
