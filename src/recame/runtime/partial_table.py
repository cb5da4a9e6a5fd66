"""Finished rows of a long prediction on disk: appended, taken up after a kill, put in place.

They lie in `<out>.partial/` beside the table: readable images in one file, unreadable ones in
another, and whose they are (model, files, batch size) in a third.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from recame.errors import DataError
from recame.files import hold
from recame.runtime.predictor import Prediction, Predictor

PARTIAL_SCHEMA = 1

_ROWS, _UNREADABLE, _IDENTITY = "rows.csv", "unreadable.csv", "identity.json"
_LOCK = "lock"
#: Rows between two flushes, at least.
_CHUNK = 256
#: Unreadable files that are remembered by name.
_NAMED = 20


class PartialTable:
    """The folder of finished rows: what an interrupted start left, and what this one adds."""

    def __init__(self, out: Path, predictor: Predictor, batch_size: int, held: IO[bytes]) -> None:
        self.out, self.folder = out, _partial_folder(out)
        self.batch_size = batch_size
        self.chunk = batch_size * -(-_CHUNK // batch_size)
        self.num_resumed = self.num_images = self.num_review = self.num_unreadable = 0
        self.counts: Counter[str] = Counter()
        self.unreadable: list[tuple[str, str]] = []
        self._normal = predictor.label_space.normal
        self._names = predictor.label_space.names
        self._header: list[str] | None = None
        self._rows: IO[bytes] | None = None
        self._broken: IO[bytes] | None = None
        self._held: IO[bytes] | None = held

    @classmethod
    def open(
        cls, out: Path, predictor: Predictor, names: Sequence[str], *, resume: bool
    ) -> PartialTable:
        """Take up what an interrupted start left, or begin.

        Raises:
            DataError: the folder is another's: of another start that still runs, or of another
                model or other files; or a file's name cannot stand in the table.
        """
        _check_names(out, names)
        folder = _partial_folder(out)
        folder.mkdir(parents=True, exist_ok=True)
        held = hold(folder / _LOCK)
        if held is None:
            raise DataError(
                f"Another prediction is writing {out} at this moment, and rows of two would stand "
                "in one table: wait until it ends, or write elsewhere."
            )
        try:
            return cls._begin(out, folder, predictor, names, held, resume=resume)
        except BaseException:
            held.close()
            raise

    @classmethod
    def _begin(
        cls,
        out: Path,
        folder: Path,
        predictor: Predictor,
        names: Sequence[str],
        held: IO[bytes],
        *,
        resume: bool,
    ) -> PartialTable:
        identity = {
            "schema": PARTIAL_SCHEMA,
            "model": predictor.fingerprint,
            "num_files": len(names),
            "files": _digest(names),
        }
        known = _read_identity(folder / _IDENTITY) if resume else None
        if known is not None:
            _check_same(folder, out, known, identity)
            # Other batches would round the last digit otherwise.
            partial = cls(out, predictor, int(known["batch_size"]), held)
            partial._take_up(names)
            return partial
        partial = cls(out, predictor, predictor.batch_size_for(len(names)), held)
        for name in (_ROWS, _UNREADABLE):
            (folder / name).open("wb").close()
        text = json.dumps({**identity, "batch_size": partial.batch_size})
        unfinished = folder / f"{_IDENTITY}.tmp"
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(folder / _IDENTITY)
        return partial

    def __enter__(self) -> Self:
        self._rows = (self.folder / _ROWS).open("ab")
        self._broken = (self.folder / _UNREADABLE).open("ab")
        return self

    def __exit__(self, error: object, *_: object) -> None:
        assert self._rows is not None
        assert self._broken is not None
        try:
            self._rows.close()
        finally:
            self._broken.close()
            if error is not None:
                self.let_go()

    def let_go(self) -> None:
        """Allow other starts; what is finished stays."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def remove(self) -> None:
        """Take the folder away."""
        self.let_go()  # Windows removes no open file
        shutil.rmtree(self.folder)

    def add(self, found: Sequence[Prediction]) -> None:
        """Write one chunk."""
        assert self._rows is not None
        assert self._broken is not None
        readable = [item for item in found if item.error is None]
        rows = self._table_rows(readable)
        if rows and self._header is None:
            self._header = _header(self._names, readable[0])
            rows.insert(0, self._header)
        broken = [[item.image, str(item.error)] for item in found if item.error is not None]
        for label, decision in ((str(item.label), item.decision) for item in readable):
            self._count(label, decision)
        self._count_unreadable(broken)
        self._rows.write(_csv(rows))
        self._rows.flush()
        self._broken.write(_csv(broken))
        self._broken.flush()

    def finish(self) -> Path | None:
        """Put both tables in place; the table of unreadable files first, the folder away last."""
        try:
            return self._finish()
        finally:
            self.let_go()

    def _finish(self) -> Path | None:
        unreadable_path = self.out.with_name(f"{self.out.stem}_unreadable.csv")
        rows = self.folder / _ROWS
        if self.out.suffix.lower() == ".parquet":
            rows = _to_parquet(rows, self._header or [])
        _sync(rows)
        if self.num_unreadable:
            listed = self.folder / f"{_UNREADABLE}.tmp"
            with listed.open("wb") as stream, (self.folder / _UNREADABLE).open("rb") as source:
                stream.write(_csv([["image", "reason"]]))
                shutil.copyfileobj(source, stream)
            listed.replace(unreadable_path)
        else:
            unreadable_path.unlink(missing_ok=True)
        rows.replace(self.out)
        self.remove()
        return unreadable_path if self.num_unreadable else None

    def _table_rows(self, readable: Sequence[Prediction]) -> list[list[str]]:
        if not readable:
            return []
        # Shortest text that reads back as the same float32.
        values = np.stack([item.probabilities for item in readable])
        if readable[0].expert_probabilities is not None:
            experts = [item.expert_probabilities for item in readable]
            values = np.concatenate([values, np.stack(experts).reshape(len(values), -1)], axis=1)  # type: ignore[arg-type]
        texts = values.astype(np.float32).astype(str).tolist()
        return [
            [
                item.image,
                str(item.label),
                row[self._names.index(str(item.label))],
                item.decision,
                *row,
            ]
            for item, row in zip(readable, texts, strict=True)
        ]

    def _count(self, label: str, decision: str) -> None:
        self.num_images += 1
        self.counts[label] += 1
        self.num_review += label == self._normal and decision != label

    def _count_unreadable(self, broken: Sequence[Sequence[str]]) -> None:
        self.num_unreadable += len(broken)
        room = _NAMED - len(self.unreadable)
        self.unreadable += [(name, reason) for name, reason in broken[:room]]

    def _take_up(self, names: Sequence[str]) -> None:
        """Keep the whole batches that both files hold for the first names, and cut the rest."""
        paths = (self.folder / _ROWS, self.folder / _UNREADABLE)
        # First pass: how many of the first names have their row. Second: count and cut there.
        whole = sum(1 for _ in self._matched(paths, names))
        keep = whole if whole == len(names) else whole - whole % self.batch_size
        ends = [0, 0]
        for which, end, row in islice(self._matched(paths, names), keep):
            ends[which] = end
            if which == 0:
                self._count(row[1], row[3])
            else:
                self._count_unreadable([row])
        self.num_resumed = keep
        if not ends[0]:
            self._header = None
        for path, end in zip(paths, ends, strict=True):
            if path.exists():
                os.truncate(path, end)
            else:
                path.open("wb").close()

    def _matched(
        self, paths: tuple[Path, Path], names: Sequence[str]
    ) -> Iterator[tuple[int, int, list[str]]]:
        """For each of the first names: the file (0 or 1) that has its row, where it ends, it."""
        streams = [_rows_with_ends(path) for path in paths]
        header = next(streams[0], None)
        self._header = header[0] if header is not None else None
        widths = (len(self._header or []), 2)
        waiting = [next(stream, None) for stream in streams]
        for name in names:
            for which in (0, 1):
                item = waiting[which]
                if item is not None and len(item[0]) == widths[which] and item[0][0] == name:
                    yield which, item[1], item[0]
                    waiting[which] = next(streams[which], None)
                    break
            else:
                return


