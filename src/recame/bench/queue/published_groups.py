"""Recall of groups of classes, for sets whose literature defines groups of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recame.label_space import GROUPS, LabelSpace


def published_groups(
    per_class: Sequence[Mapping[str, Any]], cutoffs: tuple[int, int, int]
) -> dict[str, dict[str, float | None]]:
    """Mean recall of each group of classes, by a set's published cut-offs.

    Args:
        per_class: one row for each class: `class, train_images, recall` (None without images).
        cutoffs: of `LabelSpace.groups`.

    Returns:
        `<group>_recall` -> `{"value": share, "low": None, "high": None}` for every group; the value
        is None if the group has no class with images.
    """
    names = tuple(str(row["class"]) for row in per_class)
    space = LabelSpace(names, tuple(int(row["train_images"]) for row in per_class))
    found: dict[str, list[float]] = {group: [] for group in GROUPS}
    for group, row in zip(space.groups(cutoffs), per_class, strict=True):
        if row["recall"] is not None:
            found[group].append(float(row["recall"]))
    return {
        f"{group}_recall": {
            "value": sum(recalls) / len(recalls) if recalls else None,
            "low": None,
            "high": None,
        }
        for group, recalls in found.items()
    }
