"""A folder of images -> a table: its folders are classes, or splits with classes in them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import pandas as pd

from recame.data.listing import IMAGE_SUFFIXES, Unused, is_table, walk_images
from recame.data.paged_file import pages_of
from recame.data.tiff import MOST_PAGES
from recame.errors import DataError
from recame.names import printable

#: What folders and tables call splits -> the splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
#: Whether each image must have a label, may have one, or is asked for none.
Labels = Literal["required", "optional", "ignored"]


def read_folder(
    folder: Path, labels: Labels, pages: Literal["first", "all"] = "first"
) -> pd.DataFrame:
    """The images of a folder, one row each, sorted by path: see `read_manifest`.

    Raises:
        DataError: there is none, or their places do not say what they show.
    """
    names = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    roles = {SPLIT_NAMES.get(name.lower()) for name in names}
    # A folder named train alone is a split as well: as the only class it could not be used.
    has_splits = "train" in roles and (bool(roles & {"val", "test"}) or len(names) == 1)
    unused = Unused()
    found = sorted(walk_images(folder, unused))
    unused.tell(folder)
    files = [file for file in found if file.encode("utf-8", "ignore").decode() == file]
    odd = sorted(set(found).difference(files))
    if odd:
        shown = printable(odd[0])
        warnings.warn(
            f"{len(odd)} images of {folder} have names that are no UTF-8 ({shown}, ...) and are "
            "left out, as no table could name them: rename them.",
            stacklevel=3,
        )
    if not files:
        raise DataError(
            f"No images in {folder}: looked in it and in all folders below it for files ending in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}. {unused.told('There are other files: ')}Check "
            "the path."
        )
    has_splits = has_splits and any("/" in file for file in files)
    depth = int(has_splits)  # of the class folders
    if labels != "ignored":
        _tell_empty(folder, files, depth)
    if labels == "required":
        files = _below(folder, files, depth + 1, "class folders")
    elif has_splits:
        files = _below(folder, files, 1, "folders of the splits")
    if pages == "all":
        files = [name for file in files for name in _by_page(folder, file)]
    base = folder.absolute()
    parts = [file.split("/") for file in files]
    table = pd.DataFrame({"image": files, "path": [str(base / file) for file in files]})
    if labels != "ignored":
        table["label"] = [part[depth] if len(part) >= depth + 2 else None for part in parts]
    if has_splits:
        table["split"] = [SPLIT_NAMES.get(part[0].lower(), part[0]) for part in parts]
    return table


def _by_page(folder: Path, file: str) -> list[str]:
    """A name for each page of a file of several."""
    if not file.lower().endswith((".tif", ".tiff")) or (count := pages_of(folder / file)) == 1:
        return [file]
    if count == MOST_PAGES:
        raise DataError(
            f"{printable(str(folder / file))} has {count:,} pages or more, and some "
            "might be left out without a word: name the pages that are meant in a table "
            "(file.tif#2), or save it in parts."
        )
    return [f"{file}#{page}" for page in range(1, count + 1)]


def _tell_empty(folder: Path, files: list[str], depth: int) -> None:
    """Warn of folders that would be no class and no split, since nothing in them is read."""
    empty: list[str] = []
    for level in range(1, depth + 2):
        there = {path.relative_to(folder).as_posix() for path in folder.glob("*/" * level)}
        used = {"/".join(file.split("/")[:level]) for file in files}
        below = tuple(f"{name}/" for name in empty)
        empty += sorted(
            name for name in there - used if not name.startswith((".", *below)) and "/." not in name
        )
    if empty:
        warnings.warn(
            f"{len(empty)} folders of {folder} hold no image that is read, and count as no class: "
            f"{', '.join(map(repr, empty[:5]))}{', ...' if len(empty) > 5 else ''}.",
            stacklevel=4,
        )


def _below(folder: Path, files: list[str], depth: int, what: str) -> list[str]:
    """The images at least so many folders deep; of others their place does not say enough."""
    inside = [file for file in files if file.count("/") >= depth]
    loose = sorted(set(files).difference(inside))
    if not inside:
        raise DataError(
            f"{folder} has {len(files)} images but no {what} ({loose[0]}, ...), so nothing "
            "says what they show, and nothing can be learned from them or judged by them. "
            f"{tables_beside(folder)}Put each class in a folder of its name, or give a .csv table "
            "with image and label."
        )
    if loose:
        warnings.warn(
            f"{len(loose)} images of {folder} lie outside the {what} ({loose[0]}, ...) and are "
            "left out.",
            stacklevel=4,
        )
    return inside


def tables_beside(source: Path) -> str:
    """What tables a folder holds that was given where one of them may have been meant; or nothing.

    Args:
        source: what was given.
    """
    if not source.is_dir():
        return ""
    tables = sorted(path for path in source.iterdir() if is_table(path) and path.is_file())
    if not tables:
        return ""
    named = printable(str(tables[0]))
    more = f" ({len(tables)} tables lie there)" if len(tables) > 1 else ""
    return f"Was the table meant? Give {named} itself{more}. "
