"""Write a table of predictions to a URL: it is made on this machine and sent when complete."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from recame.contracts import AnyPath
from recame.runtime.prediction_summary import PredictionSummary
from recame.runtime.urls import is_url, place_of, plain_path, reached

#: Stores in which a name keeps the old content until the new content is complete.
_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}


def local_table(out: AnyPath) -> Path:
    """Return the local path of a table: its own path, or for a URL one in a local folder (`send`).

    The folder is `<table>.<hash>.sending` in the current folder. It keeps the rows of an
    interrupted prediction until the same command continues it.

    Raises:
        ConfigError: the URL's scheme is unknown, or its package is not installed.
        DataError: the store does not respond.
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
    """Send a finished table to its URL; the summary then names the URL.

    Raises:
        DataError: it cannot be written there; the table stays on this machine.
    """
    if not is_url(out):
        return summary
    url, table = str(out), summary.out
    fs, path = place_of(url)
    with reached(url, "be written", f" The complete table is {table}: copy it from there."):
        _put(fs, table, path)
    shutil.rmtree(Path(table).parent)
    return replace(summary, out=url)


def _put(fs: Any, source: Path | str, path: str) -> None:
    if not _WHOLE.isdisjoint({fs.protocol} if isinstance(fs.protocol, str) else fs.protocol):
        fs.put_file(str(source), path)
        return
    fs.put_file(str(source), f"{path}.part")
    fs.mv(f"{path}.part", path)
