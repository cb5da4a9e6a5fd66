"""WebP: lossy and lossless, by Pillow; header, orientation and frames by the file's own chunks."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, WebPImagePlugin

from recame.contracts import Pixels
from recame.data.opened import oriented
from recame.errors import DataError

_ORIENTATION = 0x0112
#: A longer EXIF chunk is no camera's.
_MOST_EXIF = 2**16
#: Chunks that are looked at: an animation has one a frame.
_MOST_CHUNKS = 2000


class WebpImage:
    """The first frame of a file (developers.google.com/speed/webp/docs/riff_container).

    Args:
        stream: at its start. Pillow would read all of it only to see its header.

    Raises:
        DataError: the header is none.
    """

    kind = "WebP"
    grey = False  # the format knows no grey
    declares_white = True
    bits = 8

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        size = _size(stream.read(30))
        if size is None:
            raise DataError("damaged or truncated header: no size of a WebP")
        self.size = size
        # A canvas of four channels, twice, and our own pixels.
        self.pixel_bytes = 16

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) as seen."""
        width, height = self.size
        return (width, height) if self._orientation() >= 5 else (height, width)

    def num_pages(self) -> int:
        """Frames of an animation."""
        return max(1, sum(name == b"ANMF" for name, _ in self._chunks()))

    def pixels(self, data: bytes) -> Pixels:
        """(H, W, 3) uint8, alpha dropped."""
        image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
        if image.size != self.size:
            raise DataError(f"damaged: {image.size} pixels, where the header says {self.size}")
        image.load()
        return oriented(np.asarray(image)[..., :3], self._orientation())

    def _chunks(self) -> Iterator[tuple[bytes, int]]:
        """Name and length of each chunk; the stream is where its content begins."""
        at = 12
        for _ in range(_MOST_CHUNKS):
            self._stream.seek(at)
            head = self._stream.read(8)
            if len(head) < 8:
                return
            name, length = struct.unpack("<4sI", head)
            yield name, length
            at += 8 + length + length % 2

    def _orientation(self) -> int:
        found = next((length for name, length in self._chunks() if name == b"EXIF"), None)
        if found is None or found > _MOST_EXIF:
            return 1
        exif = Image.Exif()
        try:
            exif.load(self._stream.read(found))
            value = exif.get(_ORIENTATION, 1)
        except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
            return 1  # a damaged note beside sound pixels
        return value if value in range(1, 9) else 1


def _size(head: bytes) -> tuple[int, int] | None:
    """(width, height) of the canvas."""
    name, body = head[12:16], head[20:30]
    if len(body) < 10:
        return None
    if name == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if name == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return (width & 0x3FFF, height & 0x3FFF) if width & 0x3FFF and height & 0x3FFF else None
    return None
