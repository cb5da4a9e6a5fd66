"""Predictions as lines of a CSV file; see `recame.runs.prediction_columns`."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from recame.contracts import FloatArray
from recame.data.listing import ListedImages
from recame.names import cell_of, text_of
from recame.runs.prediction_columns import DECIDED, LABELLED, kept_columns, prediction_columns
from recame.runtime.prediction import Prediction


class Line(NamedTuple):
    """Two parts of the row of an image.

    Attributes:
        decided: the columns from `prediction` to `sha256`.
        experts: the experts' probabilities; empty if there are none.
    """

    decided: str
    experts: str


def lines(found: Sequence[Prediction], classes: Sequence[str]) -> list[Line]:
    """Make the two parts of each image's row.

    Args:
        found: the predictions.
        classes: names of the C classes, in the order of the probabilities.
    """
    called = {name: cell for name, [cell] in ((n, _csv([[n]])) for n in classes)}
    decided = _csv(
        [item.action, item.reason, item.note, item.candidates, _number(item), item.sha256 or ""]
        for item in found
    )
    unread = [item.action == "unreadable" for item in found]
    ensemble = _texts(
        item.probabilities for item, lacks in zip(found, unread, strict=True) if not lacks
    )
    experts = _texts(
        each.ravel() for item in found if (each := item.expert_probabilities) is not None
    )
    made = []
    for item, words, lacks in zip(found, decided, unread, strict=True):
        row = [""] * len(classes) if lacks else next(ensemble)
        if item.label is None:
            sure = ["", "" if lacks else "nan"]
        else:
            sure = [called[item.label], row[classes.index(item.label)]]
        numbers = [] if item.expert_probabilities is None else next(experts)
        # Numbers need no quotes; joining them is faster than a CSV writer.
        made.append(Line(",".join([*sure, *row, words]), ",".join(numbers)))
    return made


def with_reason(line: Line, reason: str, note: str) -> Line:
    """Replace the reason of a row; its old note follows the new one."""
    cells = [text_of(cell) for [*row] in csv.reader([line.decided]) for cell in row]
    first = len(cells) - len(DECIDED)
    for name, text in (("reason", reason), ("note", note)):
        place = first + DECIDED.index(name)
        more = cells[place] if name == "note" else ""
        cells[place] = f"{text}; {more}" if more else text
    [decided] = _csv([cells])
    return Line(decided, line.experts)


def header_of(listed: ListedImages, classes: Sequence[str], num_experts: int) -> list[str]:
    """The table's columns."""
    further = kept_columns([name for name in listed.columns if name not in LABELLED], classes)
    return prediction_columns(classes, list(further.values()), num_experts)


def write_table(
    path: Path,
    listed: ListedImages,
    classes: Sequence[str],
    num_experts: int,
    stored: Iterable[Line],
) -> list[str]:
    """Write the table, one line for each of the listed images, in their order.

    Args:
        path: the CSV file.
        listed: the images, and the tables' further columns.
        classes: names of the C classes.
        num_experts: number of experts whose probabilities are written.
        stored: the two parts of each image's row.

    Returns:
        The columns of the table.
    """
    header = header_of(listed, classes, num_experts)
    with path.open("wb") as stream:
        stream.writelines(
            f"{line}\n".encode()
            for line in chain(_csv([header]), _rows(listed, num_experts * len(classes), stored))
        )
    return header


def _rows(listed: ListedImages, num_numbers: int, stored: Iterable[Line]) -> Iterator[str]:
    at = {name: place for place, name in enumerate(listed.columns)}
    places = [at.get(name) for name in LABELLED]
    places += [place for name, place in at.items() if name not in LABELLED]
    without = "," * (num_numbers - 1)
    for path, line in zip(listed.paths, stored, strict=True):
        name, cells = listed.told.get(path, (path, []))
        told = [cells[place] if cells and place is not None else "" for place in places]
        first, last = _csv([[name, _whole(path)], told])
        numbers = [line.experts or without] if num_numbers else []
        yield ",".join([first, line.decided, last, *numbers])


def _whole(name: str) -> str:
    """The absolute path of an image; `..` after a link is not resolved."""
    return name if "://" in name else os.path.join(os.getcwd(), name)  # noqa: PTH109, PTH118 - text


def _number(item: Prediction) -> str:
    return "" if math.isnan(item.unknown_score) else str(np.float32(item.unknown_score))


def _texts(values: Iterable[FloatArray]) -> Iterator[list[str]]:
    """Shortest texts that are read as the same float32."""
    return iter(np.asarray(list(values), np.float32).astype(str).tolist())


def _csv(rows: Iterable[Sequence[str]]) -> list[str]:
    """One line per row, without line end."""
    written: list[str] = []
    # With this line end, the writer quotes texts that contain CR or LF, which would split rows.
    writer = csv.writer(SimpleNamespace(write=written.append), lineterminator="\r\n")
    writer.writerows([cell_of(text) for text in row] for row in rows)
    return [line.removesuffix("\r\n") for line in written]
