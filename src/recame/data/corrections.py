"""Applies and lists labels that people have corrected in a table with the column `image`."""

from __future__ import annotations

import io
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from recame.config import DataConfig
from recame.data.table_text import read_table_text
from recame.errors import DataError
from recame.names import counted, quoted, text_of

#: The column that people fill in; an empty cell leaves the label as it is.
CORRECTED = "corrected_label"
#: The value in it for an image that is to be left out.
LEFT_OUT = "-"
#: The columns of the table of changes.
CHANGES = ("image", "split", "was", "is")
_NAMED = 4


class Correction(NamedTuple):
    """One row of a table of corrections.

    Attributes:
        row: number of the row below the header, from 1.
        was: the label in the table; None if there is none.
        now: the corrected label, or `LEFT_OUT`.
    """

    row: int
    was: str | None
    now: str


def read_corrections(path: Path, encoding: str = "auto") -> dict[str, Correction]:
    """Read a table with `image` and `corrected_label`, such as `suspects.csv` of `recame inspect`.

    Args:
        path: a CSV file; of further columns only `label`, the former label, is read.
        encoding: as for the table of the data set.

    Returns:
        Image -> its correction; rows with an empty `corrected_label` are left out.

    Raises:
        DataError: the file cannot be read, lacks a column, or contradicts itself.
    """
    if not path.is_file():
        raise DataError(
            f"There is no table of corrections at {path} (data.corrections): check the path. Give "
            f"a CSV file with the columns image and {CORRECTED}, such as recame inspect writes."
        )
    taken = read_table_text(path, {"image", "label", CORRECTED}, encoding)
    try:
        table = pd.read_csv(
            io.StringIO(taken.text), sep=taken.separator, dtype=str, keep_default_na=False
        )
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}): save it as CSV.") from error
    if missing := [name for name in ("image", CORRECTED) if name not in table]:
        raise DataError(
            f"{path} has no column {' and no '.join(map(repr, missing))}, so it corrects nothing; "
            f"its columns are {', '.join(map(str, table.columns))}. Take suspects.csv of recame "
            f"inspect, and fill in {CORRECTED}: a class, {LEFT_OUT!r} to leave the image out, or "
            "nothing."
        )
    labels = table.get("label", pd.Series("", table.index))
    found: dict[str, Correction] = {}
    cells = zip(table["image"], labels, table[CORRECTED], strict=True)
    for row, (image, was, now) in enumerate(cells, start=1):
        name, now = text_of(image.strip()), text_of(now.strip())
        if not now:
            continue
        earlier = found.setdefault(name, Correction(row, text_of(was.strip()) or None, now))
        if earlier.now != now:
            raise DataError(
                f"{path} contradicts itself: {quoted(name)} is {quoted(earlier.now)} in row "
                f"{earlier.row} below the header, but {quoted(now)} in row {row}, and a wrong "
                "label would train the model wrongly. Remove one of the rows."
            )
    return found


def corrected(
    table: pd.DataFrame, settings: DataConfig, *, left_out: Collection[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply `data.corrections` to a manifest, and list the changes.

    Call it after the splits are made, so that a corrected label moves no image to another split.

    Args:
        table: of `read_manifest`.
        settings: may name a table of corrections.
        left_out: images that earlier corrections have left out already.

    Returns:
        The table, numbered from 0, and one row for each change: `image`, `split`, `was`, `is` (`-`
        for an image that was left out).

    Raises:
        DataError: the corrections contradict each other or the data set.
    """
    path = settings.corrections
    if path is None:
        return table, pd.DataFrame(columns=list(CHANGES))
    asked = read_corrections(path, settings.encoding)
    labels = table["label"] if "label" in table else pd.Series(None, table.index, dtype=object)
    known = set(labels.dropna())
    _check_images(path, asked, set(table["image"]) | set(left_out))
    _check_classes(path, asked, known)
    now = table["image"].map({name: each.now for name, each in asked.items()})
    changed = now.notna() & (now != labels)
    _check_labels(path, asked, table["image"][changed], labels[changed])
    changes = pd.DataFrame(
        {
            "image": table["image"][changed],
            "split": table["split"][changed] if "split" in table else "",
            "was": labels[changed].fillna(""),
            "is": now[changed],
        }
    ).reset_index(drop=True)
    kept = now.fillna("") != LEFT_OUT
    table = table.assign(label=labels.where(~changed, now))[kept].reset_index(drop=True)
    if table.empty:
        raise DataError(
            f"{path} leaves out every image, so no image remains: keep some rows without "
            f"{LEFT_OUT!r}."
        )
    return table, changes


def told_corrections(changes: pd.DataFrame, path: Path) -> list[str]:
    """Sentences about what was corrected; those about `test` say that its figures change."""
    if changes.empty:
        return [f"{path} changes nothing: all its labels are in the data already"]
    out = changes["is"] == LEFT_OUT
    parts = [
        counted(int((~out).sum()), "label") + " corrected" if (~out).any() else "",
        counted(int(out.sum())) + " left out" if out.any() else "",
    ]
    told = [f"{' and '.join(filter(None, parts))} by {path}"]
    if number := int((changes["split"] == "test").sum()):
        told.append(
            f"{counted(number)} of them {'is' if number == 1 else 'are'} in test: do not compare "
            "figures on the corrected labels with earlier figures"
        )
    return told


def _check_images(path: Path, asked: dict[str, Correction], known: Collection[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        first = ", ".join(f"{quoted(name)} (row {asked[name].row})" for name in unknown[:_NAMED])
        raise DataError(
            f"{path} corrects {counted(len(unknown))} that the data set does not hold: {first}"
            f"{', ...' if len(unknown) > _NAMED else ''} (rows below the header). Name images as "
            "in the table of the data set, or as paths below its folder, or remove these rows."
        )


def _check_classes(path: Path, asked: dict[str, Correction], known: Collection[str]) -> None:
    for name, each in asked.items():
        if each.now == LEFT_OUT and LEFT_OUT in known:
            raise DataError(
                f"{path}, row {each.row} below the header: {LEFT_OUT!r} would leave out "
                f"{quoted(name)}, but the data set has a class with that name. Rename the class, "
                "or remove the image from the data set."
            )
        if each.now != LEFT_OUT and each.now not in known:
            near = get_close_matches(each.now, sorted(known), 1)
            meant = f" (did you mean {quoted(near[0])}?)" if near else ""
            raise DataError(
                f"{path}, row {each.row} below the header: {quoted(name)} is corrected to "
                f"{quoted(each.now)}{meant}, but the data set has no such class, and a typing slip "
                "would make a new one. Its classes are "
                f"{', '.join(map(quoted, sorted(known)[:12]))}; label images of a new class in the "
                "data set itself."
            )


def _check_labels(
    path: Path, asked: dict[str, Correction], images: pd.Series, labels: pd.Series
) -> None:
    """Refuse corrections that were made for another version of the data set."""
    for name, label in zip(images, labels, strict=True):
        each = asked[name]
        if each.was is not None and pd.notna(label) and each.was != label:
            raise DataError(
                f"{path}, row {each.row} below the header, corrects {quoted(name)} from "
                f"{quoted(each.was)} to {quoted(each.now)}, but its label is {quoted(label)} now: "
                "the table was made for another version of the data set. Look at the image again, "
                "or empty the label in this row."
            )
