"""Finished rows of a long prediction: kept as they come, taken up after a kill, put in place.

They lie in a database, `<out>.partial/rows.sqlite` beside the table, each with its file's name and
the checksum of what was decoded. A file that could not even be opened has none, and is tried again.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Protocol, Self

from recame.data.decode import Image
from recame.errors import DataError, UnreadableError
from recame.files import _sync
from recame.label_space import LabelSpace
from recame.machine import usable_cores
from recame.names import escaped
from recame.runtime.parquet_table import to_parquet
from recame.runtime.predictor import Prediction
from recame.runtime.table_lines import (
    REASONS,
    cells,
    check_reasons,
    lines,
    unreadable_path,
    write_lines,
)
from recame.runtime.urls import content

PARTIAL_SCHEMA = 5

#: What the versions whose rows are no database (schema 1) left in the folder.
_EARLIER = "identity.json"
_PREPARE = (
    # One process holds the file until it ends, and needs no memory shared with others.
    "PRAGMA locking_mode = EXCLUSIVE",
    # Whole after a power cut, without waiting for the disk at each chunk.
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
)
_TABLES = (
    "CREATE TABLE IF NOT EXISTS start (schema, model, batch_size)",
    # `state` is one of those below, the label of what has none NULL. Names stand `escaped`.
    """CREATE TABLE IF NOT EXISTS rows
    (position INTEGER PRIMARY KEY, name, sha256, label, state, lost, line)""",
)
_DECIDED, _HELD, _UNANSWERED, _UNREADABLE = range(4)
#: Rows that are kept together, at least.
_CHUNK = 256
#: Unreadable files that a summary names.
_NAMED = 20


@dataclass(frozen=True)
class PredictionSummary:
    """What `predict_files` did.

    Attributes:
        out: the table; a text where it is at a URL.
        num_images: images predicted, those of an interrupted start included.
        num_resumed: files that an interrupted start had done.
        counts: images of each predicted class, most frequent first.
        num_review: images that go to review: those that the threshold of the normal class holds
            back, and those without an answer.
        num_unanswered: images for which the model gives no usable numbers.
        num_unreadable: files without a prediction.
        unreadable: the first twenty of them, each with its reason.
        unreadable_path: the table of all of them (`image, reason`), None where there is none.
        lost: what images have lost on their way to the model (`Prediction.lost`): how many of
            them, and the first.
        seconds: of this start.
    """

    out: Path | str
    num_images: int
    num_resumed: int
    counts: dict[str, int]
    num_review: int
    num_unanswered: int
    num_unreadable: int
    unreadable: tuple[tuple[str, str], ...]
    unreadable_path: Path | str | None
    lost: dict[str, tuple[int, str]]
    seconds: float


class Scorer(Protocol):
    """What rows are made by: a `Predictor`, or the nodes of a cluster in its place."""

    label_space: LabelSpace
    fingerprint: str

    def batch_size_for(self, num_images: int) -> int:
        """The batch size that a stream of so many images will have."""
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
    """What an interrupted start left, and what this one adds; a context that holds the lock.

    Args:
        out: the table.
        scorer: whose rows they are.
        names: the files, in the table's order.
        resume: take up what lies there.

    Attributes:
        todo: positions in `names` without a row, or whose file has changed since.
        batch_size: of the start that began, since of a model that is not `steady` other batches
            would round the last digit otherwise.
        chunk: rows that `add` shall be given at once: whole batches.

    Raises:
        DataError: the rows are of another start that still runs, of another model, or of another
            version; or something else bears the name of the table of unreadable files.
    """

    def __init__(self, out: Path, scorer: Scorer, names: Sequence[str], *, resume: bool) -> None:
        check_reasons(unreadable_path(out))
        self.out, self.folder = out, out.with_name(f"{out.name}.partial")
        self._names, self._space = names, scorer.label_space
        if (self.folder / _EARLIER).exists():
            if resume:
                raise self._another_version(1)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._db = self._connect()
        try:
            known = self._start(scorer.fingerprint) if resume else None
            self.batch_size = known or self._begin(scorer)
            self.todo = self._take_up() if known else range(len(names))
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
        """Keep the rows of the next files to do, all or none of them."""
        kept = lines(found, [item.unreadable for item in found], self._space.names)
        rows = (
            (
                place,
                escaped(item.image),
                item.sha256,
                item.label,
                _state(item),
                "\n".join(item.lost),
                line,
            )
            for item, line, place in zip(found, kept, self._places, strict=False)
        )
        with self._db:
            self._db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._not_opened += sum(item.unreadable and item.sha256 is None for item in found)

    def check_opened(self, most: float) -> None:
        """Stop where more files cannot even be opened than may be unreadable: all will be so.

        Raises:
            UnreadableError: there are more.
        """
        if self._not_opened > self._allowed(most):
            raise self._too_many(self._not_opened, most, "opened, and the rest was not tried")

    def finish(self, began: float, most: float) -> PredictionSummary:
        """Put both tables in place, the one of unreadable files first, and take the folder away.

        Args:
            began: `time.perf_counter()` at this start.
            most: share of the files that may be unreadable.

        Raises:
            UnreadableError: there are more, or no file is readable.
        """
        classes = self._db.execute(
            "SELECT label, count(*) FROM rows WHERE label IS NOT NULL "
            "GROUP BY label ORDER BY count(*) DESC, min(position)"
        ).fetchall()
        states = dict(self._db.execute("SELECT state, count(*) FROM rows GROUP BY state"))
        assert sum(states.values()) == len(self._names), "a file has no row, or several"
        num_unreadable = states.get(_UNREADABLE, 0)
        unanswered = states.get(_UNANSWERED, 0)
        if num_unreadable == len(self._names):
            told = self._first_reasons()
            self._db.close()  # Windows removes no open file
            shutil.rmtree(self.folder)
            raise UnreadableError(
                f"None of {num_unreadable} images can be read ({told}): check the files."
            )
        if num_unreadable > self._allowed(most):
            raise self._too_many(num_unreadable, most, "read")
        unreadable = cells(islice(self._stored(readable=False), _NAMED))
        summary = PredictionSummary(
            out=self.out,
            num_images=len(self._names) - num_unreadable,
            num_resumed=len(self._names) - len(self.todo),
            counts=dict(classes),
            num_review=states.get(_HELD, 0) + unanswered,
            num_unanswered=unanswered,
            num_unreadable=num_unreadable,
            unreadable=tuple((name, reason) for name, reason in unreadable),
            unreadable_path=self._place(),
            lost=self._lost(),
            seconds=time.perf_counter() - began,
        )
        self._db.close()  # Windows removes no open file
        shutil.rmtree(self.folder)
        return summary

    def _lost(self) -> dict[str, tuple[int, str]]:
        """What images have lost: how many, and the first of them."""
        found: dict[str, tuple[int, int]] = {}
        grouped = "SELECT lost, count(*), min(position) FROM rows WHERE lost != '' GROUP BY lost"
        for kinds, number, first in self._db.execute(grouped):
            for kind in kinds.split("\n"):
                before, place = found.get(kind, (0, first))
                found[kind] = before + number, min(place, first)
        return {kind: (number, self._names[place]) for kind, (number, place) in found.items()}

    def _allowed(self, most: float) -> int:
        """Files that may be unreadable: the share, rounded up to whole files."""
        return math.ceil(most * len(self._names) - 1e-9)

    def _too_many(self, number: int, most: float, what: str) -> UnreadableError:
        return UnreadableError(
            f"{number:,} of {len(self._names):,} files cannot be {what} (more than "
            f"--max-unreadable {most:g} allows; {self._first_reasons()}): a table of the others "
            f"could pass for the whole. None was written; what is done lies in {self.folder}. "
            f"{self._way_out()} or accept a table without them with --max-unreadable 1."
        )

    def _way_out(self) -> str:
        """What helps against most of the reasons."""
        away, found = self._db.execute(
            "SELECT count(*) FILTER (WHERE sha256 IS NULL), count(sha256) FROM rows "
            "WHERE state = ?",
            [_UNREADABLE],
        ).fetchone()
        if away >= found:
            return "Bring the files back and give the same command, which goes on there,"
        return (
            "Replace the files that are damaged and give the same command, which goes on there; "
            "convert those of a kind that the model does not take, or train one that does;"
        )

    def _first_reasons(self) -> str:
        rows = islice(self._stored(readable=False), 3)
        return "; ".join(f"{name}: {reason}" for name, reason in cells(rows))

    def _place(self) -> Path | None:
        """Write both tables beside the rows and move them in place."""
        table, listed = self.folder / "table.csv", self.folder / "unreadable.csv"
        reasons, classes = unreadable_path(self.out), self._space.names
        [row] = cells([next(self._stored(readable=True))])
        header = ["image", "prediction", "confidence", "decision", "reason"]
        header += [f"p_{c}" for c in classes]
        num_experts = (len(row) - len(header)) // len(classes)
        header += [f"expert{k}_p_{c}" for k in range(num_experts) for c in classes]
        write_lines(table, header, self._stored(readable=True))
        if self.out.suffix.lower() == ".parquet":
            table = to_parquet(table, header)
        _sync(table)
        if next(self._stored(readable=False), None) is None:
            reasons.unlink(missing_ok=True)
        else:
            write_lines(listed, REASONS, self._stored(readable=False))
            _sync(listed)
            listed.replace(reasons)
        table.replace(self.out)
        # Their names too, before the rows go.
        _sync(self.out.parent)
        return reasons if reasons.exists() else None

    def _stored(self, *, readable: bool) -> Iterator[bytes]:
        """Lines of one of the two tables, in order."""
        query = "SELECT line FROM rows WHERE (state = ?) != ? ORDER BY position"
        return (line for (line,) in self._db.execute(query, [_UNREADABLE, readable]))

    def _connect(self) -> sqlite3.Connection:
        """The database, held for this process; begun anew where it is damaged."""
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
                f"Another prediction is writing {self.out} at this moment, and rows of two would "
                "stand in one table: wait until it ends, or write elsewhere."
            ) from None
        except sqlite3.DatabaseError:
            pass
        db.close()
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        return self._connect()

    def _start(self, model: str) -> int | None:
        """Batch size of the start that left rows here; None where none did."""
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
        """Forget what lies here; returns the batch size of what comes."""
        size = scorer.batch_size_for(len(self._names))
        with self._db:
            left = self._db.execute("SELECT schema FROM start").fetchall()
            if any(schema != PARTIAL_SCHEMA for (schema,) in left):  # which made them otherwise
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
        """Keep the rows of files that hold what was decoded, at their places now; the others."""
        todo, db = [], self._db
        # Below 0, where no row stands.
        kept = "UPDATE rows SET position = ? WHERE name = ? AND sha256 IS ?"
        db.execute("CREATE INDEX IF NOT EXISTS by_name ON rows (name)")
        with db, ThreadPoolExecutor(usable_cores()) as pool:
            # What could not be opened is never final.
            db.execute("DELETE FROM rows WHERE sha256 IS NULL")
            for start in range(0, len(self._names), _CHUNK):
                names = self._names[start : start + _CHUNK]
                now = pool.map(content, names)
                for place, name, sha256 in zip(count(start), names, now, strict=False):
                    if not db.execute(kept, (-1 - place, escaped(name), sha256)).rowcount:
                        todo.append(place)
            db.execute("DELETE FROM rows WHERE position >= 0")
            db.execute("UPDATE rows SET position = -1 - position")
            db.execute("DROP INDEX by_name")
        return todo

    @property
    def _advice(self) -> str:
        return f"Start afresh with --fresh (resume=False), or write elsewhere than {self.out}."

    def _another_version(self, schema: object) -> DataError:
        return DataError(
            f"{self.folder} was left by another version of recame (schema {schema!r}, this one "
            f"writes {PARTIAL_SCHEMA}), so it cannot be continued. {self._advice}"
        )


def _state(item: Prediction) -> int:
    if item.unreadable:
        return _UNREADABLE
    if item.label is None:
        return _UNANSWERED
    return _DECIDED if item.decision == item.label else _HELD
