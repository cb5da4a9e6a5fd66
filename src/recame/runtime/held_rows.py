"""Apply the review budget to the production lots of a table, once all of its rows are there.

A stream does not know where a lot ends. Rows are first stored with their own reason. Rows beyond
the budget are found when the table is written, so the result does not depend on interruptions, nor
on the machine that made a row.
"""

from __future__ import annotations

import csv
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.data.listing import ListedImages
from recame.decisions.actions import Policy
from recame.decisions.review_budget import (
    OVER_BUDGET,
    WAITING,
    LotReview,
    over_budget,
    places_of,
)
from recame.decisions.scored import class_log_odds, logits_of
from recame.runtime.table_lines import Line, with_reason

#: Rows that are read at once.
_CHUNK = 4096


@dataclass(frozen=True)
class HeldRows:
    """Rows that need a person and are beyond the budget of their lot.

    Attributes:
        positions: (H,) of the rows, ascending.
        lot: (H,) index of each row's lot in `lots`.
        reasons: each row's own reason.
        lots: lots with such rows, in the table's order.
    """

    positions: IntArray
    lot: IntArray
    reasons: tuple[str, ...]
    lots: tuple[LotReview, ...]

    def told(self, stored: Iterable[Line]) -> Iterator[Line]:
        """Yield every row of the table; rows beyond the budget get that reason."""
        held = zip(self.positions.tolist(), self.lot.tolist(), self.reasons, strict=True)
        following = next(held, None)
        for position, line in enumerate(stored):
            if following is None or position != following[0]:
                yield line
                continue
            _, place, reason = following
            lot = self.lots[place]
            seen = f"the {lot.places:,} of this lot's {lot.images:,} images that people see"
            yield with_reason(line, OVER_BUDGET, f"{reason}; beyond {seen}")
            following = next(held, None)

    def counted(self, decided: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
        """Count rows by action and reason, most frequent first; `decided`: counts before this."""
        found = Counter(decided)
        for reason, number in Counter(self.reasons).items():
            found["review", reason] -= number
            found["review", OVER_BUDGET] += number
        return {what: number for what, number in found.most_common() if number}


def lot_place(listed: ListedImages, policy: Policy | None) -> int | None:
    """Index of the tables' column of production lots; None: all images are one lot.

    Warns if the policy needs the column but no table has it.
    """
    if policy is None or policy.review_budget is None or policy.lot_column is None:
        return None
    if policy.lot_column in listed.columns:
        return listed.columns.index(policy.lot_column)
    warnings.warn(
        f"The decisions have a review budget for each production lot, by the column "
        f"{policy.lot_column!r}, which no table of images has: all images are taken as one lot. "
        "Give a table with that column, or predict lot by lot.",
        stacklevel=4,
    )
    return None


def held_rows(
    db: sqlite3.Connection,
    listed: ListedImages,
    policy: Policy | None,
    place: int | None,
    num_classes: int,
) -> HeldRows:
    """Find the rows that are beyond the budget of their lot.

    Needs about twenty bytes of memory for each image that goes to a person.

    Args:
        db: database of the finished rows.
        listed: the images, and the tables' further columns.
        policy: that decided them; without a budget, no row is held.
        place: result of `lot_place`.
        num_classes: C.
    """
    nothing = np.zeros(0, np.int64)
    if policy is None or policy.review_budget is None:
        return HeldRows(nothing, nothing, (), ())
    names, lot_of = _lots(listed, place)
    taken, waiting = np.zeros(len(names), np.int64), list[_Waiting]()
    for rows in _rows_for_people(db):
        waits = np.array([reason in WAITING for _, reason, _ in rows])
        positions = np.array([position for position, _, _ in rows])
        np.add.at(taken, lot_of[positions[~waits]], 1)
        own = [row for row, asks in zip(rows, waits, strict=True) if asks]
        if own:
            odds = _log_odds([line for _, _, line in own], num_classes)
            reasons = np.array([WAITING.index(reason) for _, reason, _ in own], np.int8)
            waiting.append(_Waiting(positions[waits], odds, reasons))
    return _held(names, lot_of, taken, waiting, policy.review_budget)


@dataclass(frozen=True)
class _Waiting:
    """Some rows that wait for a place: their positions, log-odds and reasons (of `WAITING`)."""

    positions: IntArray
    odds: FloatArray
    reasons: np.ndarray


def _held(
    names: Sequence[str],
    lot_of: IntArray,
    taken: IntArray,
    waiting: Sequence[_Waiting],
    share: float,
) -> HeldRows:
    """Find the rows that get no place.

    Args:
        names: of the L lots.
        lot_of: (N,) lot of each image of the table.
        taken: (L,) places taken by images that always have one.
        waiting: rows that wait for the remaining places.
        share: of a lot's images that people see.
    """
    none = np.zeros(0, np.int64)
    positions = np.concatenate([none, *(rows.positions for rows in waiting)])
    odds = np.concatenate([none.astype(np.float64), *(rows.odds for rows in waiting)])
    reasons = np.concatenate([none, *(rows.reasons for rows in waiting)])
    sizes = np.bincount(lot_of, minlength=len(names))
    places = np.array([places_of(size, share) for size in sizes.tolist()])
    lots = lot_of[positions]
    over = over_budget(lots, odds, np.maximum(places - taken, 0))
    beyond = np.bincount(lots[over], minlength=len(names))
    people = taken + np.bincount(lots, minlength=len(names))
    exceeding = np.flatnonzero(beyond)
    number = np.full(len(names), -1)
    number[exceeding] = np.arange(len(exceeding))
    return HeldRows(
        positions[over],
        number[lots[over]],
        tuple(WAITING[reason] for reason in reasons[over].tolist()),
        tuple(
            LotReview(names[n], int(sizes[n]), int(places[n]), int(people[n]), int(beyond[n]))
            for n in exceeding.tolist()
        ),
    )


def _lots(listed: ListedImages, place: int | None) -> tuple[list[str], IntArray]:
    """Names of the lots, in the table's order, and the index of each image's lot."""
    if place is None:
        return [""], np.zeros(len(listed.paths), np.int64)
    numbers: dict[str, int] = {}
    found = np.empty(len(listed.paths), np.int64)
    for position, path in enumerate(listed.paths):
        _, cells = listed.told.get(path, ("", []))
        found[position] = numbers.setdefault(cells[place] if cells else "", len(numbers))
    return list(numbers), found


def _rows_for_people(db: sqlite3.Connection) -> Iterator[list[tuple[int, str, str]]]:
    """Yield position, reason and line of rows that need a person, in order and in parts."""
    cursor = db.execute(
        "SELECT position, reason, line FROM rows "
        "WHERE action IN ('review', 'unknown', 'unreadable') ORDER BY position"
    )
    while rows := cursor.fetchmany(_CHUNK):
        yield rows


def _log_odds(lines: Sequence[str], num_classes: int) -> FloatArray:
    """(N,) log-odds of each row's predicted class, from all of its probabilities.

    The largest probability alone may be rounded to 1.
    """
    cells = (row[2 : 2 + num_classes] for row in map(_cells, lines))
    probabilities = np.array(list(cells), np.float32)
    odds: FloatArray = class_log_odds(logits_of(probabilities)).max(1)
    return odds


def _cells(line: str) -> list[str]:
    [cells] = csv.reader([line])
    return cells
