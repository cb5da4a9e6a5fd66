"""Samples of rows that show rare classes as much as frequent ones."""

from __future__ import annotations

import numpy as np

from recame.contracts import IntArray
from recame.data.dataset import SplitView


def capped_view(view: SplitView, max_per_class: int, seed: int) -> SplitView:
    """At most `max_per_class` images of each class, drawn once, in the split's order."""
    order = np.random.default_rng(seed).permutation(len(view.targets))
    sorted_by_class = order[np.argsort(view.targets[order], kind="stable")]
    classes, starts = np.unique(view.targets[sorted_by_class], return_index=True)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    assert len(classes) == len(starts)
    keep = np.sort(sorted_by_class[rank < max_per_class])
    return SplitView(view.name, view.indices[keep], view.targets[keep], view.rows[keep])


def balanced_sample(target: IntArray, wanted: int, seed: int) -> IntArray:
    """A sample that shows the tail as much as the head.

    One image of each class after the other until the sample is full, so that a class of few images
    gives all of them.

    Args:
        target: (N,) class indices.
        wanted: images to draw.
        seed: of the draw.

    Returns:
        (min(N, wanted),) positions, in random order.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(target))
    by_class = order[np.argsort(target[order], kind="stable")]
    _, starts, counts = np.unique(target[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(target)) - np.repeat(starts, counts)
    chosen = by_class[np.lexsort((target[by_class], rank))[:wanted]]
    # Each batch shall show several classes.
    return np.asarray(rng.permutation(chosen))
