"""Keep finished rows of a long prediction, so that it can be continued after a kill.

The rows are in a database beside the table, `<out>.partial/rows.sqlite`, each with its file's name
and the checksum of the decoded file. A file that could not be opened has no checksum, and is tried
again.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Protocol, Self

from recame.data.decode import Image
from recame.data.listing import ListedImages
from recame.decisions.actions import Policy, candidates
from recame.decisions.policy import without_products
from recame.errors import DataError, UnreadableError
from recame.files import _sync
from recame.label_space import LabelSpace
from recame.machine import usable_cores
from recame.names import counted, escaped, unescaped
from recame.runs.prediction_columns import (
    NUMBERS,
    expert_columns,
    probability_columns,
    table_metadata,
)
from recame.runtime.held_rows import HeldRows, held_rows, lot_place
from recame.runtime.parquet_table import to_parquet
from recame.runtime.prediction import Prediction
from recame.runtime.prediction_summary import PredictionSummary
from recame.runtime.table_lines import Line, lines, write_table
from recame.runtime.urls import content

PARTIAL_SCHEMA = 6

#: File that versions without a database (schema 1) left in the folder.
_EARLIER = "identity.json"
_PREPARE = (
    # One process holds the file until it ends; no memory is shared with other processes.
    "PRAGMA locking_mode = EXCLUSIVE",
    # Survives a power cut, without waiting for the disk at each chunk.
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
)
_TABLES = (
    "CREATE TABLE IF NOT EXISTS start (schema, model, batch_size)",
    # A missing label is NULL. Names (`_key`) and notes are `escaped`.
    """CREATE TABLE IF NOT EXISTS rows
    (position INTEGER PRIMARY KEY, name, sha256, label, action, reason, note, lost, line, experts)
    """,
)
#: Fewest rows that are written together.
_CHUNK = 256
#: Action and reason of a file without a prediction.
_UNREADABLE = ("unreadable", "unreadable")
#: Most unreadable files that a summary names.
_NAMED = 20


class Scorer(Protocol):
    """Makes the rows: a `Predictor`, or the nodes of a cluster."""

    label_space: LabelSpace
    fingerprint: str

    @property
    def policy(self) -> Policy | None:
        """The policy that decides; None: every image is booked as its predicted class."""
        ...

    def batch_size_for(self, num_images: int) -> int:
        """The batch size for a stream of this many images."""
        ...

    def stream(
        self,
        images: Iterable[Image],
        *,
        num_images: int | None = None,
        batch_size: int | None = None,
        checksums: bool = False,
    ) -> Iterator[Prediction]:
        """Predict images in order."""
        ...


class PartialTable:
    """Rows of an interrupted prediction and of this one; a context manager that holds the lock.

    Args:
        out: the table.
        scorer: makes the rows.
        listed: the files, in the table's order.
        resume: whether to continue with existing rows.

    Attributes:
        todo: positions of files without a row, or whose file has changed since.
        batch_size: of the first start; other batches might change the last digit of a model that
            is not `steady`.
        chunk: number of rows for each `add`: whole batches.

    Raises:
        DataError: the rows belong to another prediction that still runs, to another model, or to
            another version.
    """

    def __init__(self, out: Path, scorer: Scorer, listed: ListedImages, *, resume: bool) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.partial")
        self._listed, self._names, self._model = listed, listed.paths, scorer.fingerprint
        self._classes = list(scorer.label_space.names)
        self._policy = scorer.policy
        if self._policy is not None and self._policy.products is not None and listed.told:
            self._tell_without_products(self._policy)
        self._lot_place = lot_place(listed, self._policy)
        if (self.folder / _EARLIER).exists():
            if resume:
                raise self._another_version(1)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._db = self._connect()
        try:
            known = self._start(scorer.fingerprint) if resume else None
            self.batch_size = known or self._begin(scorer)
            self.todo = self._take_up() if known else range(len(self._names))
        except BaseException:
            self._db.close()
            raise
        self.chunk = self.batch_size * -(-_CHUNK // self.batch_size)
        self._places = iter(self.todo)
        self._not_opened = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, found: Sequence[Prediction]) -> None:
        """Write the rows of the next files, all or none of them."""
        found = [self._by_product(item) for item in found]
        rows = (
            (
                place,
                self._key(item.image),
                item.sha256,
                item.label,
                item.action,
                item.reason,
                escaped(item.note),
                "\n".join(item.lost),
                *line,
            )
            for item, line, place in zip(
                found, lines(found, self._classes), self._places, strict=False
            )
        )
        with self._db:
            self._db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._not_opened += sum(item.unreadable and item.sha256 is None for item in found)

    def _tell_without_products(self, policy: Policy) -> None:
        if self._product_place is None:
            warnings.warn(without_products(policy), stacklevel=4)

    def _key(self, name: str) -> str:
        """What a row depends on besides its file: its name and its product."""
        column = self._product_place
        _, cells = self._listed.told.get(name, ("", []))
        product = cells[column] if cells and column is not None else ""
        return escaped(name) if not product else f"{escaped(name)}\0{product}"

    def _by_product(self, item: Prediction) -> Prediction:
        """Change the decision if training has not seen the image's product."""
        policy, column = self._policy, self._product_place
        if policy is None or policy.products is None or column is None:
            return item
        _, cells = self._listed.told.get(item.image, ("", []))
        reasons = ("unreadable", "near_black", "not_finite", "audit", "unknown")
        if not cells or cells[column] in policy.products or item.reason in reasons:
            return item
        [likely] = candidates(policy.names, item.probabilities[None])
        return replace(item, action="review", reason="product_unseen", candidates=likely)

    @property
    def _product_place(self) -> int | None:
        """Index of the tables' column of products."""
        columns = self._listed.columns
        name = None if self._policy is None else self._policy.product_column
        return columns.index(name) if name in columns else None

    def check_opened(self, most: float) -> None:
        """Stop early if more files could not be opened than may be unreadable.

        Raises:
            UnreadableError: there are more.
        """
        if self._not_opened > self._allowed(most):
            raise self._too_many(self._not_opened, most, "opened, and the rest was not tried")

    def finish(self, began: float, most: float) -> PredictionSummary:
        """Write the table and remove the folder.

        Args:
            began: `time.perf_counter()` at the start.
            most: share of the files that may be unreadable.

        Raises:
            UnreadableError: more files are unreadable, or all.
        """
        classes = self._db.execute(
            "SELECT label, count(*) FROM rows WHERE label IS NOT NULL "
            "GROUP BY label ORDER BY count(*) DESC, min(position)"
        ).fetchall()
        decided = self._db.execute(
            "SELECT action, reason, count(*) FROM rows "
            "GROUP BY action, reason ORDER BY count(*) DESC, min(position)"
        ).fetchall()
        counts = {(action, reason): number for action, reason, number in decided}
        assert sum(counts.values()) == len(self._names), "a file has no row, or several"
        num_unreadable = counts.get(_UNREADABLE, 0)
        if num_unreadable == len(self._names):
            told = self._first_reasons()
            self._db.close()  # Windows removes no open file
            shutil.rmtree(self.folder)
            raise UnreadableError(
                f"None of {counted(num_unreadable)} can be read ({told}): check the files."
            )
        if num_unreadable > self._allowed(most):
            raise self._too_many(num_unreadable, most, "read")
        held = held_rows(self._db, self._listed, self._policy, self._lot_place, len(self._classes))
        summary = PredictionSummary(
            out=self.out,
            num_images=len(self._names) - num_unreadable,
            num_resumed=len(self._names) - len(self.todo),
            counts=dict(classes),
            decided=held.counted(counts),
            num_unreadable=num_unreadable,
            unreadable=tuple(self._unreadable(_NAMED)),
            lost=self._lost(),
            seconds=time.perf_counter() - began,
            over_budget=held.lots,
        )
        self._place(held)
        self._db.close()  # Windows removes no open file
        shutil.rmtree(self.folder)
        return summary

    def _lost(self) -> dict[str, tuple[int, str]]:
        """Kinds of loss in preprocessing -> number of images, and the first of them."""
        found: dict[str, tuple[int, int]] = {}
        grouped = "SELECT lost, count(*), min(position) FROM rows WHERE lost != '' GROUP BY lost"
        for kinds, number, first in self._db.execute(grouped):
            for kind in kinds.split("\n"):
                before, place = found.get(kind, (0, first))
                found[kind] = before + number, min(place, first)
        return {kind: (number, self._names[place]) for kind, (number, place) in found.items()}

    def _allowed(self, most: float) -> int:
        """Number of files that may be unreadable: the share, rounded up."""
        return math.ceil(most * len(self._names) - 1e-9)

    def _too_many(self, number: int, most: float, what: str) -> UnreadableError:
        return UnreadableError(
            f"{number:,} of {counted(len(self._names), 'file')} cannot be {what} (more than "
            f"--max-unreadable {most:g} allows; {self._first_reasons()}), so no table was written. "
            f"Finished rows are in {self.folder}. {self._way_out()} or accept a table without "
            "these files with --max-unreadable 1."
        )

    def _way_out(self) -> str:
        """Advice for the most frequent kind of reason."""
        away, found = self._db.execute(
            "SELECT count(*) FILTER (WHERE sha256 IS NULL), count(sha256) FROM rows "
            "WHERE action = ? AND reason = ?",
            _UNREADABLE,
        ).fetchone()
        if away >= found:
            return "Bring the files back and give the same command, which continues there,"
        return (
            "Replace damaged files and give the same command, which continues there; convert "
            "files of a kind that the model does not accept, or train a model that does;"
        )

    def _first_reasons(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in self._unreadable(3))

    def _unreadable(self, most: int) -> list[tuple[str, str]]:
        """The first files that cannot be read, each with its reason."""
        query = (
            "SELECT name, note FROM rows WHERE action = ? AND reason = ? ORDER BY position LIMIT ?"
        )
        found = self._db.execute(query, [*_UNREADABLE, most])
        return [(unescaped(key.split("\0")[0]), unescaped(reason)) for key, reason in found]

    def _place(self, held: HeldRows) -> None:
        """Write the table beside the rows and move it to its place."""
        [longest] = self._db.execute("SELECT experts FROM rows ORDER BY experts = '' LIMIT 1")
        num_experts = len(longest[0].split(",")) // len(self._classes) if longest[0] else 0
        stored = self._db.execute("SELECT line, experts FROM rows ORDER BY position")
        table = self.folder / "table.csv"
        told = held.told(map(Line._make, stored))
        header = write_table(table, self._listed, self._classes, num_experts, told)
        if self.out.suffix.lower() == ".parquet":
            numbers = {*NUMBERS, *probability_columns(self._classes)}
            numbers |= set(expert_columns(self._classes, num_experts))
            metadata = table_metadata(self._classes, self._model)
            table = to_parquet(table, header, numbers, metadata)
        _sync(table)
        table.replace(self.out)
        # The new name must be on disk before the rows are removed.
        _sync(self.out.parent)

    def _connect(self) -> sqlite3.Connection:
        """Open the database for this process only; start a new one if it is damaged."""
        db = sqlite3.connect(self.folder / "rows.sqlite", timeout=0)
        try:
            for words in _PREPARE + _TABLES:
                db.execute(words)
            if db.execute("PRAGMA quick_check").fetchone() == ("ok",):
                return db
        except sqlite3.OperationalError as error:
            db.close()
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise DataError(
                f"Another prediction is writing {self.out} at this moment: wait until it ends, or "
                "write to another file."
            ) from None
        except sqlite3.DatabaseError:
            pass
        db.close()
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        return self._connect()

    def _start(self, model: str) -> int | None:
        """Batch size of the interrupted prediction; None if there was none."""
        for schema, known, batch_size in self._db.execute("SELECT * FROM start").fetchall():
            if schema != PARTIAL_SCHEMA:
                raise self._another_version(schema)
            if known != model:
                raise DataError(
                    f"{self.folder} was left by an interrupted prediction with another model, and "
                    f"a table must not mix two. {self._advice}"
                )
            return int(batch_size)
        return None

    def _begin(self, scorer: Scorer) -> int:
        """Remove all rows; return the batch size of the new prediction."""
        size = scorer.batch_size_for(len(self._names))
        with self._db:
            left = self._db.execute("SELECT schema FROM start").fetchall()
            if any(schema != PARTIAL_SCHEMA for (schema,) in left):  # its tables have other columns
                self._db.execute("DROP TABLE rows")
                self._db.execute("DROP TABLE start")
                for words in _TABLES:
                    self._db.execute(words)
            self._db.execute("DELETE FROM rows")
            self._db.execute("DELETE FROM start")
            self._db.execute(
                "INSERT INTO start VALUES (?, ?, ?)", [PARTIAL_SCHEMA, scorer.fingerprint, size]
            )
        return size

    def _take_up(self) -> list[int]:
        """Keep rows of unchanged files, at their new positions; return positions of the others."""
        todo, db = [], self._db
        # Negative positions are not used by any row.
        kept = "UPDATE rows SET position = ? WHERE name = ? AND sha256 IS ?"
        db.execute("CREATE INDEX IF NOT EXISTS by_name ON rows (name)")
        with db, ThreadPoolExecutor(usable_cores()) as pool:
            # Files that could not be opened are tried again.
            db.execute("DELETE FROM rows WHERE sha256 IS NULL")
            for start in range(0, len(self._names), _CHUNK):
                names = self._names[start : start + _CHUNK]
                now = pool.map(content, names)
                for place, name, sha256 in zip(count(start), names, now, strict=False):
                    if not db.execute(kept, (-1 - place, self._key(name), sha256)).rowcount:
                        todo.append(place)
            db.execute("DELETE FROM rows WHERE position >= 0")
            db.execute("UPDATE rows SET position = -1 - position")
            db.execute("DROP INDEX by_name")
        return todo

    @property
    def _advice(self) -> str:
        return f"Start again with --fresh (resume=False), or write to another file than {self.out}."

    def _another_version(self, schema: object) -> DataError:
        return DataError(
            f"{self.folder} was left by another version of recame (schema {schema!r}, this one "
            f"writes {PARTIAL_SCHEMA}), so it cannot be continued. {self._advice}"
        )
