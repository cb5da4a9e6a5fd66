"""A folder of a set that is written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recame.errors import DataError


def is_taken(out: Path) -> bool:
    """Whether something lies at a path that a new folder must not replace."""
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` at the end and vanishes after an error.

    Args:
        out: a path that is not taken.

    Yields:
        An empty folder beside `out`.

    Raises:
        DataError: `out` cannot be written.
    """
    partial = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.replace(out)
    except OSError as error:
        raise DataError(
            f"The set cannot be written to {out} ({error}): check the path, rights and free space."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; put it in place only if the block succeeds.

    Raises:
        DataError: the disk is full or the folder cannot be written; the old file survives.
    """
    partial = path.with_name(f".{path.name}.tmp")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise DataError(
            f"{path} cannot be written ({error.strerror}), so this result would be lost. "
            "Free space or choose another folder with --out, then continue with --resume."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, values: object) -> None:
    """Write JSON, whole or not at all."""
    with writing(path) as partial:
        partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
