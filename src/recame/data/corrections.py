"""Labels that people have corrected: a column filled in beside `image`, applied and listed."""

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
#: What it holds of an image that is to be left out.
LEFT_OUT = "-"
#: The columns of what was changed.
CHANGES = ("image", "split", "was", "is")
_NAMED = 4


class Correction(NamedTuple):
    """What one row says.

    Attributes:
        row: below the header, from 1.
        was: the label that its table shows; None where it shows none.
        now: the corrected one, or `LEFT_OUT`.
    """

    row: int
    was: str | None
    now: str


def read_corrections(path: Path, encoding: str = "auto") -> dict[str, Correction]:
    """Read a table with `image` and `corrected_label`, as `suspects.csv` of `recame inspect`.

    Args:
        path: a CSV file; of further columns only `label` is read, which says what is corrected.
        encoding: as of the set's own table.

    Returns:
        Image -> its correction; rows with an empty cell are none.

    Raises:
        DataError: it cannot be read, has no such column, or contradicts itself.
    """
    if not path.is_file():
        raise DataError(
            f"There is no table of corrections at {path} (data.corrections): check its path. It is "
            f"a CSV file with the columns image and {CORRECTED}, as recame inspect writes one."
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
                f"{earlier.row} below the header and {quoted(now)} in row {row}, and a guess would "
                "teach something wrong. Leave one of them."
            )
    return found


def corrected(
    table: pd.DataFrame, settings: DataConfig, *, left_out: Collection[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A manifest with the labels of `data.corrections`, and what that changed.

    After the splits are made: a label that is corrected moves no image to another split.

    Args:
        table: of `read_manifest`.
        settings: name the table of corrections, or none.
        left_out: images that earlier corrections have left out already.

    Returns:
        The table, numbered from 0, and a row a change: `image`, `split`, `was`, `is` (`-` for an
        image that was left out).

    Raises:
        DataError: the corrections contradict each other or the set.
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
        raise DataError(f"{path} leaves every image out, so that nothing is left to look at.")
    return table, changes


def told_corrections(changes: pd.DataFrame, path: Path) -> list[str]:
    """What was corrected, in sentences; those of `test` are said, as they move its figures."""
    if changes.empty:
        return [f"{path} corrects nothing that is not so already"]
    out = changes["is"] == LEFT_OUT
    parts = [
        counted(int((~out).sum()), "label") + " corrected" if (~out).any() else "",
        counted(int(out.sum())) + " left out" if out.any() else "",
    ]
    told = [f"{' and '.join(filter(None, parts))} by {path}"]
    if number := int((changes["split"] == "test").sum()):
        told.append(
            f"{counted(number)} of them {'is' if number == 1 else 'are'} of test: its figures are "
            "those of the corrected labels, and not to be compared with figures from before"
        )
    return told


def _check_images(path: Path, asked: dict[str, Correction], known: Collection[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        first = ", ".join(f"{quoted(name)} (row {asked[name].row})" for name in unknown[:_NAMED])
        raise DataError(
            f"{path} corrects {counted(len(unknown))} that the set does not hold: {first}"
            f"{', ...' if len(unknown) > _NAMED else ''}. Its rows are below the header; name "
            "images as the set's table does, or as paths below its folder, or remove these rows."
        )


def _check_classes(path: Path, asked: dict[str, Correction], known: Collection[str]) -> None:
    for name, each in asked.items():
        if each.now == LEFT_OUT and LEFT_OUT in known:
            raise DataError(
                f"{path}, row {each.row} below the header: {LEFT_OUT!r} would leave {quoted(name)} "
                "out, but the set has a class of that name. Rename the class, or remove the image "
                "from the set."
            )
        if each.now != LEFT_OUT and each.now not in known:
            near = get_close_matches(each.now, sorted(known), 1)
            meant = f" (did you mean {quoted(near[0])}?)" if near else ""
            raise DataError(
                f"{path}, row {each.row} below the header: {quoted(name)} is to be "
                f"{quoted(each.now)}{meant}, and the set has no such class, which a slip of the "
                f"keyboard would make. Its classes are {', '.join(map(quoted, sorted(known)[:12]))}"
                "; label the images of a new class in the set itself."
            )


def _check_labels(
    path: Path, asked: dict[str, Correction], images: pd.Series, labels: pd.Series
) -> None:
    """Refuse corrections of another state of the set."""
    for name, label in zip(images, labels, strict=True):
        each = asked[name]
        if each.was is not None and pd.notna(label) and each.was != label:
            raise DataError(
                f"{path}, row {each.row} below the header, corrects {quoted(name)} from "
                f"{quoted(each.was)} to {quoted(each.now)}, but the set calls it {quoted(label)} "
                "by now: the table is of another state of the set. Look at the image again, or "
                "empty the row's label."
            )
