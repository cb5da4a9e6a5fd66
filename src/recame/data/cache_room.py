"""Limits the disk space of the caches of decoded images, and removes the oldest first."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from recame.errors import ConfigError, DataError
from recame.files import hold, write_text

#: Most bytes of all caches of a folder together, and their largest share of the disk, if
#: `RECAME_CACHE_LIMIT` is not set.
DEFAULT_LIMIT, DISK_SHARE = 100 * 10**9, 0.25

_USES = "uses.json"
_KEY = re.compile(r"[0-9a-f]{32}")
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_TRIES, _PAUSE_S = 20, 0.05


def cache_folder() -> Path:
    """The folder of decoded images, unless `data.cache_dir` names another."""
    return Path(os.environ.get("RECAME_CACHE") or Path.home() / ".cache" / "recame")


def taken(folder: Path) -> tuple[int, int]:
    """Number of caches in a folder, and their bytes."""
    return sum(1 for _ in folder.glob("*.pixels")), _total(folder)


def clear(folder: Path) -> tuple[int, int]:
    """Remove all caches except those that a process is writing.

    Returns:
        Number of removed caches, and their bytes.

    Raises:
        DataError: the folder cannot be written.
    """
    number, size = taken(folder)
    if number == 0:
        return 0, 0
    with _order(folder) as order:
        if order is None:
            raise DataError(
                f"{folder} cannot be written, or another process holds it, so nothing was removed: "
                "try again, as a user who may write to it."
            )
        _remove_partial(folder, "")
        _remove_first(folder, "", order, over=size)
    left, rest = taken(folder)
    return number - left, size - rest


def note_use(folder: Path, key: str) -> None:
    """Put a cache behind all others in the order of use, and remove the first above the limit.

    The order is kept as an order, in `uses.json`, and not as times: a clock may jump.

    Raises:
        ConfigError: `RECAME_CACHE_LIMIT` is no size.
    """
    limit = cache_limit(folder)
    with _order(folder) as order:
        if order is not None:
            order[:] = [*(other for other in order if other != key), key]
            _remove_first(folder, key, order, over=_total(folder) - limit)


def make_room(folder: Path, key: str, size: int) -> None:
    """Remove the caches that were not used for longest until a new one finds room.

    Args:
        folder: of the caches.
        key: of the new one.
        size: bytes that it needs.

    Raises:
        ConfigError: `RECAME_CACHE_LIMIT` is no size.
    """
    over = _total(folder) + size - cache_limit(folder)
    lacking = size - shutil.disk_usage(folder).free
    with _order(folder) as order:
        if order is not None:
            _remove_partial(folder, key)
            _remove_first(folder, key, order, over=max(over, lacking))


def cache_limit(folder: Path) -> int:
    """Bytes that all caches of a folder may take together.

    Raises:
        ConfigError: `RECAME_CACHE_LIMIT` is no size.
    """
    text = os.environ.get("RECAME_CACHE_LIMIT", "").strip()
    if not text:
        try:
            return min(DEFAULT_LIMIT, int(DISK_SHARE * shutil.disk_usage(folder).total))
        except OSError:
            return DEFAULT_LIMIT
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
    if found is None or found[2].upper() not in _UNITS:
        raise ConfigError(
            f"RECAME_CACHE_LIMIT={text!r} is not a size, so it is unclear how much disk "
            "the decoded images may take: write a number with MB, GB or TB, for example 200GB."
        )
    return round(float(found[1]) * _UNITS[found[2].upper()])


@contextmanager
def _order(folder: Path) -> Iterator[list[str] | None]:
    """The keys in their order of use, to be changed; None where the folder cannot be written."""
    lock = None
    with suppress(OSError, DataError):  # a shared cache may be read-only
        for _ in range(_TRIES):
            if (lock := hold(folder / "uses.lock")) is not None:
                break
            time.sleep(_PAUSE_S)
    if lock is None:
        yield None
        return
    try:
        order = _read_order(folder)
        yield order
        with suppress(OSError, DataError):
            write_text(folder / _USES, json.dumps(order))
    finally:
        lock.close()


def _read_order(folder: Path) -> list[str]:
    try:
        values = json.loads((folder / _USES).read_bytes())
    except (OSError, ValueError):
        return []
    known = values if isinstance(values, list) else []
    return [key for key in known if isinstance(key, str) and _KEY.fullmatch(key)]


def _total(folder: Path) -> int:
    """Bytes of all caches."""
    total = 0
    for path in folder.glob("*.pixels"):
        with suppress(OSError):  # another process has just removed it
            total += path.stat().st_size
    return total


def _remove_first(folder: Path, kept: str, order: list[str], *, over: int) -> None:
    """Remove caches until so many bytes are gone; those that nobody noted first."""
    if over <= 0:
        return
    there = sorted(path.stem for path in folder.glob("*.pixels") if _KEY.fullmatch(path.stem))
    noted = {key: place for place, key in enumerate(order)}
    for key in sorted(there, key=lambda key: noted.get(key, -1)):
        if over <= 0:
            return
        if key == kept:
            continue
        with _unless_made(folder, key) as free:
            if free:
                with suppress(OSError):  # Windows removes nothing that is in use
                    size = (folder / f"{key}.pixels").stat().st_size
                    (folder / f"{key}.pixels").unlink()
                    over -= size
                    (folder / f"{key}.json").unlink(missing_ok=True)
                    order[:] = [other for other in order if other != key]


@contextmanager
def _unless_made(folder: Path, key: str) -> Iterator[bool]:
    """Whether no process makes this cache at the moment; none begins within the block."""
    lock = None
    with suppress(OSError, DataError):
        lock = hold(folder / f"{key}.lock")
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.close()


def _remove_partial(folder: Path, held: str) -> None:
    """Delete what a process that was killed left half-written: nobody makes that cache now."""
    for path in folder.glob(".*.part"):
        key = path.name[1:33]
        if not _KEY.fullmatch(key):
            continue
        with nullcontext(True) if key == held else _unless_made(folder, key) as free:
            if free:
                with suppress(OSError):
                    path.unlink()
