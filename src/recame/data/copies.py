"""Finds copies: files with equal bytes, which belong in one split and can have only one label."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pandas as pd

from recame.data.cache import ImageCache
from recame.data.file_part import readings
from recame.data.paged_file import content_sha256, file_state
from recame.files import open_regular
from recame.names import by_number, counted, printable

#: What is read of a file at its start, in its middle and at its end before all of it is read.
_PIECE_BYTES = 4096
#: Most files that are read at once; they wait for the disk, or a server.
_AT_ONCE = 16
#: Examples that a warning names.
_NAMED = 2

#: Name of a file, the part that is asked for, size (bytes; -1: there is none) and time of change.
_Known = tuple[str, str, int, int]


def copies_of(table: pd.DataFrame) -> pd.Series | None:
    """A number for the content of each row's file, the same for copies; None if there are none.

    Only files of one size are opened, and read as a whole only if pieces of them are equal. Empty
    files and those that cannot be read are no copies of each other.

    Args:
        table: column `path`, or none, if nothing is known of the files.

    Returns:
        (N,) whole numbers, with the index of the table.
    """
    if "path" not in table:
        return None
    numbers = _numbers(tuple(_known(str(path)) for path in table["path"]))
    return None if numbers is None else pd.Series(numbers, table.index, name="content")


def _known(name: str) -> _Known:
    file, part = _file_of(name)
    try:
        state = file_state(file)
    except (OSError, ValueError):
        return file, part, -1, 0
    return file, part, state.st_size, state.st_mtime_ns


def _file_of(name: str) -> tuple[str, str]:
    """The file that a name leads to, and the part of it in words; empty for the whole file."""
    if "#" in name:
        for file, part in readings(name):
            if os.path.lexists(file):
                return file, str(part)
    return name, ""


@lru_cache(maxsize=1)  # a run draws its splits several times from the same files
def _numbers(files: tuple[_Known, ...]) -> tuple[int, ...] | None:
    key: dict[str, Hashable] = {file: (file if size <= 0 else size) for file, _, size, _ in files}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for read in (_pieces, _whole):
            often = Counter(key.values())
            alike = [file for file, known in key.items() if often[known] > 1]
            for file, digest in zip(alike, pool.map(_reading(read), alike), strict=True):
                key[file] = (key[file], digest)
    codes: dict[Hashable, int] = {}
    numbers = tuple(codes.setdefault((key[file], part), len(codes)) for file, part, *_ in files)
    return numbers if len(codes) < len(numbers) else None


def _reading(read: Callable[[str], bytes]) -> Callable[[str], bytes | str]:
    """A function that gives a file's own name where it cannot be read."""

    def of(file: str) -> bytes | str:
        try:
            return read(file)
        except (OSError, ValueError):
            return file

    return of


def _pieces(file: str) -> bytes:
    digest = hashlib.blake2b()
    with open_regular(Path(file)) as stream:
        size = os.fstat(stream.fileno()).st_size
        for place in sorted({0, max(0, size // 2), max(0, size - _PIECE_BYTES)}):
            stream.seek(place)
            digest.update(stream.read(_PIECE_BYTES))
    return digest.digest()


def _whole(file: str) -> bytes:
    return content_sha256(Path(file)).encode()


def tell_copies(table: pd.DataFrame, cache: ImageCache) -> None:
    """Warn of copies that are in two splits, and of copies with different labels.

    Args:
        table: `image`, `path`, `label`, `split` and `row` of readable images.
        cache: their decoded pixels, with the hashes of the files' contents.
    """
    parts = (_file_of(str(path))[1] for path in table["path"])
    digests = (cache.digests[row] for row in table["row"])
    content = pd.Series(list(map("{}{}".format, digests, parts)), table.index)
    repeated = content.duplicated(keep=False)
    if repeated.any():
        copies = table[repeated].assign(content=content[repeated])
        _tell_leaks(copies)
        _tell_conflicts(copies)


def _tell_leaks(copies: pd.DataFrame) -> None:
    order = {"train": 0, "val": 1}
    rank = copies["split"].map(lambda name: order.get(name, 2))
    ranked = copies.assign(rank=rank).sort_values(["rank", "split"], kind="stable")
    first = ranked.drop_duplicates("content").set_index("content")
    late = copies[copies["split"] != copies["content"].map(first["split"])]
    if late.empty:
        return
    counts = late["split"].value_counts()
    told = " and ".join(f"{counted(int(counts[name]))} of {name}" for name in sorted(counts.index))
    pairs = [
        f"{printable(image)} = {printable(first['image'][content])} in {first['split'][content]}"
        for image, content in zip(late["image"][:_NAMED], late["content"][:_NAMED], strict=True)
    ]
    warnings.warn(
        f"{told} {by_number(len(late), 'is a copy', 'are copies')} of an image in another split "
        f"({'; '.join(pairs)}{'; ...' * (len(late) > _NAMED)}), so figures on them are too good. "
        "Leave the copies out, or move them to that split; recame inspect lists them (leaks.csv).",
        stacklevel=4,
    )


def _tell_conflicts(copies: pd.DataFrame) -> None:
    torn = copies[copies.groupby("content")["label"].transform("nunique") > 1]
    if torn.empty:
        return
    pair = torn[torn["content"] == torn["content"].iloc[0]].drop_duplicates("label")[:_NAMED]
    named = [
        f"{printable(image)} is {label!r}"
        for image, label in zip(pair["image"], pair["label"], strict=True)
    ]
    warnings.warn(
        f"{counted(len(torn))} have a copy with another label "
        f"({', '.join(named)}), so no model can be right on all. Give each set of copies one "
        "label, or leave it out; recame inspect lists them (duplicates.csv).",
        stacklevel=4,
    )
