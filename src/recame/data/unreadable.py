"""Leaves out images that cannot be read, and keeps every class in `train` where splits are free."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import pandas as pd

from recame.data.cache import ImageCache
from recame.data.splits import in_order
from recame.errors import DataError, UnreadableError
from recame.names import by_number, counted, printable

#: How many files a message names.
_NAMED = 5


def drop_broken(table: pd.DataFrame, cache: ImageCache, max_fraction: float) -> pd.DataFrame:
    """The readable images, numbered from 0.

    Args:
        table: with the column `row`, -1 where an image cannot be read.
        cache: the decoded images, and why others could not be read.
        max_fraction: the share of unreadable images that is allowed, in [0, 1].

    Raises:
        UnreadableError: more cannot be read.
    """
    readable = table["row"] >= 0
    num_broken = int((~readable).sum())
    if num_broken > max_fraction * len(table) or num_broken == len(table):
        first = "; ".join(f"{b.path}: {b.reason}" for b in cache.broken[:_NAMED])
        raise UnreadableError(
            f"{num_broken} of {counted(len(table))} cannot be read ({first}"
            f"{'; ...' if len(cache.broken) > _NAMED else ''}), more than the allowed share of "
            f"{max_fraction:g}. Repair or remove them, or raise data.max_broken_fraction."
        )
    return table[readable].reset_index(drop=True)


def keep_classes(
    table: pd.DataFrame, every: pd.DataFrame, cache: ImageCache, fixed: Collection[str] | None
) -> pd.DataFrame:
    """The readable images, with an image of each class in `train`.

    Where all training images of a class are unreadable, an image whose split was drawn comes from
    the split that has most of the class.

    Args:
        table: the readable images, of `drop_broken`.
        every: the same with the unreadable ones; each class has an image in `train`.
        cache: why images could not be read.
        fixed: images that must stay in their splits; None: all.

    Raises:
        DataError: a class would be missing from `train`.
    """
    lost = sorted(set(every["label"]) - set(table.loc[table["split"] == "train", "label"]))
    for label in lost:
        unread = every[(every["label"] == label) & (every["split"] == "train")]
        files = _named(unread, cache)
        others = table[table["label"] == label]
        free = others if fixed is None else others[~others["image"].isin(fixed)]
        if fixed is None or free.empty:
            way_out = "leave out the class"
            if len(others):
                counts = others["split"].value_counts()
                where = " and ".join(f"{name} ({number})" for name, number in counts.items())
                way_out = f"move readable images of it into train, from {where}"
            raise DataError(
                f"Every training image of {label!r} is unreadable ({files}), so the class "
                "would be missing from the model. Repair or replace "
                f"{by_number(len(unread), 'this file', 'these files')}, or {way_out}."
            )
        counts = free["split"].value_counts()
        split = max(in_order(counts.index), key=lambda name: counts[name])
        row = free.index[free["split"] == split][0]
        warnings.warn(
            f"Every training image of {label!r} is unreadable ({files}), so "
            f"{printable(table['image'][row])} moves from {split} to train. Repair or remove "
            f"{by_number(len(unread), 'the file', 'the files')}.",
            stacklevel=3,
        )
        table = table.assign(split=table["split"].where(table.index != row, "train"))
    return table


def _named(rows: pd.DataFrame, cache: ImageCache) -> str:
    """The first files, each with the reason why it cannot be read."""
    reasons = {broken.path: broken.reason for broken in cache.broken}
    told = [f"{printable(path)}: {reasons.get(path, '')}" for path in rows["path"][:_NAMED]]
    return "; ".join(told) + "; ..." * (len(rows) > _NAMED)
