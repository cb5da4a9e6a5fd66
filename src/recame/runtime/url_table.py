"""The table of a prediction at a URL: made here, sent when it is whole."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from recame.contracts import AnyPath
from recame.runtime.prediction_summary import PredictionSummary
from recame.runtime.urls import is_url, place_of, plain_path, reached

#: Stores in which a name leads to the old content until the new one is whole.
_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}


def local_table(out: AnyPath) -> Path:
    """Where a table is to be written: its own path, or for a URL a folder here; see `send`.

    The folder, `<table>.<hash>.sending` where the command is given, keeps an interrupted table's
    rows until the same command goes on.

    Raises:
        ConfigError: a URL's kind is unknown, or what writes it is not installed.
        DataError: nobody answers there.
    """
    if not is_url(out):
        return Path(plain_path(out))
    url = str(out)
    fs, path = place_of(url)
    with reached(url, "be reached"):
        fs.exists(path)
    name = path.rpartition("/")[2]
    folder = Path(f"{name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.sending")
    return folder / name


def send(summary: PredictionSummary, out: AnyPath) -> PredictionSummary:
    """Put a finished table to its URL; tell where it is.

    Raises:
        DataError: it cannot be written there; the table stays here.
    """
    if not is_url(out):
        return summary
    url, table = str(out), summary.out
    fs, path = place_of(url)
    with reached(url, "be written", f" The table is whole in {table}: copy it from there."):
        _put(fs, table, path)
    shutil.rmtree(Path(table).parent)
    return replace(summary, out=url)


def _put(fs: Any, source: Path | str, path: str) -> None:
    if not _WHOLE.isdisjoint({fs.protocol} if isinstance(fs.protocol, str) else fs.protocol):
        fs.put_file(str(source), path)
        return
    fs.put_file(str(source), f"{path}.part")
    fs.mv(f"{path}.part", path)
