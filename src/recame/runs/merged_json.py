"""JSON files to which several processes add: `metrics.json`, `phases.json`, `decisions.json`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recame.files import held, read_json, remove_partial, write_json

#: How long a process waits for another that adds to a file of the same folder.
_WRITING_S = 60.0

_DAMAGED = (
    "It was edited or damaged: restore it from a copy of the run, or remove it; figures of other "
    "splits in it are then lost until you evaluate them again."
)


@contextmanager
def adding_to(path: Path) -> Iterator[None]:
    """Keep other processes from adding to a file, for a block that reads, changes and writes it.

    Args:
        path: the file; its folder has one lock for all such files.

    Raises:
        DataError: another process has been writing for a minute, says which; or the folder cannot
            be written.
    """
    lock, advice = path.parent / ".writing.lock", "Call again when it has ended."
    with held(lock, str(path), advice, wait_s=_WRITING_S):
        remove_partial(path.parent, path.name)
        yield


def merge_json(path: Path, values: dict[str, Any]) -> None:
    """Merge top-level keys into a JSON file; two processes keep each other's.

    Args:
        path: in the run's folder; made where it is missing.
        values: take the place of the keys of the same names.

    Raises:
        CheckpointError: the file is damaged.
        DataError: another process has been writing for a minute, or the disk is full.
    """
    with adding_to(path):
        old = read_json(path, advice=_DAMAGED) if path.exists() else {}
        write_json(path, {**old, **values})
