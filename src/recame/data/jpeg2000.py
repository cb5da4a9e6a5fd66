"""JPEG 2000, as a file (.jp2) or bare (.j2k): 8 bits by Pillow, more by OpenCV."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Jpeg2KImagePlugin

from recame.contracts import Pixels
from recame.data.deep_colour import read_unchanged
from recame.errors import DataError

_START = b"\xff\x4f\xff\x51"
#: Boxes before the pixels that are looked at.
_MOST_BOXES = 1000
#: Pixels that a byte of a file can stand for: a plain image takes next to none.
_MOST_PACKED = 2**17


class _Size(NamedTuple):
    """The marker segment SIZ (ISO/IEC 15444-1, A.5.1)."""

    width: int
    height: int
    bits: tuple[int, ...]
    signed: bool
    subsampled: bool


class Jpeg2000Image:
    """The image of a file.

    More than 8 bits fill the range of 16, by the number of bits that the header names.

    Args:
        stream: at its start.

    Raises:
        DataError: the header is none, or of too many pixels for so few bytes.
    """

    kind = "JPEG2000"

    def __init__(self, stream: BinaryIO) -> None:
        found = _read_size(stream)
        if found is None:
            raise DataError("damaged or truncated header: no size of a JPEG 2000")
        self._found = found
        self.size = (found.width, found.height)
        self.grey = len(found.bits) < 3
        length = stream.seek(0, io.SEEK_END)
        if found.width * found.height > _MOST_PACKED * max(length, 1024):
            raise DataError(
                f"truncated: {length:,} bytes cannot hold {found.width} x {found.height} pixels"
            )
        # The decoder holds 32 bits a sample, twice at its end.
        self.pixel_bytes = 10 * len(found.bits) + 6
        self.declares_white = max(found.bits) < 16

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.size[::-1]

    @property
    def bits(self) -> int:
        """8, or 16 where a channel has more.

        Raises:
            DataError: signed, more than 16, or another layout that cannot be decoded.
        """
        found, most = self._found, max(self._found.bits)
        if found.signed or most > 16:
            raise DataError(
                f"signed or {most}-bit pixels: convert the file to 8 or 16 bit unsigned"
            )
        if most <= 8:
            return 8
        if len(found.bits) == 2 or len(set(found.bits)) > 1 or found.subsampled:
            raise DataError(
                "more than 8 bits with alpha beside grey, or channels that differ: convert the file"
            )
        return 16

    def num_pages(self) -> int:
        """One."""
        return 1

    def pixels(self, data: bytes) -> Pixels:
        """(H, W) or (H, W, 3), uint8 or uint16, alpha dropped."""
        if self.bits == 16:
            pixels = read_unchanged(data, np.uint16)
            white = 2 ** self._found.bits[0] - 1
            if white < 2**16 - 1:
                values = np.minimum(pixels, white).astype(np.uint32)
                pixels = ((values * 65535 + white // 2) // white).astype(np.uint16)
        else:
            image = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data))
            image.load()
            if image.mode in ("L", "LA"):
                pixels = np.asarray(image.getchannel(0))
            else:
                pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        if pixels.shape[:2] != self.upright_size:
            raise DataError(f"damaged: {pixels.shape[:2]} pixels, not {self.upright_size}")
        return pixels


def _read_size(stream: BinaryIO) -> _Size | None:
    start = stream.read(4)
    if start != _START and not _reach_pixels(stream):
        return None
    if start != _START and stream.read(4) != _START:
        return None
    head = stream.read(38)
    if len(head) < 38:
        return None
    _, _, right, bottom, left, top, *_, count = struct.unpack(">HHIIIIIIIIH", head)
    parts = stream.read(3 * count)
    if not 1 <= count <= 4 or len(parts) < 3 * count or right <= left or bottom <= top:
        return None
    kinds = parts[::3]
    return _Size(
        right - left,
        bottom - top,
        tuple((kind & 0x7F) + 1 for kind in kinds),
        any(kind & 0x80 for kind in kinds),
        any(step != 1 for step in (*parts[1::3], *parts[2::3])),
    )


def _reach_pixels(stream: BinaryIO) -> bool:
    """Leave the stream where a file's box of pixels begins (I.4)."""
    at = 0
    for _ in range(_MOST_BOXES):
        stream.seek(at)
        head = stream.read(16)
        if len(head) < 8:
            return False
        length, name = struct.unpack(">I4s", head[:8])
        inside = 8
        if length == 1 and len(head) == 16:
            (length,), inside = struct.unpack(">Q", head[8:]), 16
        if name == b"jp2c":
            stream.seek(at + inside)
            return True
        if not inside <= length < 2**62:
            return False
        at += length
    return False
