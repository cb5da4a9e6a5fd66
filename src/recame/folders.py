"""Folders written whole or not at all, also where one takes the place of another."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recame.errors import CheckpointError, DataError, RecameError
from recame.files import _beside, _sync, explained, make_folder

#: Digits of a temporary name, and how long a folder of that name is spared: it may still grow.
_DIGITS, _KEEP_PARTIAL_S = 12, 86_400


def folder_of(given: object) -> Path:
    """The folder of a run or a bundle, as a caller gives it.

    Raises:
        CheckpointError: it is not a path, for example a number or None.
    """
    if isinstance(given, str | os.PathLike):
        return Path(os.fspath(given))
    raise CheckpointError(
        f"A model is the folder of a run or of a bundle, but {given!r} is not a path "
        f"({type(given).__name__}). Give a str, a Path, or what recame.train returned."
    )


def is_taken(out: Path) -> bool:
    """Whether something lies at a path that a new folder must not replace."""
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


@contextmanager
def new_folder(
    out: Path,
    *,
    replace: bool = False,
    advice: str = "Check the path, permissions and free space.",
    error: type[RecameError] = DataError,
) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` at the end and vanishes after an error.

    Args:
        out: a path that is not taken.
        replace: what lies there makes room, once the new folder is whole.
        advice: what to do if it cannot be written.
        error: what is raised then.

    Yields:
        An empty folder beside `out`.
    """
    partial = _beside(out.absolute())
    try:
        with explained(out, advice, error):
            make_folder(partial.parent)
            partial.mkdir()
            yield partial
            for path in (*partial.iterdir(), partial):
                _sync(path)
            if out.exists() and replace:
                _change_places(partial, out.absolute())
                return
            if out.exists():
                out.rmdir()
            partial.rename(out)
            _sync(out.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def moved_aside(out: Path) -> Path | None:
    """Where a folder lies that `new_folder` is replacing, or was when its process died."""
    found = {}
    for path in _hidden(out, ".old"):
        with suppress(OSError):  # it has its name back by now
            found[path.stat().st_mtime_ns] = path
    return found[max(found)] if found else None


def restore_folder(out: Path) -> None:
    """Give an `out` back that is missing since a `new_folder` was killed that replaced it."""
    if (old := moved_aside(out)) is not None and not is_taken(out):
        if out.exists():
            out.rmdir()
        old.rename(out.absolute())
        _sync(out.absolute().parent)


def clear_beside(out: Path) -> None:
    """Take away what killed `new_folder`s left of an `out` that is whole.

    What it had replaced goes, and what was not finished a day ago.
    """
    for path in _hidden(out, ".old"):
        shutil.rmtree(path, ignore_errors=True)
    for path in _hidden(out, ".part"):
        with suppress(OSError):
            if path.is_dir() and time.time() - path.stat().st_mtime > _KEEP_PARTIAL_S:
                shutil.rmtree(path)


def _hidden(out: Path, ending: str) -> list[Path]:
    """What `_beside` named for a path, and processes that were killed left there."""
    start = f".{out.absolute().name}."
    with suppress(OSError):
        return [
            path
            for path in out.absolute().parent.iterdir()
            if path.name.startswith(start)
            and path.name.endswith(ending)
            and len(path.name) == len(start) + _DIGITS + len(ending)
        ]
    return []


def _change_places(new: Path, out: Path) -> None:
    """Let a folder take another's name, in one step where the system can; the old one goes."""
    if _exchange(new, out):
        _sync(out.parent)
        if new.is_symlink():
            new.unlink()
        return
    old = new.with_suffix(".old")
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders of one file system; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # an old C library
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    done: int = rename(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return done == 0
