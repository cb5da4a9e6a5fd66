"""Makes the splits that a manifest lacks: stratified, grouped and seeded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from recame.contracts import IntArray
from recame.data.copies import copies_of
from recame.data.file_groups import groups_of
from recame.errors import ConfigError, DataError
from recame.names import by_number, counted

_NAMES = np.array(["train", "val", "test"], dtype=object)
#: A class with fewer images (or groups) stays whole in `train`.
_DIVISIBLE = 3
#: The split of images that are used neither to train nor to choose a model.
CALIBRATE = "calibrate"


def make_splits(
    labels: pd.Series,
    *,
    val_fraction: float,
    test_fraction: float,
    groups: pd.Series | None = None,
    seed: int,
) -> pd.Series:
    """Assign `train`, `val` or `test` to every row, stratified by label.

    Every class with at least three images is represented in each split whose fraction is above
    0, and every class keeps at least one image in `train`; a class with one or two images stays
    there. With `groups`, whole groups are assigned, rarest class first, each to the split that
    still lacks most images of that class (after Sechidis et al., ECML PKDD 2011, "iterative
    stratification", over groups instead of rows). Then the fractions, and the classes in `val` and
    `test`, are the best that this greedy rule finds, but `train` always holds every class. Grouped
    splits do not depend on the order of the rows.

    Args:
        labels: N labels.
        val_fraction: share for `val`, in [0, 1).
        test_fraction: share for `test`, in [0, 1); both together below 1.
        groups: N values, none missing; each value goes to one split.
        seed: of the random choice among equals.

    Returns:
        N split names, with the index of `labels`.

    Raises:
        ConfigError: the fractions leave nothing to train on.
        DataError: the groups cannot be divided.
    """
    if val_fraction + test_fraction >= 1.0:
        raise ConfigError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} leave "
            "nothing to train on: choose two shares that add up to less than 1."
        )
    classes, names = pd.factorize(labels, sort=True)
    held_out = np.array([val_fraction, test_fraction])
    if groups is None:
        split = _split_rows(classes.astype(np.int64), held_out, seed)
    else:
        if absent := int(groups.isna().sum()):
            raise DataError(
                f"{counted(absent)} {by_number(absent, 'has', 'have')} no {groups.name!r}, so the "
                "group is unknown. Fill the column, or unset data.group_by."
            )
        members, group_names = pd.factorize(groups, sort=True)
        counts = np.zeros((len(group_names), len(names)), np.int64)
        np.add.at(counts, (members, classes), 1)
        _check_divisible(counts, held_out, str(groups.name))
        of_group = _split_groups(counts, held_out, seed)
        _check_reached(of_group, counts, held_out, str(groups.name), names)
        split = of_group[members]
    return pd.Series(_NAMES[split], index=labels.index, name="split", dtype=object)


def draw_splits(
    labels: pd.Series,
    *,
    val_fraction: float,
    test_fraction: float,
    groups: pd.Series | None = None,
    copies: pd.Series | None = None,
    seed: int,
) -> pd.Series:
    """`make_splits` in which copies of a file follow the first of them, unless there are groups.

    A set without copies is split as `make_splits` does. So is one of which nothing else would be
    left for a split, or for a class in `train`.

    Args:
        labels: N labels.
        val_fraction: as of `make_splits`.
        test_fraction: as of `make_splits`.
        groups: as of `make_splits`, for these and maybe further rows.
        copies: of `copies_of`, for these and maybe further rows.
        seed: as of `make_splits`.

    Returns:
        N split names, with the index of `labels`.

    Raises:
        ConfigError: the fractions leave nothing to train on.
        DataError: the groups cannot be divided.
    """
    make = partial(make_splits, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    own = None if groups is None else groups[labels.index]
    content = None if copies is None or own is not None else copies[labels.index]
    if content is None or content.is_unique:
        return make(labels, groups=own)
    # The first of the rarest class: copies with several labels must not cost a class its images.
    rarity = labels.groupby(labels).transform("size").sort_values(kind="stable")
    first = ~content[rarity.index].duplicated()[labels.index]
    drawn = make(labels[first])
    of_content = dict(zip(content[first], drawn, strict=True))
    split = content.map(of_content).rename("split").astype(object)
    plain = make(labels)
    learned = set(labels[split == "train"]) == set(labels)
    return split if learned and set(split) == set(plain) else plain


def check_group_column(table: pd.DataFrame, group_by: str | None) -> None:
    """Refuse a `group_by` that is not a column of the table.

    Raises:
        DataError: the table has no such column.
    """
    if group_by is not None and group_by not in table:
        raise DataError(
            f"There is no column {group_by!r} to group by; the table has the columns "
            f"{', '.join(map(str, table.columns))}. Set data.group_by to one of them, or to null."
        )


def in_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Names of splits, each once: train, val, test, then the others by name."""
    found = set(splits)
    return (*(name for name in _NAMES if name in found), *sorted(found.difference(_NAMES)))


def complete_splits(
    table: pd.DataFrame,
    *,
    val_fraction: float,
    test_fraction: float,
    group_by: str | None,
    seed: int,
    calibrate_fraction: float = 0.0,
) -> pd.DataFrame:
    """Give a manifest the splits that training needs.

    Without a column `split`, all three splits are made. If the column has no `val`, a share of the
    training rows becomes `val`. Otherwise the given splits stay: no `test` is made, and splits with
    other names are kept for evaluation. Images without a label are distributed like a class.

    The pages and boxes of one file (`file.tif#1`, `file.png#xywh=10,20,30,40`) stay together like a
    group. Where there are no groups, copies of a file are drawn together, see `draw_splits`.

    Args:
        table: columns `image`, maybe `path`, `label` and `split`, and `group_by`.
        val_fraction: share for `val`, of the training rows if there are splits already.
        test_fraction: share for `test`; only used if there are no splits.
        group_by: column; rows with the same value in it stay in one split.
        seed: seed of the random choice.
        calibrate_fraction: share of the training rows for `calibrate`, unless that split exists.

    Returns:
        A copy of the table with `split`, rows in the same order, numbered from 0.

    Raises:
        ConfigError: the fractions leave nothing to train on.
        DataError: no row is in `train`, `group_by` is no column, or its groups cannot be divided.
    """
    check_group_column(table, group_by)
    table = table.reset_index(drop=True)
    # By name, so that the same images get the same splits whatever the order of the rows.
    by_name = table.sort_values("image", kind="stable")
    groups = groups_of(by_name, group_by)
    labels = by_name.get("label", pd.Series("", by_name.index))
    if labels.isna().any():
        labels = labels.astype(object).mask(labels.isna(), "")
    given = by_name["split"] if "split" in table else None
    copies = None
    if groups is None and _leaves_open(given, val_fraction, calibrate_fraction):
        copies = copies_of(by_name)
    draw = partial(draw_splits, groups=groups, copies=copies, seed=seed)
    if given is None:
        made = draw(labels, val_fraction=val_fraction, test_fraction=test_fraction)
        return table.assign(split=_calibrating(made, labels, draw, calibrate_fraction))
    split = given
    in_train = (split == "train").to_numpy()
    if not in_train.any():
        raise DataError(
            f"No image is in the split 'train', only in {', '.join(split.unique())}: there is "
            "nothing to learn from. Name the training rows 'train', or check data.split_column."
        )
    if not (split == "val").any() and val_fraction > 0:
        made = draw(labels[in_train], val_fraction=val_fraction, test_fraction=0.0)
        split = split.where(~in_train, made)
    if groups is not None and (straddling := int((split.groupby(groups).agg("nunique") > 1).sum())):
        warnings.warn(
            f"{counted(straddling, 'value')} of {groups.name!r} "
            f"{by_number(straddling, 'is', 'are')} in more than one of the given splits, so "
            "figures on the held-out splits will look better than they are.",
            stacklevel=2,
        )
    return table.assign(split=_calibrating(split, labels, draw, calibrate_fraction))


def _leaves_open(split: pd.Series | None, val_fraction: float, calibrate_fraction: float) -> bool:
    """Whether the given splits lack one that is wanted."""
    if split is None:
        return True
    wanted = {"val": val_fraction, CALIBRATE: calibrate_fraction}
    return any(share > 0 and not (split == name).any() for name, share in wanted.items())


def _calibrating(
    split: pd.Series, labels: pd.Series, draw: Callable[..., pd.Series], fraction: float
) -> pd.Series:
    """Splits with a share of the training rows in `calibrate`."""
    if fraction <= 0 or (split == CALIBRATE).any():
        return split
    in_train = split == "train"
    made = draw(labels[in_train], val_fraction=fraction, test_fraction=0.0)
    return split.where(~in_train, made.replace({"val": CALIBRATE}))


def _held_out_counts(counts: IntArray, fractions: np.ndarray[Any, Any]) -> IntArray:
    """How many of each class `val` and `test` get: (C,) -> (C, 2).

    Rounded, at least 1 where a class can be divided, and never so many that none is left.
    """
    may_divide = (counts >= _DIVISIBLE)[:, None] & (fractions > 0)
    rounded = np.maximum(np.floor(counts[:, None] * fractions + 0.5), 1)
    wanted = np.where(may_divide, rounded, 0).astype(np.int64)
    excess = np.maximum(wanted.sum(1) - (counts - 1), 0)
    wanted[np.arange(len(counts)), wanted.argmax(1)] -= excess
    return wanted


def _split_rows(classes: IntArray, fractions: np.ndarray[Any, Any], seed: int) -> IntArray:
    """Split index of each row: the first few of each class in a random order are held out."""
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    rank = np.empty(len(classes), np.int64)
    rank[shuffled] = pd.Series(classes[shuffled]).groupby(classes[shuffled]).cumcount().to_numpy()
    num_val, num_test = _held_out_counts(np.bincount(classes), fractions)[classes].T
    return np.where(rank < num_val, 1, np.where(rank < num_val + num_test, 2, 0))


def _check_divisible(counts: IntArray, held_out: np.ndarray[Any, Any], column: str) -> None:
    needed = 1 + int((held_out > 0).sum())
    if len(counts) < needed:
        raise DataError(
            f"Column {column!r} has {counted(len(counts), 'group')}, but {needed} splits need at "
            "least one group each. Group by a finer column, give a split column, or unset "
            "data.group_by."
        )


def _check_reached(
    of_group: IntArray,
    counts: IntArray,
    held_out: np.ndarray[Any, Any],
    column: str,
    names: pd.Index,
) -> None:
    num_groups = (counts > 0).sum(0)
    rarest = int(num_groups.argmin())
    for split, fraction in enumerate(held_out, start=1):
        if fraction > 0 and not (of_group == split).any():
            raise DataError(
                f"Column {column!r} leaves no group for {_NAMES[split]!r}: class "
                f"{str(names[rarest])!r}, in {num_groups[rarest]} of "
                f"{counted(len(counts), 'group')}, would be missing from train. Group by a finer "
                "column, give a split column, or unset data.group_by."
            )


def _split_groups(counts: IntArray, held_out: np.ndarray[Any, Any], seed: int) -> IntArray:
    """Split index of each group by the greedy rule of `make_splits`.

    A group leaves `train` only while each of its classes has another group there or undecided,
    so no class can vanish from `train`.

    Args:
        counts: (G, C) images.
        held_out: (2,) fractions.
        seed: of the order of the groups.
    """
    contains = counts > 0
    groups_of_class = contains.sum(0)
    wanted = np.concatenate([[1.0 - held_out.sum()], held_out])[:, None] * counts.sum(0)
    wanted[1:][held_out == 0] = -np.inf
    order = np.random.default_rng(seed).permutation(len(counts))
    assigned = np.full(len(counts), -1)
    undecided = groups_of_class.copy()
    present = np.zeros((3, counts.shape[1]), bool)

    def assign(group: int, split: int) -> None:
        assigned[group] = split
        wanted[split] -= counts[group]
        undecided[contains[group]] -= 1
        present[split] |= contains[group]

    def may_leave(group: int) -> bool:
        return bool((present[0] | (undecided > 1))[contains[group]].all())

    for c in np.lexsort((counts.sum(0), groups_of_class)):
        candidates = order[contains[order, c]]
        divisible = groups_of_class[c] >= _DIVISIBLE
        musts = [0, *(np.flatnonzero(held_out) + 1 if divisible else [])]
        for split in musts:
            free = candidates[assigned[candidates] < 0]
            if present[split, c] or not len(free):
                continue
            # The group that exceeds what the split still wants the least.
            excess = np.maximum(counts[free] - np.maximum(wanted[split], 0.0), 0.0).sum(1)
            for group in free[np.argsort(excess, kind="stable")]:
                if split == 0 or may_leave(group):
                    assign(group, split)
                    break
        if not divisible:
            continue  # its other groups go where a class with more groups wants them
        for group in candidates[assigned[candidates] < 0]:
            split = int(np.lexsort((wanted.sum(1), wanted[:, c]))[-1])
            assign(group, split if may_leave(group) else 0)
    assigned[assigned < 0] = 0
    return assigned
