"""TIFF beyond what Pillow reads: the chain of its pages, and floating-point pixels."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np
from PIL import TiffImagePlugin

from recame.contracts import Pixels
from recame.data.deep_colour import read_unchanged
from recame.errors import DataError

#: Pages of a file that are counted.
MOST_PAGES = 1000

_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _CHANNELS, _PLANES = 256, 257, 258, 274, 277, 284
_FORMAT = 339
#: Where the pixels lie and how long they are: in strips, or in tiles.
_PLACES = ((273, 279), (324, 325))
_FLOAT = 3


def count_pages(stream: BinaryIO) -> int:
    """Pages of a file, along the chain of its directories; a page is not looked at itself."""
    return len(_directories(stream, MOST_PAGES))


def _directories(stream: BinaryIO, most: int) -> list[int]:
    """Where the first so many pages' directories lie; the chain ends where it would go round."""
    stream.seek(0)
    head = stream.read(16)
    order = ">" if head[:2] == b"MM" else "<"
    big = head[2:4] in (b"+\0", b"\0+")
    count_form, entry, next_form = ("Q", 20, "Q") if big else ("H", 12, "I")
    found: dict[int, None] = {}
    at = _number(order, next_form, head[8:] if big else head[4:])
    while at and at not in found and len(found) < most:
        stream.seek(min(at, 2**62))
        count = _number(order, count_form, stream.read(struct.calcsize(count_form)))
        if not count:
            break
        found[at] = None
        stream.seek(min(at + struct.calcsize(count_form) + entry * count, 2**62))
        at = _number(order, next_form, stream.read(struct.calcsize(next_form)))
    return list(found)


def _number(order: str, form: str, data: bytes) -> int:
    """The number that data begin with; 0 where they are too few."""
    size = struct.calcsize(form)
    return int(struct.unpack(order + form, data[:size])[0]) if len(data) >= size else 0


class FloatTiff:
    """A page of floating-point pixels, which Pillow knows of one kind only.

    Args:
        stream: of the file.
        page: from 1.

    Raises:
        DataError: there is no such page, or its pixels are none of these.
    """

    kind = "TIFF"
    declares_white = True

    def __init__(self, stream: BinaryIO, page: int) -> None:
        self._stream, self._page = stream, page
        places = _directories(stream, page)
        if len(places) < page:
            raise DataError(f"no page {page}: the file has {len(places)}")
        stream.seek(0)
        head = stream.read(16)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head if b"+" in head[2:4] else head[:8])
        stream.seek(places[page - 1])
        tags.load(stream)
        kinds = tags.get(_FORMAT, (1,))
        if set(kinds) != {_FLOAT}:
            raise DataError(
                "pixels that are neither 8 nor 16 bit unsigned integers: convert the file"
            )
        self.size = int(tags[_WIDTH]), int(tags[_HEIGHT])
        self._bits = int(max(tags.get(_BITS, (1,))))
        channels = int(tags.get(_CHANNELS, 1))
        self.grey = channels < 3
        self.pixel_bytes = channels * (self._bits // 8) + (8 + 8 + 2) * (1 if self.grey else 3)
        self._turned = tags.get(_ORIENTATION, 1) in range(5, 9)
        self._parts = [
            (int(at), int(length))
            for where, long in _PLACES
            for at, length in zip(_several(tags.get(where)), _several(tags.get(long)), strict=False)
        ]
        self._readable = channels in (1, 3, 4) and (channels == 1 or tags.get(_PLANES, 1) == 1)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) as seen."""
        width, height = self.size
        return (width, height) if self._turned else (height, width)

    @property
    def bits(self) -> int:
        """32 or 64.

        Raises:
            DataError: another number, or a layout that is not read.
        """
        if self._bits not in (32, 64) or not self._readable:
            raise DataError(
                f"{self._bits}-bit floating-point pixels in a layout that is not read: save them "
                "as 32 bit, grey or RGB, pixel by pixel"
            )
        return self._bits

    def num_pages(self) -> int:
        """Pages of the file."""
        return count_pages(self._stream)

    def pixels(self, data: bytes) -> Pixels:
        """(H, W) or (H, W, 3) float32 or float64, upright."""
        kind = np.float32 if self.bits == 32 else np.float64
        if any(at + length > len(data) for at, length in self._parts):
            raise DataError(f"truncated: pixels beyond the file's {len(data):,} bytes")
        pixels = read_unchanged(data, kind, page=self._page)
        if pixels.shape[:2] != self.upright_size:
            raise DataError(f"damaged: {pixels.shape[:2]} pixels, not {self.upright_size}")
        return pixels


def _several(value: Any) -> tuple[Any, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)
