"""Clusters, near-duplicates and label errors, each on arrays made for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import adjusted_rand_score

from recame.inference.projection import nearest_rows
from recame.inspection.checks.label_errors import label_suspects
from recame.inspection.clusters import (
    class_structure,
    cluster_agreement,
    cluster_classes,
    effective_number,
    find_looks,
)
from recame.inspection.scenes import MAX_RESIDUAL, near_duplicates, scene_groups


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), 12)) * 8
    own = np.repeat(np.arange(len(sizes)), sizes)
    return (centres[own] + rng.normal(size=(len(own), 12))).astype(np.float32), own


def test_a_sample_stands_for_all_images_of_its_class() -> None:
    features, cluster = blobs([10] * 20)  # of 100 images in each of 20 clusters
    target, basis = np.zeros(200, np.int64), np.ones(200, bool)
    near = nearest_rows(features, 10)[0]
    sampled = class_structure(["a"], target, cluster, features, near, basis)
    whole = class_structure(["a"], target, cluster, features, near, basis, present=np.array([2000]))
    assert sampled["images_per_cluster"].iloc[0] == pytest.approx(10)
    assert whole[["images", "images_per_cluster"]].iloc[0].tolist() == pytest.approx([2000, 100])
    assert whole["kind"].tolist() == ["many in few"]


def test_planted_clusters_come_back_for_head_and_tail() -> None:
    features, look = blobs([60, 60, 60, 20, 20, 20])
    # The head class fills the first three looks, the tail class has one image of each.
    target = np.where(look < 3, 0, 1)
    target[[0, 60, 120]] = 2
    looks = find_looks(features, 0)
    cluster = cluster_classes(looks, target, 0)
    assert looks.num_looks == 6
    for c in range(3):
        own = target == c
        assert adjusted_rand_score(look[own], cluster[own]) > 0.95
    table = class_structure(
        ["head", "mid", "tail"],
        target,
        cluster,
        features,
        nearest_rows(features, 10)[0],
        np.ones(len(target), bool),
    )
    assert table["kind"].tolist() == ["many in few", "many in few", "few in many"]
    np.testing.assert_allclose(table["effective"], [3, 3, 3], rtol=0.15)
    assert table["similarity"].iloc[1] < 0.1 < table["similarity"].iloc[2]
    agreement = cluster_agreement(
        pd.DataFrame({"look": look, "noise": np.arange(len(look)) % 2}),
        target,
        cluster,
        ["noise", "look"],
    )
    assert agreement["column"].tolist() == ["look", "noise"]
    assert agreement["ami"].iloc[0] == pytest.approx(1.0, abs=0.05)
    assert abs(agreement["ami"].iloc[1]) < 0.05


def test_one_cloud_has_no_looks_and_few_clusters() -> None:
    features = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
    looks = find_looks(features, 0)
    cluster = cluster_classes(looks, np.zeros(300, np.int64), 0)
    assert looks.num_looks == 0
    assert np.bincount(cluster).max() > 240


@pytest.mark.parametrize("num", [1, 2, 5])
def test_hardly_any_images(num: int) -> None:
    features = np.arange(3.0 * num, dtype=np.float32).reshape(num, 3)
    looks = find_looks(features, 0)
    assert cluster_classes(looks, np.arange(num), 0).tolist() == [0] * num
    assert nearest_rows(features, 10)[0].shape == (num, min(10, num - 1))


def test_effective_number() -> None:
    assert effective_number(np.array([7, 7, 7])) == pytest.approx(3.0)
    assert effective_number(np.array([98, 1, 1])) == pytest.approx(1.12, abs=0.01)


def scenes(num: int, seed: int = 0) -> np.ndarray:
    """Smooth random scenes, wider than the camera's view."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(num, 72, 72)), (0, 2.0, 2.0))
    return 128 + 40 * field / field.std()


def view(scene: np.ndarray, dy: int = 0, dx: int = 0) -> np.ndarray:
    return scene[..., 4 + dy : 68 + dy, 4 + dx : 68 + dx]


def test_a_scene_taken_again_is_found_and_a_look_alike_is_not() -> None:
    rng = np.random.default_rng(1)
    many = scenes(60)
    lines = 100 + 60 * (np.arange(72) % 9 < 4)[None, None].repeat(72, 1)
    # Twenty views of one repetitive product: alike, but each with its own texture.
    product = lines + 0.25 * (scenes(20, 7) - 128)
    images = [view(many), view(product), view(many[:5], 1, 0) * 0.9 + 12]
    stack = np.concatenate(images)
    stack = stack + rng.normal(scale=4, size=stack.shape)
    pixels = np.clip(stack, 0, 255).astype(np.uint8)[..., None]
    components = pixels.reshape(len(pixels), -1)[:, ::31].astype(np.float32)
    found = near_duplicates(pixels, 255.0, components)
    assert set(zip(found["first"], found["second"], strict=True)) == {(i, 80 + i) for i in range(5)}
    assert found["residual"].max() <= MAX_RESIDUAL
    groups = scene_groups(len(pixels), found[["first", "second"]].to_numpy())
    assert groups[0] == groups[80]
    assert len(np.unique(groups)) == 80


def test_no_pair_among_one_image_or_flat_images() -> None:
    flat = np.zeros((4, 32, 32, 1), np.uint8)
    assert near_duplicates(flat[:1], 255.0, np.zeros((1, 2), np.float32)).empty
    assert near_duplicates(flat, 255.0, np.zeros((4, 2), np.float32)).empty


def test_planted_label_errors_lead_the_list() -> None:
    features, own = blobs([150, 80, 30])
    target = own.copy()
    wrong = np.array([3, 40, 160, 235])
    target[wrong] = (own[wrong] + 1) % 3
    done: list[int] = []
    found = label_suspects(
        features,
        target,
        np.arange(len(own)),
        3,
        seed=0,
        on_progress=lambda _, n, __: done.append(n),
    )
    assert set(np.flatnonzero(found["suspect"])) == set(wrong.tolist())
    assert found["other"].to_numpy()[wrong].tolist() == own[wrong].tolist()
    assert set(np.argsort(-found["margin"].to_numpy())[:4]) == set(wrong.tolist())
    assert done == [1, 2, 3, 4, 5]


def test_scenes_share_a_fold_and_lone_classes_are_not_judged() -> None:
    features, own = blobs([40, 40, 1])
    # A wrong label on both views of one scene: neither may vouch for the other.
    features = np.concatenate([features, features[:1]])
    target = np.concatenate([own, [1]])
    target[0] = 1
    groups = np.arange(len(target))
    groups[-1] = 0
    found = label_suspects(features, target, groups, 3, seed=0)
    assert found["suspect"].to_numpy()[[0, -1]].all()
    assert not found["judged"].iloc[80]
    only_one = label_suspects(features, np.zeros(len(target), np.int64), groups, 1, seed=0)
    assert not only_one["judged"].any()
