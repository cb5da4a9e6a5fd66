"""Samples of images that show rare classes as much as frequent ones."""

from __future__ import annotations

import numpy as np

from recame.contracts import IntArray
from recame.data.dataset import SplitView


def rank_in_class(target: IntArray, rng: np.random.Generator) -> IntArray:
    """Number the images of each class in a random order.

    Args:
        target: (N,) class indices; a negative one is a class too.
        rng: draws the order.

    Returns:
        (N,) from 0: the images below a rank are as many of each class, as far as it has them.

    Examples:
        >>> rank = rank_in_class(np.array([0, 0, 0, 1]), np.random.default_rng(0))
        >>> sorted(rank[:3].tolist()), int(rank[3])
        ([0, 1, 2], 0)
    """
    order = rng.permutation(len(target))
    by_class = order[np.argsort(target[order], kind="stable")]
    _, starts, counts = np.unique(target[by_class], return_index=True, return_counts=True)
    rank = np.empty(len(target), np.int64)
    rank[by_class] = np.arange(len(target)) - np.repeat(starts, counts)
    return rank


def capped_view(view: SplitView, max_per_class: int, seed: int) -> SplitView:
    """At most `max_per_class` images of each class, drawn once, in the split's order."""
    rng = np.random.default_rng(seed)
    keep = np.flatnonzero(rank_in_class(view.targets, rng) < max_per_class)
    return SplitView(view.name, view.indices[keep], view.targets[keep], view.rows[keep])


def balanced_sample(target: IntArray, most: int, seed: int) -> IntArray:
    """A sample that shows the tail as much as the head.

    One image of each class after the other until the sample is full, so that a class of few images
    gives all of them.

    Args:
        target: (N,) class indices; a negative one is a class too.
        most: images to draw.
        seed: of the draw.

    Returns:
        (min(N, most),) positions, in random order.

    Examples:
        >>> chosen = balanced_sample(np.array([0] * 90 + [1] * 3), 10, seed=0)
        >>> int((chosen >= 90).sum()), len(chosen)
        (3, 10)
    """
    rng = np.random.default_rng(seed)
    chosen = np.lexsort((target, rank_in_class(target, rng)))[:most]
    # Each batch shall show several classes.
    return np.asarray(rng.permutation(chosen))
