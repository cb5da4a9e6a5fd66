"""Finished rows of a long prediction: kept as they come, taken up after a kill, put in place.

They lie in a database, `<out>.partial/rows.sqlite` beside the table, each with its file's name and
the checksum of what was decoded.
"""

from __future__ import annotations

import csv
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import numpy as np

from recame.errors import DataError
from recame.files import sha256
from recame.machine import usable_cores
from recame.runtime.predictor import Prediction, Predictor

PARTIAL_SCHEMA = 2

#: What the versions whose rows are no database (schema 1) left in the folder.
_EARLIER = "identity.json"
_PREPARE = (
    # One process holds the file until it ends, and needs no memory shared with others.
    "PRAGMA locking_mode = EXCLUSIVE",
    # Whole after a power cut, without waiting for the disk at each chunk.
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "CREATE TABLE IF NOT EXISTS start (schema, model, batch_size)",
    # The label of an unreadable file is NULL. Names need not be valid text.
    """CREATE TABLE IF NOT EXISTS rows
    (position INTEGER PRIMARY KEY, name, sha256, label, decision, line)""",
)
#: Rows that are kept together, at least.
_CHUNK = 256
#: Unreadable files that a summary names.
_NAMED = 20


@dataclass(frozen=True)
class PredictionSummary:
    """What `predict_files` did.

    Attributes:
        out: the table.
        num_images: images predicted, those of an interrupted start included.
        num_resumed: files that an interrupted start had done.
        counts: images of each predicted class, most frequent first.
        num_review: images that the threshold of the normal class holds back for review.
        num_unreadable: files without a prediction.
        unreadable: the first twenty of them, each with its reason.
        unreadable_path: the table of all of them (`image, reason`), None where there is none.
        seconds: of this start.
    """

    out: Path
    num_images: int
    num_resumed: int
    counts: dict[str, int]
    num_review: int
    num_unreadable: int
    unreadable: tuple[tuple[str, str], ...]
    unreadable_path: Path | None
    seconds: float


class PartialTable:
    """What an interrupted start left, and what this one adds; a context that holds the lock.

    Args:
        out: the table.
        predictor: whose rows they are.
        names: the files, in the table's order.
        resume: take up what lies there.

    Attributes:
        todo: positions in `names` without a row, or whose file has changed since.
        batch_size: of the start that began, since other batches would round the last digit
            otherwise.
        chunk: rows that `add` shall be given at once: whole batches.

    Raises:
        DataError: the rows are of another start that still runs, of another model, or of another
            version; or a file's name cannot stand in the table.
    """

    def __init__(
        self, out: Path, predictor: Predictor, names: Sequence[str], *, resume: bool
    ) -> None:
        _check_names(out, names)
        self.out, self.folder = out, out.with_name(f"{out.name}.partial")
        self._names, self._space = names, predictor.label_space
        if (self.folder / _EARLIER).exists():
            if resume:
                raise self._another_version(1)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._db = self._connect()
        try:
            known = self._start(predictor.fingerprint) if resume else None
            self.batch_size = known or self._begin(predictor)
            self.todo = self._take_up() if known else range(len(names))
        except BaseException:
            self._db.close()
            raise
        self.chunk = self.batch_size * -(-_CHUNK // self.batch_size)
        self._places = iter(self.todo)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, found: Sequence[Prediction]) -> None:
        """Keep the rows of the next files to do, all or none of them."""
        rows = (
            (place, _bytes(item.image), item.sha256, item.label, item.decision, line)
            for item, line, place in zip(found, self._lines(found), self._places, strict=False)
        )
        with self._db:
            self._db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", rows)

    def finish(self, began: float) -> PredictionSummary:
        """Put both tables in place, the one of unreadable files first, and take the folder away.

        Args:
            began: `time.perf_counter()` at this start.

        Raises:
            DataError: no file is readable.
        """
        classes = self._db.execute(
            "SELECT label, count(*), sum(decision != label) FROM rows "
            "GROUP BY label ORDER BY count(*) DESC, min(position)"
        ).fetchall()
        counts = {label: images for label, images, _ in classes if label is not None}
        num_images = sum(counts.values())
        unreadable = _read(islice(self._stored(readable=False), _NAMED))
        summary = PredictionSummary(
            out=self.out,
            num_images=num_images,
            num_resumed=len(self._names) - len(self.todo),
            counts=counts,
            num_review=sum(held or 0 for _, _, held in classes),
            num_unreadable=len(self._names) - num_images,
            unreadable=tuple((name, reason) for name, reason in unreadable),
            unreadable_path=self._place() if counts else None,
            seconds=time.perf_counter() - began,
        )
        self._db.close()  # Windows removes no open file
        shutil.rmtree(self.folder)
        if not counts:
            told = "; ".join(f"{name}: {reason}" for name, reason in summary.unreadable[:3])
            raise DataError(
                f"None of {summary.num_unreadable} images can be read ({told}): check the files."
            )
        return summary

    def _place(self) -> Path | None:
        """Write both tables beside the rows and move them in place."""
        table, listed = self.folder / "table.csv", self.folder / "unreadable.csv"
        unreadable_path = self.out.with_name(f"{self.out.stem}_unreadable.csv")
        classes = self._space.names
        [row] = _read([next(self._stored(readable=True))])
        header = ["image", "prediction", "confidence", "decision", *(f"p_{c}" for c in classes)]
        num_experts = (len(row) - len(header)) // len(classes)
        header += [f"expert{k}_p_{c}" for k in range(num_experts) for c in classes]
        _write(table, header, self._stored(readable=True))
        if self.out.suffix.lower() == ".parquet":
            table = _to_parquet(table, header)
        _sync(table)
        if next(self._stored(readable=False), None) is None:
            unreadable_path.unlink(missing_ok=True)
        else:
            _write(listed, ["image", "reason"], self._stored(readable=False))
            listed.replace(unreadable_path)
        table.replace(self.out)
        return unreadable_path if unreadable_path.exists() else None

    def _stored(self, *, readable: bool) -> Iterator[bytes]:
        """Lines of one of the two tables, in order."""
        query = "SELECT line FROM rows WHERE (label IS NOT NULL) = ? ORDER BY position"
        return (line for (line,) in self._db.execute(query, [readable]))

    def _connect(self) -> sqlite3.Connection:
        """The database, held for this process; begun anew where it is damaged."""
        db = sqlite3.connect(self.folder / "rows.sqlite", timeout=0)
        try:
            for words in _PREPARE:
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

    def _begin(self, predictor: Predictor) -> int:
        """Forget what lies here; returns the batch size of what comes."""
        size = predictor.batch_size_for(len(self._names))
        with self._db:
            self._db.execute("DELETE FROM rows")
            self._db.execute("DELETE FROM start")
            self._db.execute(
                "INSERT INTO start VALUES (?, ?, ?)", [PARTIAL_SCHEMA, predictor.fingerprint, size]
            )
        return size

    def _take_up(self) -> list[int]:
        """Keep the rows of files that hold what was decoded, at their places now; the others."""
        todo, db = [], self._db
        # Below 0, where no row stands.
        kept = "UPDATE rows SET position = ? WHERE name = ? AND sha256 IS ?"
        db.execute("CREATE INDEX IF NOT EXISTS by_name ON rows (name)")
        with db, ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(self._names), _CHUNK):
                names = self._names[start : start + _CHUNK]
                now = pool.map(_content, names)
                for place, name, content in zip(count(start), names, now, strict=False):
                    if not db.execute(kept, (-1 - place, _bytes(name), content)).rowcount:
                        todo.append(place)
            db.execute("DELETE FROM rows WHERE position >= 0")
            db.execute("UPDATE rows SET position = -1 - position")
            db.execute("DROP INDEX by_name")
        return todo

    def _lines(self, found: Sequence[Prediction]) -> list[bytes]:
        """The line of either table for each file."""
        values = [
            item.probabilities
            if item.expert_probabilities is None
            else np.concatenate([item.probabilities, item.expert_probabilities.ravel()])
            for item in found
            if item.label is not None
        ]
        # Shortest text that reads back as the same float32.
        texts = iter(np.asarray(values, np.float32).astype(str).tolist())
        numbers = [[] if item.label is None else next(texts) for item in found]
        words = _csv(
            [item.image, str(item.error)]
            if item.label is None
            else [item.image, item.label, row[self._space.names.index(item.label)], item.decision]
            for item, row in zip(found, numbers, strict=True)
        )
        # A CSV writer looks at each character; numbers need no quotes.
        return [
            _bytes(",".join([line[:-1], *row]) + "\n")
            for line, row in zip(words, numbers, strict=True)
        ]

    @property
    def _advice(self) -> str:
        return f"Start afresh with --fresh (resume=False), or write elsewhere than {self.out}."

    def _another_version(self, schema: object) -> DataError:
        return DataError(
            f"{self.folder} was left by another version of recame (schema {schema!r}, this one "
            f"writes {PARTIAL_SCHEMA}), so it cannot be continued. {self._advice}"
        )


