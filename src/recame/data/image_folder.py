"""A folder of images -> a table; subfolders are classes, or splits that hold classes."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Literal

import pandas as pd

from recame.data.listing import IMAGE_SUFFIXES, Unused, is_table, walk_images
from recame.data.paged_file import pages_of
from recame.data.split_names import is_split_name, usual_names
from recame.data.tiff import MOST_PAGES
from recame.errors import DataError
from recame.names import by_number, counted, printable

#: Whether each image must have a label, may have one, or labels are ignored.
Labels = Literal["required", "optional", "ignored"]


def read_folder(
    folder: Path, labels: Labels, pages: Literal["first", "all"] = "first"
) -> pd.DataFrame:
    """The images of a folder, one row each, sorted by path: see `read_manifest`.

    Raises:
        DataError: there is no image, or no folder of classes or splits although one is needed.
    """
    unused = Unused()
    found = sorted(walk_images(folder, unused))
    unused.tell(folder)
    files = [file for file in found if file.encode("utf-8", "ignore").decode() == file]
    odd = sorted(set(found).difference(files))
    if odd:
        shown, verb = printable(odd[0]), by_number(len(odd), "is", "are")
        warnings.warn(
            f"{counted(len(odd))} of {folder} {verb} left out, since no "
            f"table can give a name that is not valid UTF-8 ({shown}{', ...' * (len(odd) > 1)}). "
            f"Rename {by_number(len(odd), 'it', 'them')}.",
            stacklevel=3,
        )
    if not files:
        raise DataError(
            f"No images in {folder} and all folders below it: looked for files ending in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}. {unused.told('There are other files: ')}Check "
            "the path."
        )
    has_splits = _has_splits(folder, files, labels)
    depth = int(has_splits)  # of the class folders
    if labels != "ignored":
        _tell_empty(folder, files, depth, unused.own)
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
        names = usual_names(part[0] for part in parts)
        table["split"] = [names[part[0]] for part in parts]
    return table


def _has_splits(folder: Path, files: list[str], labels: Labels) -> bool:
    """Whether the folders are splits; only folders that hold images count.

    Raises:
        DataError: it is unclear what lies beside a folder train with folders of classes.
    """
    counts = Counter(file.partition("/")[0] for file in files if "/" in file)
    roles = usual_names(counts)
    train = {name for name in counts if roles[name] == "train"}
    beside = sorted(counts.keys() - train)
    # A folder named train alone is a split as well: as the only class it could not be used.
    if train and (not beside or any(map(is_split_name, beside))):
        return True
    if labels == "ignored":  # folders mean nothing then
        return False
    within = {file.rpartition("/")[0] for file in files if file.partition("/")[0] in train}
    classes = sorted({"/".join(name.split("/")[:2]) for name in within} - train)
    if len(classes) > 1:  # with one class it could not be used
        raise DataError(
            f"{folder} has a folder {classes[0].partition('/')[0]!r} with folders of classes "
            f"({', '.join(classes[:2])}{', ...' * (len(classes) > 2)}), and beside it "
            f"{', '.join(map(repr, beside[:5]))}{', ...' * (len(beside) > 5)}, which no split is "
            "usually named: taken together, each of these folders would be a class. Name other "
            "splits val and test, move what is no split elsewhere, or give "
            f"{folder / classes[0].partition('/')[0]} alone; a class needs another name than train."
        )
    for name in filter(is_split_name, sorted(counts)):
        warnings.warn(
            f"The folder {name!r} of {folder} ({counted(counts[name])}) counts as a class, though "
            "splits are usually named so. Splits are folders train, val and test that hold a "
            "folder for each class; if it is no class, move it elsewhere.",
            stacklevel=4,
        )
    return False


def _by_page(folder: Path, file: str) -> list[str]:
    """A name for each page of a file with several pages."""
    if not file.lower().endswith((".tif", ".tiff")) or (count := pages_of(folder / file)) == 1:
        return [file]
    if count == MOST_PAGES:
        raise DataError(
            f"{printable(str(folder / file))} has {count:,} pages or more, so some pages might be "
            "missed: name the pages to use in a table (file.tif#2), or save the file in parts."
        )
    return [f"{file}#{page}" for page in range(1, count + 1)]


def _tell_empty(folder: Path, files: list[str], depth: int, own: list[str]) -> None:
    """Warn of folders that become no class and no split, as they hold no image.

    Args:
        folder: the folder.
        files: its images.
        depth: of the class folders.
        own: runs and bundles below it; folders that hold them are left out as well.
    """
    empty: list[str] = []
    of_own = {"/".join(name.split("/")[:level]) for name in own for level in range(1, depth + 2)}
    for level in range(1, depth + 2):
        there = {path.relative_to(folder).as_posix() for path in folder.glob("*/" * level)}
        used = {"/".join(file.split("/")[:level]) for file in files}
        below = tuple(f"{name}/" for name in empty)
        empty += sorted(
            name
            for name in there - used - of_own
            if not name.startswith((".", *below)) and "/." not in name
        )
    if empty:
        warnings.warn(
            f"{counted(len(empty), 'folder')} of {folder} {by_number(len(empty), 'holds', 'hold')} "
            f"no readable image, so {by_number(len(empty), 'it makes', 'they make')} no class: "
            f"{', '.join(map(repr, empty[:5]))}{', ...' if len(empty) > 5 else ''}.",
            stacklevel=4,
        )


def _below(folder: Path, files: list[str], depth: int, what: str) -> list[str]:
    """The images in class or split folders; others are left out with a warning."""
    inside = [file for file in files if file.count("/") >= depth]
    loose = sorted(set(files).difference(inside))
    if not inside:
        raise DataError(
            f"{folder} has {counted(len(files))} but no {what} ({loose[0]}, ...), so the images "
            "have no labels, and a model can be neither trained nor evaluated on them. "
            f"{tables_beside(folder)}Put the images of each class in a folder with its name, or "
            "give a .csv table with the columns image and label."
        )
    if loose:
        warnings.warn(
            f"{counted(len(loose))} of {folder} {by_number(len(loose), 'lies', 'lie')} outside the "
            f"{what} ({loose[0]}{', ...' * (len(loose) > 1)}) and "
            f"{by_number(len(loose), 'is', 'are')} left out.",
            stacklevel=4,
        )
    return inside


def tables_beside(source: Path) -> str:
    """A sentence about tables in a folder, as one of them may have been meant; empty if none.

    Args:
        source: the path that was given.
    """
    if not source.is_dir():
        return ""
    tables = sorted(path for path in source.iterdir() if is_table(path) and path.is_file())
    if not tables:
        return ""
    named = printable(str(tables[0]))
    more = f" ({len(tables)} tables lie there)" if len(tables) > 1 else ""
    return f"If you mean the table, give {named} itself{more}. "
