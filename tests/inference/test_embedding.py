"""Embedding by a frozen trunk, components, and the map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recame.contracts import PreprocessSpec
from recame.data.cache import PickedRows
from recame.inference.embedding import embed_images
from recame.inference.projection import (
    nearest_by_cosine,
    nearest_rows,
    principal_components,
    project_map,
    standardise,
)
from recame.models import load_checkpoint


@pytest.mark.parametrize(("channels", "depth"), [(1, 8), (3, 16)])
def test_embedding_is_repeatable_and_independent_of_the_batch(channels: int, depth: int) -> None:
    scale = float(2**depth - 1)
    spec = PreprocessSpec(
        32,
        32,
        channels,
        depth,
        scale,
        (0.5,) * channels,
        (0.5,) * channels,  # type: ignore[arg-type]
    )
    pixels = np.random.default_rng(0).integers(0, int(scale), (5, 32, 32, channels))
    images = pixels.astype(spec.dtype)
    done: list[int] = []
    whole = embed_images(images, spec, on_progress=lambda _, n, __: done.append(n))
    alone = embed_images(images[3:4], spec)
    assert whole.looks.shape == (5, 2 * (24 + 40 + 80 + 112))
    assert whole.details.shape == (5, 3 * (24 + 40 + 80 + 112))
    np.testing.assert_allclose(whole.details[3], alone.details[0], rtol=1e-3, atol=1e-4)
    assert done == [5]


def test_rows_that_are_picked_are_those_of_a_copy() -> None:
    spec = PreprocessSpec(32, 32, 1, 8, 255.0, (0.5,), (0.5,))
    images = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 1)).astype(np.uint8)
    rows = np.array([3, 1, 4])
    picked = PickedRows(images, rows)
    np.testing.assert_array_equal(list(picked), images[rows])
    found, expected = embed_images(picked, spec), embed_images(images[rows], spec)
    np.testing.assert_array_equal(found.details, expected.details)


def test_a_model_is_given_back_as_it_was(finished: Path) -> None:
    loaded = load_checkpoint(finished)
    spec = loaded.spec
    loaded.model.train()
    embed_images(
        np.zeros((2, spec.height, spec.width, spec.channels), spec.dtype), spec, model=loaded
    )
    assert loaded.model.training


def test_components_keep_distances_and_order() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    scores = principal_components(x, 10)
    assert scores.shape == (50, 4)
    assert (np.diff(scores.var(0)) <= 1e-6).all()
    z = standardise(x)
    before = ((z[:1] - z) ** 2).sum(1)
    np.testing.assert_allclose(((scores[:1] - scores) ** 2).sum(1), before, rtol=1e-3, atol=1e-4)
    assert principal_components(x[:1], 10).shape == (1, 1)
    assert principal_components(np.ones((3, 2), np.float32), 2).shape[0] == 3


def test_map_keeps_two_clouds_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    x[40:] += 30
    points = project_map(x, 0)
    np.testing.assert_array_equal(points, project_map(x, 0))
    first, second = points[:40], points[40:]
    apart = np.linalg.norm(first.mean(0) - second.mean(0))
    assert apart > 2 * max(first.std(0).max(), second.std(0).max())
    assert project_map(x[:1, :1], 0).shape == (1, 2)


def test_neighbours_are_exact_and_sorted() -> None:
    x = np.random.default_rng(0).normal(size=(1500, 6)).astype(np.float32)
    near = nearest_rows(x, 4)[0]
    for row in (0, 1023, 1024, 1499):
        distance = ((x - x[row]) ** 2).sum(1)
        distance[row] = np.inf
        assert near[row].tolist() == np.argsort(distance)[:4].tolist()


def test_nearest_by_cosine_agrees_with_the_cosine_by_hand() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(3, 2, 5)), rng.normal(size=(40, 2, 5))
    rows, similarity = nearest_by_cosine(few, many, 4)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for i in range(3):
        mean = [np.mean([cosine(few[i, e], other[e]) for e in range(2)]) for other in many]
        assert rows[i].tolist() == np.argsort(mean)[::-1][:4].tolist()
        assert similarity[i] == pytest.approx(np.sort(mean)[::-1][:4])
