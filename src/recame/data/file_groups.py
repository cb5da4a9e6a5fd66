"""What must stay in one split: the rows of a group, and the pages and boxes of one file."""

from __future__ import annotations

import os
from collections.abc import Hashable

import pandas as pd

from recame.data.file_part import WHOLE, split_part


def groups_of(table: pd.DataFrame, group_by: str | None) -> pd.Series | None:
    """A value for each row that those share which belong together; None where none do.

    Args:
        table: column `image`, and `group_by`.
        group_by: a column; parts of one file that stand in several of its groups make one of them.

    Returns:
        (N,) named after what groups; missing where `group_by` is.
    """
    groups = None if group_by is None else table[group_by]
    named = [split_part(image) for image in table["image"]]
    in_part = pd.Series([part != WHOLE for _, part in named], table.index)
    if not in_part.any():
        return groups
    # However a table writes it, `./a.png` is `a.png`.
    written = [os.path.normpath(file.replace("\\", "/")) for file, _ in named]
    files = pd.Series(written, table.index, name="file of a page or box")
    shared = files.duplicated(keep=False) & files.isin(files[in_part])
    if not shared.any():
        return groups
    if groups is None:
        return files
    # The first group of a file stands for all of them.
    head: dict[object, object] = {}

    def found(group: object) -> object:
        while group in head:
            group = head[group]
        return group

    first: dict[str, object] = {}
    for file, group in zip(files[shared], groups[shared], strict=True):
        if pd.notna(group):
            one, other = found(first.setdefault(file, group)), found(group)
            if one != other:
                head[other] = one
    return groups.map(found, na_action="ignore")


def group_of_each(table: pd.DataFrame, group_by: str | None) -> list[Hashable] | None:
    """What each of N rows belongs to (`groups_of`); a row that belongs to nothing stands alone."""
    groups = groups_of(table, group_by)
    if groups is None:
        return None
    return [("alone", row) if pd.isna(group) else group for row, group in enumerate(groups)]
