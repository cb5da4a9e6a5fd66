"""The two tables of a prediction as lines of CSV: of what was decided, and of unreadable files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from recame.errors import DataError
from recame.names import cell_of, text_of
from recame.runtime.predictor import REVIEW, Prediction

#: How the name of a table of unreadable files ends.
UNREADABLE_ENDING = "_unreadable.csv"
#: First line of the table of unreadable files.
REASONS = ("image", "reason")


def lines(
    found: Sequence[Prediction], unread: Sequence[bool], classes: Sequence[str]
) -> list[bytes]:
    """The line of either table for each file, its end included.

    Args:
        found: what was predicted.
        unread: of each, whether its file could not be read.
        classes: names of the C classes, in the order of the probabilities.
    """
    values = [
        item.probabilities
        if item.expert_probabilities is None
        else np.concatenate([item.probabilities, item.expert_probabilities.ravel()])
        for item, lacks in zip(found, unread, strict=True)
        if not lacks
    ]
    # Shortest text that reads back as the same float32.
    texts = iter(np.asarray(values, np.float32).astype(str).tolist())
    numbers = [[] if lacks else next(texts) for lacks in unread]
    words = _csv(
        [item.image, str(item.error)] if lacks else _words(item, row, classes)
        for item, lacks, row in zip(found, unread, numbers, strict=True)
    )
    # A CSV writer looks at each character; numbers need no quotes.
    return [
        (",".join([line, *row]) + "\n").encode() for line, row in zip(words, numbers, strict=True)
    ]


def cells(stored: Iterable[bytes]) -> Iterator[list[str]]:
    """The texts that lines were made of."""
    for row in csv.reader(line.decode() for line in stored):
        yield [text_of(cell) for cell in row]


def write_lines(path: Path, header: Sequence[str], stored: Iterable[bytes]) -> None:
    """Write a table of lines."""
    with path.open("wb") as stream:
        stream.writelines(chain([f"{line}\n".encode() for line in _csv([header])], stored))


def unreadable_path(out: Path) -> Path:
    """The table of unreadable files of a table, which is no other table's."""
    stem = out.stem if out.suffix == ".csv" else out.name
    return out.with_name(f"{stem}{UNREADABLE_ENDING}")


def check_reasons(path: Path) -> None:
    """Refuse, before any work, to write over a file that is no table of unreadable files.

    Raises:
        DataError: it is something else.
    """
    try:
        with path.open("rb") as stream:
            ours = stream.readline(100).rstrip() == ",".join(REASONS).encode()
    except OSError:
        return
    if not ours:
        raise DataError(
            f"{path} is where this prediction would list unreadable files, and it holds something "
            "else, which would be lost: move it, or write the table under another name."
        )


def _words(item: Prediction, row: Sequence[str], classes: Sequence[str]) -> list[str]:
    sure = "nan" if item.label is None else row[classes.index(item.label)]
    return [
        item.image,
        item.label or "",
        sure,
        item.decision,
        item.error or "; ".join(item.lost.values()) or _held_back(item),
    ]


def _held_back(item: Prediction) -> str:
    """Why a fitted policy sends an image to a person."""
    return item.reason if item.decision == REVIEW else ""


def _csv(rows: Iterable[Sequence[str]]) -> list[str]:
    """A line a row, without its end."""
    written: list[str] = []
    # A writer writes each row at once, and quotes whatever holds a part of its own line end: both
    # of these characters split rows.
    writer = csv.writer(SimpleNamespace(write=written.append), lineterminator="\r\n")
    writer.writerows([cell_of(text) for text in row] for row in rows)
    return [line.removesuffix("\r\n") for line in written]