def _content(name: str) -> str | None:
    """Checksum of what the file holds now; None where it cannot be read."""
    try:
        return sha256(Path(name))
    except OSError:
        return None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _read(lines: Iterable[bytes]) -> Iterator[list[str]]:
    return csv.reader(line.decode("utf-8", "surrogateescape") for line in lines)


def _csv(rows: Iterable[Sequence[str]]) -> list[str]:
    """A line a row."""
    lines: list[str] = []
    # A writer writes each row at once.
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\n").writerows(rows)
    return lines


def _write(path: Path, header: Sequence[str], lines: Iterable[bytes]) -> None:
    with path.open("wb") as stream:
        stream.writelines(chain(map(_bytes, _csv([header])), lines))


def _check_names(out: Path, names: Sequence[str]) -> None:
    """Refuse, before any work, file names that the table's format cannot hold."""
    if out.suffix.lower() != ".parquet":
        return
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise DataError(
                f"The name of {shown} is no UTF-8, and Parquet holds no other text: rename the "
                "file, or write a .csv table."
            ) from None


def _to_parquet(table: Path, header: Sequence[str]) -> Path:
    """Convert the finished CSV block by block, in constant memory."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    texts = {"image", "prediction", "decision"}
    types = {name: pa.string() if name in texts else pa.float32() for name in header}
    # As evaluation's tables say it, so that one reader serves both.
    schema = pa.schema(list(types.items()), metadata={b"recame.schema": b"1"})
    target = table.with_suffix(".parquet")
    reader = arrow_csv.open_csv(
        table,
        # A class may be called "NA".
        convert_options=arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
    )
    with reader, parquet.ParquetWriter(target, schema) as writer:
        for block in reader:
            writer.write_table(pa.Table.from_batches([block]).cast(schema))
    return target


def _sync(path: Path) -> None:
    """Bring a finished file to the disk before it takes its name."""
    with path.open("r+b") as stream:  # Windows syncs no file that cannot be written
        os.fsync(stream.fileno())
