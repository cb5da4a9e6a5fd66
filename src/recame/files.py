"""Writes files and folders whole or not at all, locks them, reads them and hashes them."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from recame.errors import CheckpointError, DataError, RecameError

if TYPE_CHECKING:  # `recame --help` comes by here
    import pandas as pd
    from filelock import BaseFileLock

#: Errors of the system that a user can remove; any other is a bug and keeps its traceback.
_MENDABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG),
}
#: Errors of file systems without locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_PARTIAL = ".part"
#: What Windows refuses in a name, `%`, which stands for them, and a dot or blank at the end.
_NO_NAME = re.compile(r'[<>:"/\\|?*%\x00-\x1f\x7f]|[. ]$|^$')
#: What Windows keeps for devices, with any suffix and in any case.
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\.|$)", re.IGNORECASE
)
_CONTINUE = "Free space or choose another folder with --out, then continue with --resume."


@contextmanager
def explained(path: Path, advice: str, error: type[RecameError] = DataError) -> Iterator[None]:
    """Turn errors of a full disk, missing permission or a blocked path into a message with advice.

    Args:
        path: what is written in the block.
        advice: what to do, a sentence.
        error: what is raised.
    """
    try:
        yield
    except OSError as reason:
        if reason.errno is not None and reason.errno not in _MENDABLE:
            raise
        raise error(
            f"{path} cannot be written ({reason.strerror or reason}), so this result would be "
            f"lost. {advice}"
        ) from reason


@contextmanager
def write_whole(
    path: Path, *, advice: str = _CONTINUE, error: type[RecameError] = DataError
) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes its name once it is whole and on the disk.

    After an error, or if the machine stops at any moment, an older file is still there.

    Args:
        path: its folder is made when missing.
        advice: what to do if it cannot be written.
        error: what is raised then.

    Raises:
        RecameError: the disk is full, or the place cannot be written.
    """
    partial = _beside(path)
    try:
        with explained(path, advice, error):
            make_folder(path.parent)
            yield partial
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    finally:
        with suppress(OSError):  # the first error tells it
            partial.unlink(missing_ok=True)


def write_bytes(
    path: Path, content: bytes, *, advice: str = _CONTINUE, error: type[RecameError] = DataError
) -> None:
    """Write a file, whole or not at all; arguments as of `write_whole`."""
    with write_whole(path, advice=advice, error=error) as partial:
        partial.write_bytes(content)


def write_text(
    path: Path, text: str, *, advice: str = _CONTINUE, error: type[RecameError] = DataError
) -> None:
    """Write UTF-8, whole or not at all; arguments as of `write_whole`."""
    write_bytes(path, text_bytes(text), advice=advice, error=error)


def text_bytes(text: str) -> bytes:
    """UTF-8; invalid characters, as in some file names, become escapes that JSON knows."""
    return text.encode(errors="backslashreplace")


def write_json(
    path: Path, values: object, *, advice: str = _CONTINUE, error: type[RecameError] = DataError
) -> None:
    """Write JSON, whole or not at all; arguments as of `write_whole`."""
    write_text(path, json_text(values), advice=advice, error=error)


def json_text(values: object) -> str:
    """Values as the JSON of a file that people read too."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, ready for JSON: plain Python values, None for missing ones."""
    import numpy as np

    plain = table.astype(object).where(table.notna(), None)
    return [
        {
            str(key): value.item() if isinstance(value, np.generic) else value
            for key, value in row.items()
        }
        for row in plain.to_dict("records")
    ]


def csv_text(table: pd.DataFrame, *, index: bool = True, float_format: str | None = None) -> str:
    """A table as CSV whose rows are read back as they were; arguments as of `DataFrame.to_csv`.

    A carriage return in a cell splits its row unless the cell is quoted, and a CSV writer may quote
    only what ends its own lines.
    """

    def written(quoting: Literal[0, 2]) -> str:
        return table.to_csv(
            index=index, float_format=float_format, lineterminator="\n", quoting=quoting
        )

    text = written(csv.QUOTE_MINIMAL)
    return written(csv.QUOTE_NONNUMERIC) if "\r" in text else text


