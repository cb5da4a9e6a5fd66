"""A prepared set's folder: manifest, images, and what they were made from; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from recame.contracts import Pixels
from recame.datasets.generated.generate import write_png
from recame.errors import CheckpointError, DataError
from recame.files import csv_text, read_json, write_json
from recame.folders import is_taken, new_folder
from recame.machine import usable_cores
from recame.progress import Progress, silent

MANIFEST = "manifest.csv"
RECIPE = "prepared.json"
SCHEMA = 1
#: Bytes at either end of a large file that stand for the whole in its fingerprint.
_END_BYTES = 1 << 20
_IMAGES_A_TASK = 128


def prepare_folder(out: Path, recipe: dict[str, Any], build: Callable[[Path], object]) -> Path:
    """Build a set in a folder beside `out` and move it there when it is whole.

    Where `out` holds a set of the same recipe, nothing is done. Anything else in it is never
    replaced: the user may still need it.

    Args:
        out: a new or empty folder, or one that this function made.
        recipe: the set's name, its options and the fingerprint of its raw files, JSON-ready.
        build: fills the folder it is given with at least `manifest.csv`.

    Returns:
        The manifest's path.

    Raises:
        DataError: `out` holds something else, or cannot be written.
    """
    recipe = {"schema": SCHEMA, **json.loads(json.dumps(recipe))}
    if is_taken(out):
        _check_same(out, recipe)
    else:
        with new_folder(out) as partial:
            build(partial)
            write_json(partial / RECIPE, recipe)
    return out / MANIFEST


def _check_same(out: Path, recipe: dict[str, Any]) -> None:
    try:
        found = read_json(out / RECIPE)
        if not (out / MANIFEST).is_file():
            raise CheckpointError(f"no {MANIFEST}")
    except CheckpointError as error:
        raise DataError(
            f"{out} is not empty and holds no prepared data set, and recame does not replace what "
            "is in it: choose a new folder."
        ) from error
    differing = [key for key in {**recipe, **found} if recipe.get(key) != found.get(key)]
    if differing:
        was = ", ".join(f"{key} {found.get(key)} and not {recipe.get(key)}" for key in differing)
        raise DataError(
            f"{out} holds a data set that was prepared differently ({was}), so figures on the two "
            "cannot be compared. Choose another folder, or delete this one."
        )


def fingerprint(files: Iterable[Path]) -> str:
    """Hash of files' names, sizes and of a megabyte at either end. 16 hex digits.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as stream:
                digest.update(stream.read(_END_BYTES))
                stream.seek(max(_END_BYTES, size - _END_BYTES))
                digest.update(stream.read(_END_BYTES))
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error}): check the path and permissions."
            ) from error
    return digest.hexdigest()[:16]


def save_manifest(folder: Path, table: pd.DataFrame) -> None:
    """Write `manifest.csv` into a folder."""
    (folder / MANIFEST).write_bytes(csv_text(table, index=False).encode())


def write_images(
    folder: Path,
    names: Sequence[str],
    pixels: Callable[[int], Pixels],
    on_progress: Progress = silent,
) -> None:
    """Write PNG files on several threads; folders are made as needed.

    Args:
        folder: what the names are relative to.
        names: N, with forward slashes.
        pixels: number of an image -> (H, W) grey or (H, W, 3) red, green, blue; uint8.
        on_progress: told of the progress.

    Raises:
        OSError: a file cannot be written.
    """
    make_folders(folder, names)

    def write(numbers: range) -> int:
        for number in numbers:
            write_png(folder / names[number], pixels(number))
        return numbers.stop

    starts, every = range(0, len(names), _IMAGES_A_TASK), range(len(names))
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        for done in pool.map(write, [every[start : start + _IMAGES_A_TASK] for start in starts]):
            on_progress("writing images", done, len(names))


def make_folders(folder: Path, names: Sequence[str]) -> None:
    """Make the folders that files of these names will lie in."""
    for parent in sorted({name.rpartition("/")[0] for name in names}):
        (folder / parent).mkdir(parents=True, exist_ok=True)


def found_below(
    folder: Path, names: pd.Series[str], described_by: str, on_progress: Progress
) -> pd.Series[str]:
    """Check that images lie where a list says, one directory listing a folder.

    Args:
        folder: what the names are relative to.
        names: paths with forward slashes.
        described_by: the list, for the message.
        on_progress: told when all are found.

    Returns:
        Their absolute paths, with forward slashes.

    Raises:
        DataError: some are missing; the message counts them and names the first.
    """
    parts = names.str.rpartition("/")
    missing: list[str] = []
    for parent, files in parts[2].groupby(parts[0], sort=False):
        present: set[str] = set()
        with suppress(OSError):
            present.update(os.listdir(folder / str(parent)))  # noqa: PTH208 - names, not paths
        missing += names[files.index[~files.isin(present)]].tolist()
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images of {described_by} are not below {folder} "
            f"({missing[0]}, ...), and without them the data set is not the published one. "
            "Complete the copy, or give the folder from which the list's paths start."
        )
    on_progress("finding images", len(names), len(names))
    return f"{folder.resolve().as_posix()}/" + names