def _partial_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _header(names: Sequence[str], first: Prediction) -> list[str]:
    experts = 0 if first.expert_probabilities is None else len(first.expert_probabilities)
    return [
        *("image", "prediction", "confidence", "decision"),
        *(f"p_{name}" for name in names),
        *(f"expert{k}_p_{name}" for k in range(experts) for name in names),
    ]


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # A file's name need not be valid text.
    return text.getvalue().encode("utf-8", "surrogateescape")


def _rows_with_ends(path: Path) -> Iterator[tuple[list[str], int]]:
    """The whole rows of a CSV file with the position behind each; quoted line ends are minded."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        end, pending = 0, b""
        for line in stream:
            end += len(line)
            pending += line
            if not pending.endswith(b"\n"):
                return
            if pending.count(b'"') % 2:
                continue
            text = pending.decode("utf-8", "surrogateescape")
            pending = b""
            yield next(csv.reader(io.StringIO(text, newline="")), []), end


def _digest(names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _read_identity(path: Path) -> dict[str, Any] | None:
    """Whose rows the folder holds; None where it holds none that could be used."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(known, dict) or int(known.get("batch_size", 0)) < 1:
        return None
    return known


def _check_same(folder: Path, out: Path, known: dict[str, Any], identity: dict[str, Any]) -> None:
    advice = f"Start afresh with --fresh (resume=False), or write elsewhere than {out}."
    if known.get("schema") != PARTIAL_SCHEMA:
        raise DataError(
            f"{folder} was left by another version of recame (schema {known.get('schema')!r}, "
            f"this one writes {PARTIAL_SCHEMA}), so it cannot be continued. {advice}"
        )
    if known.get("model") != identity["model"]:
        raise DataError(
            f"{folder} was left by an interrupted prediction with another model, and a table must "
            f"not mix two. {advice}"
        )
    if known.get("files") != identity["files"]:
        raise DataError(
            f"{folder} was left by an interrupted prediction of other files "
            f"({known.get('num_files')} then, {identity['num_files']} now), so it cannot be "
            f"continued. Name the same images, or: {advice}"
        )


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


def _to_parquet(rows: Path, header: Sequence[str]) -> Path:
    """Convert the finished CSV block by block, in constant memory."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    texts = {"image", "prediction", "decision"}
    types = {name: pa.string() if name in texts else pa.float32() for name in header}
    # As evaluation's tables say it, so that one reader serves both.
    fields = [pa.field(name, kind) for name, kind in types.items()]
    schema = pa.schema(fields, metadata={b"recame.schema": b"1"})
    target = rows.with_suffix(".parquet")
    reader = arrow_csv.open_csv(
        rows,
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
