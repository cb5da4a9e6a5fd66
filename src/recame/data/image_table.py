"""The images that a table names, each whole or by its box; needs no pandas."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recame.data.file_part import TOO_FAR, Box, split_part
from recame.data.table_text import read_table_text
from recame.errors import DataError, MissingDependencyError
from recame.names import printable

#: Values of empty cells.
_EMPTY = (None, "")


class TableColumns(NamedTuple):
    """Names of the columns of a table that say which images it means.

    Attributes:
        image: column of paths, absolute or relative to the table's folder.
        box: columns of the left edge, upper edge, width and height of boxes, in pixels of the
            upright image; None: there are no boxes.
    """

    image: str = "image"
    box: tuple[str, str, str, str] | None = ("x", "y", "width", "height")


#: The default.
USUAL = TableColumns()


class TableRows(NamedTuple):
    """The rows of a table of images, in its order.

    Attributes:
        paths: N paths, with their boxes.
        names: N names as in the table, with their boxes.
        columns: the further columns, without those of paths and boxes.
        cells: N rows of the further columns, as text.
    """

    paths: list[str]
    names: list[str]
    columns: list[str]
    cells: list[list[str]]


def table_rows(source: Path, columns: TableColumns = USUAL) -> TableRows:
    """The images that a table names.

    Args:
        source: a `.csv` or `.parquet` file.
        columns: names of its columns.

    Raises:
        DataError: the table cannot be read, or a row lacks an image or has a wrong box.
        MissingDependencyError: the table is Parquet, and pyarrow is not installed.
    """
    header, rows = _parquet(source) if source.suffix.lower() != ".csv" else _csv(source, columns)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{source} has several columns {', '.join(map(repr, twice))}, so it is unclear which "
            "is meant: rename or remove all but one."
        )
    if columns.image not in header:
        raise DataError(
            f"{source} has no column {columns.image!r}, so it names no images; its columns are "
            f"{', '.join(header)}. Name the right column: --image-column NAME"
        )
    advice = (
        "Name them with --box-columns LEFT,TOP,WIDTH,HEIGHT, or, if the table has no boxes, use "
        "--box-columns none."
    )
    boxed = box_columns_of(header, columns.box, source, advice, declared=columns.box != USUAL.box)
    place, boxes = header.index(columns.image), [header.index(name) for name in boxed or ()]
    names = [str(row[place] or "").strip() for row in rows]
    if "" in names:
        raise DataError(
            f"{source}: row {names.index('') + 1} below the header has no {columns.image!r}: fill "
            "it in, or remove the row."
        )
    if boxed is not None:
        names = boxed_names(names, [[row[box] for box in boxes] for row in rows], boxed, source)
    paths = [_beside(source, name) for name in names]
    further = [number for number, name in enumerate(header) if number != place]
    known: dict[str, str] = {}  # the name of a lot or product repeats in many rows
    cells = [
        [
            known.setdefault(text, text)
            for text in ("" if _is_empty(row[n]) else str(row[n]) for n in further)
        ]
        for row in rows
    ]
    return TableRows(paths, names, [header[number] for number in further], cells)


def _beside(source: Path, name: str) -> str:
    """The path of a file that a table names, in one form however it is written."""
    name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return os.path.join(source.parent, name) if str(source.parent) != "." else name  # noqa: PTH118


def _csv(source: Path, columns: TableColumns) -> tuple[list[str], list[list[object]]]:
    taken = read_table_text(source, {columns.image, *(columns.box or ())})
    if taken.guessed is not None:
        raise DataError(
            f"{source} is not UTF-8, and with a wrong guess its files would not be found: save it "
            "as UTF-8."
        )
    lines = csv.reader(io.StringIO(taken.text), delimiter=taken.separator)
    try:
        rows: list[list[object]] = [[cell.strip() for cell in line] for line in lines if line]
    except csv.Error as error:
        raise DataError(
            f"{source} cannot be read as a table ({error}): correct it, or save it again as CSV."
        ) from error
    header = [str(name) for name in rows[0]] if rows else []
    short = next((n for n, row in enumerate(rows) if len(row) != len(header)), None)
    if short is not None:
        raise DataError(
            f"{source}: row {short} below the header has {len(rows[short])} cells, but the header "
            f"has {len(header)}: the table was cut off or edited. Write it again."
        )
    return header, rows[1:]


def _parquet(source: Path) -> tuple[list[str], list[list[object]]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            "pyarrow", "train", f"to read {source} (.csv needs nothing)"
        ) from error
    try:
        with source.open("rb") as stream:
            table = parquet.read_table(stream)
        columns = [column.to_pylist() for column in table.columns]
    except Exception as error:  # a damaged file can break a reader anywhere
        raise DataError(
            f"{source} cannot be read as Parquet ({error}): it is damaged or of another kind. "
            "Write it again."
        ) from error
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def box_columns_of(
    header: Sequence[str],
    wanted: tuple[str, str, str, str] | None,
    source: Path,
    advice: str,
    *,
    declared: bool,
) -> tuple[str, str, str, str] | None:
    """The columns of a table's boxes; None where it has none.

    Args:
        header: the table's columns.
        wanted: what boxes' columns are called; None: there are none.
        source: the table.
        advice: how they are named.
        declared: whether they were named, so that they must be there.

    Raises:
        DataError: some of them are there, and others are not.
    """
    if wanted is None:
        return None
    missing = [name for name in wanted if name not in header]
    if not missing:
        return wanted
    # `x, y` alone are a place on a wafer, `width, height` alone an image's size.
    if declared or len(missing) == 1:
        raise DataError(
            f"{source} has no column {missing[0]!r}, and a box is {', '.join(wanted)}; its columns "
            f"are {', '.join(map(str, header))}. {advice}"
        )
    return None


def boxed_names(
    images: Sequence[str],
    cells: Sequence[Sequence[object]],
    columns: tuple[str, str, str, str],
    source: Path,
) -> list[str]:
    """Names of the images with their boxes, `file.png#xywh=10,20,30,40`.

    Args:
        images: N names as they stand in the table.
        cells: of each row its x, y, width and height: numbers, texts, or nothing (all four: the
            whole image is meant).
        columns: what these are called.
        source: the table.

    Raises:
        DataError: a row's box is half filled, no numbers, or without area.
    """
    names = []
    for row, (image, values) in enumerate(zip(images, cells, strict=True), 1):
        filled = [not _is_empty(value) for value in values]
        if not any(filled):
            names.append(image)
            continue
        shown = ", ".join(f"{name}={value}" for name, value in zip(columns, values, strict=True))
        where = f"{source}: row {row} below the header ({printable(image)}) has {shown}"
        if not all(filled):
            raise DataError(
                f"{where}: the box is incomplete. Fill in all four cells, in pixels, or leave all "
                "four empty for the whole image."
            )
        names.append(_named(image, _box(values, where), where))
    return names


def _is_empty(value: object) -> bool:
    return value in _EMPTY or (isinstance(value, float) and math.isnan(value))


def _box(values: Sequence[object], where: str) -> Box:
    try:
        numbers = [float(str(value)) for value in values]
    except ValueError:
        numbers = [float("nan")]
    if not all(abs(number) < TOO_FAR for number in numbers):
        raise DataError(
            f"{where}: a box needs four numbers of pixels below {TOO_FAR:,}, with a decimal point "
            "for fractions. Correct the row."
        )
    box = Box(*(round(number, 3) + 0.0 for number in numbers))
    if box.width <= 0 or box.height <= 0:
        raise DataError(
            f"{where}: the box has no area, so it shows nothing. Give its left edge, upper edge, "
            "width and height, not two corners; remove the row if there is no box."
        )
    return box


def _named(image: str, box: Box, where: str) -> str:
    file, part = split_part(image)
    if part.box is not None and part.box != box:
        raise DataError(
            f"{where}, but the image's name holds another box, so it is unclear which is meant. "
            "Remove one of them."
        )
    return f"{file}{part._replace(box=box)}"