@contextmanager
def write_together(
    folder: Path, *, advice: str = _CONTINUE, error: type[RecameError] = DataError
) -> Iterator[Path]:
    """Give an empty folder; its files take their places in `folder` once all are on the disk.

    Files of other names stay. Arguments and errors as of `write_whole`.
    """
    partial = folder / _beside(folder).name
    try:
        with explained(folder, advice, error):
            make_folder(folder)
            partial.mkdir()
            yield partial
            written = sorted(partial.iterdir())
            for path in written:
                _sync(path)
            for path in written:
                path.replace(folder / path.name)
            _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class Hold:
    """A lock file that this process holds, until `close` or until the process ends, however.

    Beside it lies a note of who holds it, for the message that the others get.
    """

    def __init__(self, lock: BaseFileLock, path: Path) -> None:
        self._lock, self._note = lock, _note(path)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        values = {"pid": os.getpid(), "host": platform.node(), "since": since}
        with suppress(OSError):  # the lock holds without it
            self._note.write_text(json_text(values), encoding="utf-8")

    def close(self) -> None:
        """Let go."""
        with suppress(OSError):
            self._note.unlink(missing_ok=True)
        self._lock.release(force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hold(path: Path, *, wait_s: float = 0.0) -> Hold | None:
    """Hold a lock file; the lock of a dead process does not count.

    On a file system without locks, the existence of a file is the lock; if a killed process of this
    machine left it, it is taken over.

    Args:
        path: of the file, made where it is missing, as is its folder.
        wait_s: how long to wait for another to let go.

    Returns:
        None if another holds it.

    Raises:
        DataError: the file cannot be made there.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    with explained(path, "recame needs this file: check the permissions and free space there."):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: BaseFileLock = FileLock(path, thread_local=False)
        try:
            try:
                lock.acquire(timeout=wait_s)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                lock = SoftFileLock(path.with_name(f"{path.name}.held"), thread_local=False)
                lock.acquire(timeout=max(wait_s, 1.0))  # a dead holder's is removed at the first
        except Timeout:
            return None
        return Hold(lock, path)


def holder(path: Path) -> str:
    """Who holds a lock file that `hold` did not give, as far as its note tells."""
    try:
        note = json.loads(_note(path).read_bytes())
        return f"process {note['pid']} on {note['host']}, since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def held(
    path: Path, what: str, advice: str, *, wait_s: float = 0.0, error: type[RecameError] = DataError
) -> Iterator[None]:
    """Hold a lock file for a block.

    Args:
        path: as of `hold`.
        what: what two at once would spoil, as the message begins.
        advice: what to do, a sentence.
        wait_s: how long to wait for another to let go.
        error: what is raised.

    Raises:
        RecameError: another holds it; says which process, and on which machine.
    """
    mine = hold(path, wait_s=wait_s)
    if mine is None:
        raise error(
            f"{what} is in use by {holder(path)}, and two processes at once would mix their "
            f"results. {advice}"
        )
    with mine:
        yield


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def read_json(
    path: Path,
    *,
    newest: int | None = None,
    advice: str = "It was edited or damaged: take it again from where it was written.",
    error: type[RecameError] = CheckpointError,
) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        newest: the newest `schema` that this version reads; None: it has none.
        advice: what to do with a damaged file.
        error: what is raised.

    Raises:
        RecameError: the file cannot be opened, holds no JSON object, or is of a newer schema.
    """
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}, not an object")
    except (OSError, ValueError, TypeError, RecursionError) as reason:
        raise error(f"{path} cannot be read as JSON ({reason}). {advice}") from reason
    schema = values.get("schema")
    if newest is not None and (not isinstance(schema, int) or schema > newest):
        raise error(
            f"{path} has schema {schema!r}; this version reads up to {newest}. "
            "Update recame: pip install -U recame"
        )
    return values


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read; a pipe or a device, which may never end, is refused and not waited for.

    Raises:
        OSError: it cannot be opened, or is no file.
    """

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    stream = open(path, "rb", opener=without_waiting)  # noqa: SIM115 - Path has no opener
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return stream


def file_name(text: str) -> str:
    """A name of a split, data set or product as the name of a file that every system can have.

    Nearly all names stay as they are. What Windows refuses becomes `%` and its code in hex; two
    texts never share a name.

    Examples:
        >>> file_name("test"), file_name("lot 7: left"), file_name("CON"), file_name("..")
        ('test', 'lot 7%3A left', '%43ON', '.%2E')
    """
    name = _NO_NAME.sub(lambda found: f"%{ord(found[0]):02X}" if found[0] else "%", text)
    return f"%{ord(name[0]):02X}{name[1:]}" if _DEVICE.match(name) else name


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_partial(folder: Path, name: str = "*") -> None:
    """Remove what killed processes had begun of files that nobody else writes now.

    Args:
        folder: where they lie.
        name: of the file that it was to become; `*`: all.
    """
    for path in folder.glob(f".{name}.*{_PARTIAL}"):
        if path.is_symlink():  # nobody here makes links
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """Take a file's whole size on the disk now.

    A process that writes to a memory map whose disk is full by then would be killed.

    Args:
        path: of a file that exists.
        size: bytes.

    Raises:
        OSError: the disk is full.
    """
    if sys.platform != "win32":
        try:
            with path.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
        else:
            return
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing, and let their names reach the disk.

    What is synced below a folder whose own name was not could be lost with it.
    """
    path = path.absolute()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync(folder.parent)


def _beside(path: Path) -> Path:
    """A new name in the same folder, so that taking the final name is one step."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{_PARTIAL}")


def _sync(path: Path) -> None:
    """Let a file's content, or a folder's entries, reach the disk."""
    if sys.platform == "win32" and path.is_dir():  # which opens no folder
        return
    # Windows syncs no file that cannot be written.
    number = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
