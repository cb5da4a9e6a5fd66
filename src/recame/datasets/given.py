"""Data given in memory, written as the table that every stage reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from recame.contracts import AnyPath
from recame.errors import DataError
from recame.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd

#: Accepted forms of data: a path, a table in memory, pairs of an image's path and its label, or a
#: run, which means its images with their splits.
Given: TypeAlias = "AnyPath | pd.DataFrame | Sequence[tuple[AnyPath, str]]"

_HOW = (
    "Give a folder, a table's path, a DataFrame with the columns image and label, or a list of "
    "(image path, label)."
)


@contextmanager
def given_path(given: Given, folder: Path, image_column: str = "image") -> Iterator[Path]:
    """Give the path of the data; data in memory are written to a table first.

    Stages exchange files, so that each can be run again alone. The table's name follows from its
    content, and its images have absolute paths. If the block fails and nothing else was written to
    the folder, table and folder are removed.

    Args:
        given: see `Given`; an object with `to_pandas` counts as a DataFrame.
        folder: folder for the table; made when missing.
        image_column: column of image paths; relative paths start at the working directory.

    Raises:
        DataError: the data have another form.
    """
    if isinstance(given, str | os.PathLike) and not hasattr(given, "manifest_path"):
        yield Path(given)
        return
    content = _table_bytes(given, image_column)
    path = folder / f"given-{hashlib.sha256(content).hexdigest()[:8]}.parquet"
    known = path.exists()
    if not known:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    try:
        yield path
    except BaseException:
        if not known and [each.name for each in folder.iterdir()] == [path.name]:
            path.unlink()
            with suppress(OSError):
                folder.rmdir()
        raise


def _table_bytes(given: Any, image_column: str) -> bytes:
    """A set in memory as Parquet."""
    import io

    import pandas as pd

    if hasattr(given, "manifest_path"):
        table, image_column = _of_run(given), "image"
    elif isinstance(given, pd.DataFrame):
        table = given.reset_index(drop=True).rename(columns=str)
    elif hasattr(given, "to_pandas"):
        table = given.to_pandas().rename(columns=str)
    else:
        table = _of_pairs(given)
    if len(set(table.columns)) < len(table.columns):
        raise DataError(
            f"The table has several columns with one name ({', '.join(table.columns)}), so it is "
            "unclear which is meant: rename or remove all but one."
        )
    for name in [name for name in table if table[name].dtype == object]:
        filled = table[name].notna()
        table[name] = table[name].map(_text).where(filled, None)
    if image_column in table:
        here = Path.cwd()
        table[image_column] = [
            name if not isinstance(name, str) or "://" in name else str(here / name)
            for name in table[image_column].astype(object)
        ]
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _text(value: object) -> str:
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _of_pairs(given: Any) -> pd.DataFrame:
    import pandas as pd

    rows = list(given) if isinstance(given, Sequence) and not isinstance(given, bytes) else None
    if rows is None:
        raise DataError(f"Images cannot be given as {type(given).__name__}. {_HOW}")
    for place, row in enumerate(rows):
        pair = tuple(row) if isinstance(row, tuple | list) else ()
        if len(pair) != 2 or not isinstance(pair[0], str | os.PathLike):
            raise DataError(
                f"Item {place} of the list is {str(row)[:80]!r}, not a pair of an image's path and "
                f"its label. {_HOW}"
            )
    if not rows:
        raise DataError(f"The list holds no image. {_HOW}")
    return pd.DataFrame([tuple(row) for row in rows], columns=["image", "label"])


def _of_run(folder: Any) -> pd.DataFrame:
    """The images that a run recorded, with its splits."""
    from recame.data.manifest import read_recorded_manifest

    path = folder.manifest_path
    product = folder.load_config().data.product_column
    table = read_recorded_manifest(path, product, folder.digests(path))
    return table.assign(image=table["path"]).drop(columns="path")
