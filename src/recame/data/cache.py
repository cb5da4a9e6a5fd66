"""Decode once: all images of a set as one memory-mapped array on disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import Array, IntArray, PreprocessSpec
from recame.data.decode import NOT_OPENED, decode_image, read_source
from recame.errors import DataError
from recame.files import write_text, write_whole
from recame.progress import Progress, silent

CACHE_SCHEMA = 1

_KEEP_UNUSED_S = 30 * 86_400
_KEEP_PARTIAL_S = 86_400
_DIGEST_BYTES = 16
_WINDOW = 64  # decoded images held in memory while one before them is still being decoded


@dataclass(frozen=True)
class BrokenImage:
    """A file that could not be decoded, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageCache:
    """Decoded images.

    Attributes:
        images: (N, H, W, C), read-only and memory-mapped; each readable file once.
        row_of: for each path that was asked for its row in `images`, -1 if broken.
        broken: the files that could not be decoded, each once.
        fingerprint: hash of the images' file contents and the decoding, whatever their paths and
            order; 32 hex digits.
    """

    images: Array
    row_of: IntArray
    broken: tuple[BrokenImage, ...]
    fingerprint: str


def build_cache(
    paths: Sequence[Path],
    spec: PreprocessSpec,
    *,
    cache_dir: Path | None = None,
    max_pixels: int,
    on_progress: Progress = silent,
    workers: int | None = None,
) -> ImageCache:
    """Open the cache of these files, decoding them if there is none that fits.

    A cache is found by a key of the decoding and every file's path, size and modification time,
    which is checked in milliseconds; so an added, changed or removed file leads to a new cache.
    (A file that is changed while its size and time stay the same goes unnoticed: reading every
    byte at each start would cost minutes on large sets.) The content of each file is hashed
    when it is decoded, and the data's fingerprint is made of these hashes.

    The pixels are written to a temporary file that takes its name when it is complete, and
    the index, with its own checksum and the pixels' size, is written last: a half-written cache
    is never used, a damaged one is made again. Caches that no one has used for 30 days are
    deleted when a new one is made.

    Args:
        paths: files, duplicates allowed.
        spec: how they are decoded.
        cache_dir: default: `$RECAME_CACHE`, or `~/.cache/recame`.
        max_pixels: an image with more is refused.
        on_progress: told of each image.
        workers: decoding threads; default: one a core, at most 8.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    folder = cache_dir or Path(os.environ.get("RECAME_CACHE") or Path.home() / ".cache" / "recame")
    texts = [str(path) for path in paths]
    unique = sorted(set(texts))
    key = _key(unique, spec, max_pixels)
    index = _read_index(folder, key)
    if index is None or _opens_now(index, unique):
        index = _build(folder, key, unique, spec, max_pixels, on_progress, workers)
    else:
        on_progress("decoding images", len(unique), len(unique))
    reasons = {int(position): reason for position, reason in index["broken"]}
    readable = ~np.isin(np.arange(len(unique)), list(reasons))
    rows = np.where(readable, np.cumsum(readable) - 1, -1)
    position_of = {text: position for position, text in enumerate(unique)}
    row_of = rows[[position_of[text] for text in texts]] if texts else rows
    shape = (int(readable.sum()), spec.height, spec.width, spec.channels)
    images: Array = (
        np.memmap(_pixels_path(folder, key), spec.dtype, "r", shape=shape)
        if shape[0]
        else np.empty(shape, spec.dtype)
    )
    broken = tuple(BrokenImage(unique[i], reason) for i, reason in sorted(reasons.items()))
    return ImageCache(images, row_of.astype(np.int64), broken, index["fingerprint"])


def _key(unique: list[str], spec: PreprocessSpec, max_pixels: int) -> str:
    facts = [f"{CACHE_SCHEMA} {spec.decode_fingerprint()} {max_pixels}"]
    for text in unique:
        try:
            stat = os.stat(text)  # noqa: PTH116 (100,000 Path objects would take a second)
            facts.append(f"{text}\t{stat.st_size}\t{stat.st_mtime_ns}")
        except OSError:
            facts.append(f"{text}\t-")
    return _digest("\n".join(facts).encode(errors="surrogateescape"))


def _pixels_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.pixels"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def _checksum(body: dict[str, Any]) -> str:
    return _digest(json.dumps(body, sort_keys=True).encode())


def _read_index(folder: Path, key: str) -> dict[str, Any] | None:
    """The index of a complete, undamaged cache, or None."""
    path = folder / f"{key}.json"
    try:
        document = json.loads(path.read_bytes())
        body: dict[str, Any] = document["body"]
        size = _pixels_path(folder, key).stat().st_size
        if document["checksum"] != _checksum(body) or size != body["bytes"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        os.utime(path)
    return body


def _opens_now(index: dict[str, Any], unique: list[str]) -> bool:
    """Whether a file that the system refused to open can be read by now."""
    for position, reason in index["broken"]:
        if reason.startswith(NOT_OPENED):
            with contextlib.suppress(OSError), Path(unique[position]).open("rb"):
                return True
    return False


def _build(
    folder: Path,
    key: str,
    unique: list[str],
    spec: PreprocessSpec,
    max_pixels: int,
    on_progress: Progress,
    workers: int | None,
) -> dict[str, Any]:
    size = len(unique) * spec.height * spec.width * spec.channels * spec.dtype.itemsize
    advice = (
        f"The decoded images need {size:,} bytes there. Free some space, or set data.cache_dir or "
        "the variable RECAME_CACHE to a folder that you may write to, on another disk, or a "
        "smaller data.size."
    )
    digests: list[str] = []
    broken: list[tuple[int, str]] = []
    with (
        write_whole(_pixels_path(folder, key), advice=advice) as partial,
        partial.open("wb") as stream,
    ):
        _remove_old(folder)
        # A full disk is told now rather than after hours.
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        decoded = _decode_all(unique, spec, max_pixels, workers)
        for position, (digest, image) in enumerate(decoded):
            if isinstance(image, str):
                broken.append((position, image))
            else:
                digests.append(digest)
                stream.write(image.data)
            on_progress("decoding images", position + 1, len(unique))
        written = stream.tell()
    contents = "\n".join([spec.decode_fingerprint(), *sorted(digests)])
    body = {
        "schema": CACHE_SCHEMA,
        "bytes": written,
        "images": len(digests),
        "spec": spec.to_dict(),
        "broken": broken,
        "digests": digests,
        "fingerprint": _digest(contents.encode()),
    }
    document = json.dumps({"checksum": _checksum(body), "body": body})
    write_text(folder / f"{key}.json", document, advice=advice)
    return body


def _decode_all(
    unique: list[str], spec: PreprocessSpec, max_pixels: int, workers: int | None
) -> Iterator[tuple[str, Array | str]]:
    """Content hash and pixels, or the reason why there are none, in the order of the files."""

    def decode(text: str) -> tuple[str, Array | str]:
        try:
            data = read_source(Path(text))
            return _digest(data), decode_image(data, spec, max_pixels=max_pixels)
        except DataError as error:
            return "", str(error)

    # Threads: the decoders release the interpreter's lock, and nothing has to be copied between.
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    pending: deque[Future[tuple[str, Array | str]]] = deque()
    try:
        with warnings.catch_warnings():
            # Pillow remarks on odd tags of files that decode well.
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            for text in unique:
                pending.append(pool.submit(decode, text))
                if len(pending) >= _WINDOW:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _remove_old(folder: Path) -> None:
    """Delete caches not used for 30 days and what an interrupted build left a day ago."""
    now = time.time()
    for path in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > _KEEP_PARTIAL_S:
                path.unlink()
    for path in folder.glob("[0-9a-f]" * (2 * _DIGEST_BYTES) + ".json"):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > _KEEP_UNUSED_S:
                path.unlink()
                _pixels_path(folder, path.stem).unlink(missing_ok=True)


class PickedRows:
    """Some rows of memory-mapped images, read where they are asked for and never all at once.

    Args:
        images: (N, H, W, C).
        rows: (M,) which, in their order.
    """

    def __init__(self, images: Array, rows: IntArray) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int | slice) -> Array:
        """One image (H, W, C), or those of a slice."""
        picked: Array = self._images[self._rows[at]]
        return picked
