"""The tables of a prediction at URLs: made here, sent when they are whole."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from recame.errors import DataError
from recame.runtime.partial_table import PredictionSummary
from recame.runtime.table_lines import REASONS, unreadable_path
from recame.runtime.urls import is_url, place_of, plain_path, reached

#: Stores in which a name leads to the old content until the new one is whole.
_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}


def local_table(out: Path | str) -> Path:
    """Where a table is to be written: its own path, or for a URL a folder here; see `send`.

    The folder, `<table>.<hash>.sending` where the command is given, keeps an interrupted table's
    rows until the same command goes on.

    Raises:
        ConfigError: a URL's kind is unknown, or what writes it is not installed.
        DataError: nobody answers there, or a list of unreadable files would take another's place.
    """
    if not is_url(out):
        return Path(plain_path(out))
    url = str(out)
    fs, path = place_of(url)
    listed = _reasons(path)
    with reached(url, "be reached"):
        taken = fs.exists(listed) and not fs.cat_file(listed, 0, 100).startswith(
            ",".join(REASONS).encode()
        )
    if taken:
        raise DataError(
            f"{_reasons(url)} is where this prediction would list unreadable files, and it holds "
            "something else, which would be lost: move it, or write the table under another name."
        )
    name = path.rpartition("/")[2]
    folder = Path(f"{name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.sending")
    return folder / name


def send(summary: PredictionSummary, out: Path | str) -> PredictionSummary:
    """Put a finished table, and its list of unreadable files, to their URL; tell where they are.

    Raises:
        DataError: it cannot be written there; the table stays here.
    """
    if not is_url(out):
        return summary
    url, table = str(out), summary.out
    fs, path = place_of(url)
    with reached(url, "be written", f" The table is whole in {table}: copy it from there."):
        if summary.unreadable_path is not None:
            _put(fs, summary.unreadable_path, _reasons(path))
        elif fs.exists(_reasons(path)):
            fs.rm(_reasons(path))
        _put(fs, table, path)
    shutil.rmtree(Path(table).parent)
    listed = None if summary.unreadable_path is None else _reasons(url)
    return replace(summary, out=url, unreadable_path=listed)


def _put(fs: Any, source: Path | str, path: str) -> None:
    if not _WHOLE.isdisjoint({fs.protocol} if isinstance(fs.protocol, str) else fs.protocol):
        fs.put_file(str(source), path)
        return
    fs.put_file(str(source), f"{path}.part")
    fs.mv(f"{path}.part", path)


def _reasons(url: str) -> str:
    """`unreadable_path` of a URL, of which a path would drop a slash."""
    folder, _, name = url.rpartition("/")
    return f"{folder}/{unreadable_path(Path(name))}"
