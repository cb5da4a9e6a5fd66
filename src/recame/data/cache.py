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
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import Array, IntArray, PreprocessSpec
from recame.data.cache_room import cache_folder, make_room, note_use
from recame.data.decode import PLAIN, FileFacts, decode_with_facts, fitted
from recame.data.file_part import split_part
from recame.data.image_file import (
    NOT_OPENED,
    decoders,
    open_named,
    read_image,
    whole_file,
)
from recame.data.paged_file import file_state
from recame.errors import DataError
from recame.files import explained, hold, write_text, write_whole
from recame.machine import usable_cores
from recame.progress import Progress, silent

#: Part of each key: caches of another layout or other rules of decoding are not found.
CACHE_SCHEMA = 3

_DIGEST_BYTES = 16
_WINDOW = 64  # decoded images held in memory while one before them is still being decoded
#: Pixels that share a checksum.
_BLOCK_BYTES = 2**24
_WAIT_S = 0.2
#: Boxes of a file that are cut from one decoding.
_BOXES_AT_ONCE = 16

#: Content hash, pixels or the reason why there are none, and facts.
_Decoded = tuple[str, Array | str, FileFacts]


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
        facts: files that hold what a specification may lose, each once, with what it is.
        digests: hash of the content of each image's file, and of its box, if it has one; N texts.
    """

    images: Array
    row_of: IntArray
    broken: tuple[BrokenImage, ...]
    fingerprint: str
    facts: tuple[tuple[str, FileFacts], ...] = ()
    digests: tuple[str, ...] = ()


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

    A cache is found by a key of the decoding, the decoders' versions and every file's path, size
    and modification time, which is checked in milliseconds; so an added, changed or removed file
    leads to a new cache. (A file that is changed while its size and time stay the same goes
    unnoticed: reading every byte at each start would cost minutes on large sets.) The content of
    each file is hashed when it is decoded, and the data's fingerprint is made of these hashes.

    The pixels are written to a temporary file that takes its name when it is complete, and
    the index, with its own checksum and those of the pixels, is written last: a half-written cache
    is never used. Whenever a cache is opened its pixels are read and compared with their checksums;
    a damaged one is made again. One process decodes; others that want the same images wait.
    Caches beyond a limit are removed, those first that were not used for longest, see `make_room`.

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
    folder = cache_dir or cache_folder()
    texts = [str(path) for path in paths]
    unique = sorted(set(texts))
    key = _key(unique, spec, max_pixels)
    found = _open_whole(folder, key, spec, unique)
    if found is None:
        size = len(unique) * spec.height * spec.width * spec.channels * spec.dtype.itemsize
        advice = (
            f"The decoded images need {size:,} bytes there. Free some space, or set data.cache_dir "
            "or the variable RECAME_CACHE to a folder that you may write to, on another disk, or a "
            "smaller data.size."
        )
        with explained(folder, advice):
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, key, advice, on_progress):
            # Another process may have made it meanwhile.
            found = _open_whole(folder, key, spec, unique)
            if found is None:
                with explained(folder, advice):
                    make_room(folder, key, size)
                index = _build(folder, key, unique, spec, max_pixels, advice, on_progress, workers)
                found = index, _mapped(folder, key, spec, index)
    else:
        on_progress("decoding images", len(unique), len(unique))
    note_use(folder, key)
    index, images = found
    reasons = {int(position): reason for position, reason in index["broken"]}
    readable = ~np.isin(np.arange(len(unique)), list(reasons))
    rows = np.where(readable, np.cumsum(readable) - 1, -1)
    position_of = {text: position for position, text in enumerate(unique)}
    row_of = rows[[position_of[text] for text in texts]] if texts else rows
    broken = tuple(BrokenImage(unique[i], reason) for i, reason in sorted(reasons.items()))
    facts = tuple(
        (unique[position], FileFacts(deep, peak, (above[0], above[1], above[2]), *others))
        for position, deep, peak, above, *others in index["facts"]
    )
    digests, fingerprint = tuple(index["digests"]), index["fingerprint"]
    return ImageCache(images, row_of.astype(np.int64), broken, fingerprint, facts, digests)


def _key(unique: list[str], spec: PreprocessSpec, max_pixels: int) -> str:
    facts = [f"{CACHE_SCHEMA} {decoders()} {spec.decode_fingerprint()} {max_pixels}"]
    for text in unique:
        try:
            stat = file_state(text)
            facts.append(f"{text}\t{stat.st_size}\t{stat.st_mtime_ns}")
        except (OSError, ValueError):
            facts.append(f"{text}\t-")
    return _digest("\n".join(facts).encode(errors="surrogateescape"))


def _pixels_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.pixels"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def _checksum(body: dict[str, Any]) -> str:
    return _digest(json.dumps(body, sort_keys=True).encode())


@contextmanager
def _alone(folder: Path, key: str, advice: str, on_progress: Progress) -> Iterator[None]:
    """Be the one process that makes this cache; wait while another does."""
    path = folder / f"{key}.lock"
    while True:
        with explained(path, advice):
            lock = hold(path)
        if lock is not None:
            break
        on_progress("waiting for another process that decodes these images", 0, 1)
        time.sleep(_WAIT_S)
    try:
        yield
    finally:
        lock.close()


def _open_whole(
    folder: Path, key: str, spec: PreprocessSpec, unique: list[str]
) -> tuple[dict[str, Any], Array] | None:
    """Index and pixels of a complete, undamaged cache whose broken files are so still, or None."""
    try:
        document = json.loads((folder / f"{key}.json").read_bytes())
        body: dict[str, Any] = document["body"]
        if document["checksum"] != _checksum(body) or _opens_now(body, unique):
            return None
        if not _sound(_pixels_path(folder, key), body):
            return None
        return body, _mapped(folder, key, spec, body)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(folder: Path, key: str, spec: PreprocessSpec, index: dict[str, Any]) -> Array:
    shape = (int(index["images"]), spec.height, spec.width, spec.channels)
    if not shape[0]:
        return np.empty(shape, spec.dtype)
    return np.memmap(_pixels_path(folder, key), spec.dtype, "r", shape=shape)


def _sound(path: Path, index: dict[str, Any]) -> bool:
    """Whether the pixels are those that were written."""
    length = int(index["block_bytes"])

    def holds(number: int) -> bool:
        with path.open("rb") as stream:
            stream.seek(number * length)
            return _digest(stream.read(length)) == str(index["blocks"][number])

    if path.stat().st_size != index["bytes"]:
        return False
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        return all(pool.map(holds, range(len(index["blocks"]))))


def _opens_now(index: dict[str, Any], unique: list[str]) -> bool:
    """Whether a file that the system refused to open can be read by now."""
    for position, reason in index["broken"]:
        if reason.startswith(NOT_OPENED):
            with contextlib.suppress(OSError, ValueError):
                open_named(Path(unique[position]))[0].close()
                return True
    return False


def _build(
    folder: Path,
    key: str,
    unique: list[str],
    spec: PreprocessSpec,
    max_pixels: int,
    advice: str,
    on_progress: Progress,
    workers: int | None,
) -> dict[str, Any]:
    image_bytes = spec.height * spec.width * spec.channels * spec.dtype.itemsize
    together = max(1, _BLOCK_BYTES // image_bytes)
    digests: list[str] = []
    blocks: list[str] = []
    broken: list[tuple[int, str]] = []
    remarkable: list[list[Any]] = []
    block = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with (
        write_whole(_pixels_path(folder, key), advice=advice) as partial,
        partial.open("wb") as stream,
    ):
        # A full disk is told now rather than after hours.
        if shutil.disk_usage(folder).free < len(unique) * image_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        decoded = _decode_all(unique, spec, max_pixels, workers)
        for position, (digest, image, facts) in enumerate(decoded):
            if isinstance(image, str):
                broken.append((position, image))
            else:
                digests.append(digest)
                stream.write(image.data)
                block.update(image.data)
                if len(digests) % together == 0:
                    blocks.append(block.hexdigest())
                    block = hashlib.blake2b(digest_size=_DIGEST_BYTES)
                if facts != PLAIN:
                    remarkable.append([position, *facts])
            on_progress("decoding images", position + 1, len(unique))
        written = stream.tell()
    if len(digests) % together:
        blocks.append(block.hexdigest())
    contents = "\n".join([spec.decode_fingerprint(), *sorted(digests)])
    body = {
        "schema": CACHE_SCHEMA,
        "bytes": written,
        "block_bytes": together * image_bytes,
        "blocks": blocks,
        "images": len(digests),
        "spec": spec.to_dict(),
        "broken": broken,
        "facts": remarkable,
        "digests": digests,
        "fingerprint": _digest(contents.encode()),
    }
    document = json.dumps({"checksum": _checksum(body), "body": body})
    write_text(folder / f"{key}.json", document, advice=advice)
    return body


def _decode_all(
    unique: list[str], spec: PreprocessSpec, max_pixels: int, workers: int | None
) -> Iterator[_Decoded]:
    """Content hash, pixels or the reason why there are none, and facts, in the files' order."""

    def decode(names: list[str]) -> list[_Decoded]:
        if split_part(names[0])[1].box is not None and _leads_to_a_part(names[0]):
            return _decode_boxes(names, spec, max_pixels)
        try:
            with whole_file(Path(names[0]), max_pixels=max_pixels) as file:
                pixels, facts = decode_with_facts(file, spec, max_pixels=max_pixels)
                return [(_digest(file.data), pixels, facts)]
        except DataError as error:
            return [("", str(error), PLAIN)]

    # Threads: the decoders release the interpreter's lock, and nothing has to be copied between.
    pool = ThreadPoolExecutor(workers or min(8, usable_cores()))
    pending: deque[Future[list[_Decoded]]] = deque()
    try:
        with warnings.catch_warnings():
            # Pillow remarks on odd tags of files that decode well.
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            for names in _by_file(unique):
                pending.append(pool.submit(decode, names))
                if len(pending) >= _WINDOW:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _by_file(unique: list[str]) -> Iterator[list[str]]:
    """Names that are decoded together: some boxes of one file; any other name alone."""

    def decoded(name: str) -> object:
        file, part = split_part(name)
        return (file, part.page) if part.box is not None and _leads_to_a_part(name) else name

    for _, names in groupby(unique, decoded):
        while some := list(islice(names, _BOXES_AT_ONCE)):
            yield some


def _leads_to_a_part(name: str) -> bool:
    return not os.path.lexists(name)


def _decode_boxes(names: list[str], spec: PreprocessSpec, max_pixels: int) -> list[_Decoded]:
    """What is seen of some boxes of one file, which is decoded once."""
    found: list[_Decoded] = []
    try:
        with whole_file(Path(names[0]), max_pixels=max_pixels) as file:
            content = hashlib.blake2b(file.data, digest_size=_DIGEST_BYTES)
            decoded = read_image(file.data, max_pixels=max_pixels, page=file.part.page)
            for name in names:
                part = file.part._replace(box=split_part(name)[1].box)
                digest = content.copy()
                digest.update(str(part).encode())
                try:
                    pixels, facts = fitted(decoded, part, spec)
                    found.append((digest.hexdigest(), pixels, facts))
                except DataError as error:
                    found.append(("", str(error), PLAIN))
    except DataError as error:
        return [("", str(error), PLAIN)] * len(names)
    return found


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
