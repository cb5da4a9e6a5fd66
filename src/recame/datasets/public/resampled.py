"""Another draw of a published set's training images: the groups they came in, drawn anew."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from recame.contracts import IntArray
from recame.datasets.public.prepared_folder import fingerprint, prepare_folder, save_manifest
from recame.errors import DataError

#: Draws that may lack a class before a set is given up.
_TRIES = 1000


def resample_groups(manifest: Path, out: Path, group: str, seed: int) -> Path:
    """Write a manifest whose training images are those of as many groups, drawn with replacement.

    A bootstrap of whole groups (boards, lots), so that what one training set owes to its boards
    varies as it would from one collection of boards to the next. Images of a group that is drawn
    twice are there twice. A draw that lacks a class is drawn again: what a class without images
    costs is another question. All other splits stay as they are.

    Args:
        manifest: a prepared set's.
        out: a new or empty folder, or one that holds this draw already.
        group: its column of groups.
        seed: of the draw.

    Returns:
        The new manifest, whose images are those of the old one.

    Raises:
        DataError: the manifest cannot be read, has no such column, or its rare classes lie in so
            few groups that hardly any draw has them all.
    """
    recipe = {"resampled": group, "seed": seed, "manifest": fingerprint([manifest])}

    def build(partial: Path) -> None:
        table = _read(manifest, group)
        here, there = manifest.parent.resolve(), out.resolve()
        places = [_place(here / name, there) for name in table["image"]]
        table = table.assign(image=places)
        train = table["split"] == "train"
        drawn = _drawn(table[train], manifest, group, seed)
        save_manifest(partial, pd.concat([table[train].iloc[drawn], table[~train]]))

    return prepare_folder(out, recipe, build)


def _read(manifest: Path, group: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{manifest} cannot be read as a table ({error}): check it.") from error
    if missing := {"image", "label", "split", group} - {*table}:
        raise DataError(
            f"{manifest} has no column {', '.join(sorted(missing))}, so its training images cannot "
            f"be resampled by {group}: give the manifest that the set's builder wrote."
        )
    return table


def _place(image: Path, out: Path) -> str:
    """Where an image lies, seen from the new folder; absolute on another drive."""
    try:
        return Path(os.path.relpath(image, out)).as_posix()
    except ValueError:
        return image.as_posix()


def _drawn(train: pd.DataFrame, manifest: Path, group: str, seed: int) -> IntArray:
    """Positions of the rows of as many groups, drawn with replacement, in the manifest's order."""
    codes, groups = pd.factorize(train[group])
    classes, names = pd.factorize(train["label"])
    generator = np.random.default_rng(seed)
    for _ in range(_TRIES):
        times = np.bincount(
            generator.integers(len(groups), size=len(groups)), minlength=len(groups)
        )
        rows: IntArray = np.repeat(np.arange(len(train)), times[codes])
        if len(np.unique(classes[rows])) == len(names):
            return rows
    raise DataError(
        f"{manifest}: {_TRIES} draws of its {len(groups)} values of {group} each lacked a class, "
        "so no training set can be resampled: leave out data_seed."
    )
