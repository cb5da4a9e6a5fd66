"""The file behind a name that may ask for a part of it, as `lot/7.tif#2`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from recame.data.file_part import readings
from recame.data.image_file import open_named
from recame.data.tiff import count_pages
from recame.files import open_regular


def file_state(name: str) -> os.stat_result:
    """Size and times of the file that a name leads to.

    Raises:
        OSError: there is none.
    """
    try:
        return os.stat(name)  # noqa: PTH116 (100,000 Path objects would take a second)
    except FileNotFoundError:
        for file, _ in list(readings(name))[1:]:
            with contextlib.suppress(FileNotFoundError):
                return os.stat(file)  # noqa: PTH116
        raise


def content_sha256(path: Path) -> str:
    """SHA-256 of the whole file that a name leads to, 64 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    stream, _ = open_named(path)
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pages_of(path: Path) -> int:
    """Pages of a TIFF; 1 for any other file, and for one that cannot be opened."""
    try:
        with open_regular(path) as stream:
            is_tiff = stream.read(4) in (b"II*\0", b"MM\0*", b"II+\0")
            return max(1, count_pages(stream)) if is_tiff else 1
    except (OSError, ValueError):
        return 1
