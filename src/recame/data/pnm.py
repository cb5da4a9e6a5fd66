"""PBM, PGM and PPM, the portable any map: text or bytes, up to 16 bit, white declared."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

from recame.contracts import Array, Pixels
from recame.errors import DataError

#: What separates the numbers of a header: white space, and remarks up to the end of their line.
_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"
_SIZE = rb"P([1-6])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})"
#: One white space ends the header; a file of text may be remarked on behind it too.
_HEADERS = {
    False: re.compile(_SIZE + rb"\s"),
    True: re.compile(_SIZE + _GAP + rb"(\d{1,9})\s"),
}
#: Headers with longer remarks are not read.
_LONGEST_HEADER = 4096
_REMARK = re.compile(rb"#[^\n\r]*")
_MOST_PAGES = 1000


class PnmImage:
    """The first image of a file, see netpbm.sourceforge.net/doc (pbm, pgm, ppm).

    The header says which value is white (`maxval`): pixels are brought to the range of 8 or 16
    bits by it, so that 4095 of 4095 is as white as 255 of 255.

    Args:
        stream: at its start.

    Raises:
        DataError: the header is none.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        header = _parse(stream.read(_LONGEST_HEADER))
        if header is None:
            raise DataError("damaged or truncated header: no size and largest value of a PNM")
        self._number, width, height, self._white, self._start = header
        if not width or not height or not 0 < self._white < 2**16:
            raise DataError(
                f"damaged or truncated header: {width} x {height} pixels up to {self._white}"
            )
        self.kind = ("PBM", "PGM", "PPM")[(self._number - 1) % 3]
        self.size = (width, height)
        self.grey = self.kind != "PPM"
        # Numbers as text are held as 64 bits.
        self.pixel_bytes = (1 if self.grey else 3) * (20 if self._number < 4 else 8)
        self.declares_white = self._white < 2**16 - 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.size[::-1]

    @property
    def bits(self) -> int:
        """8, or 16 where white needs more."""
        return 8 if self._white < 256 else 16

    @property
    def _length(self) -> int:
        """Bytes of the first image's pixels, where they are bytes."""
        width, height = self.size
        if self._number == 4:
            return height * ((width + 7) // 8)
        return width * height * (1 if self.grey else 3) * (self.bits // 8)

    def num_pages(self) -> int:
        """Images that follow each other in a file of bytes; a file of text holds one."""
        if self._number < 4:
            return 1
        image, at = self, 0
        for pages in range(1, _MOST_PAGES):
            at += image._start + image._length
            self._stream.seek(at)
            try:
                image = PnmImage(self._stream)
            except DataError:
                return pages
            if image._number < 4:
                return pages
        return _MOST_PAGES

    def pixels(self, data: bytes) -> Pixels:
        """(H, W) or (H, W, 3), uint8 or uint16."""
        width, height = self.size
        if self.kind == "PBM":
            bits = self._text_bits(data) if self._number == 1 else self._bits(data)
            return (1 - bits) * np.uint8(255)  # 1 is black
        values = self._text(data) if self._number < 4 else self._bytes(data)
        if (most := int(values.max())) > self._white:
            raise DataError(f"damaged: a value of {most}, above the file's largest ({self._white})")
        shape = (height, width) if self.grey else (height, width, 3)
        return _stretched(values, self._white).reshape(shape)

    def _bytes(self, data: bytes) -> Array:
        if len(data) - self._start < self._length:
            raise DataError(f"truncated: {len(data):,} bytes cannot hold {self._shown} pixels")
        kind = ">u2" if self.bits == 16 else "u1"
        count = self._length // (self.bits // 8)
        return np.frombuffer(data, kind, count, self._start)

    def _bits(self, data: bytes) -> Array:
        if len(data) - self._start < self._length:
            raise DataError(f"truncated: {len(data):,} bytes cannot hold {self._shown} pixels")
        width, height = self.size
        packed = np.frombuffer(data, np.uint8, self._length, self._start)
        return np.unpackbits(packed.reshape(height, -1), axis=1)[:, :width]

    def _text_bits(self, data: bytes) -> Array:
        """Digits need no gap between them."""
        width, height = self.size
        text = np.frombuffer(_REMARK.sub(b"", data[self._start :]), np.uint8)
        digits = text[~np.isin(text, np.frombuffer(b" \t\n\v\f\r", np.uint8))] - ord("0")
        if len(digits) < width * height:
            raise DataError(f"truncated: {len(digits):,} of {self._shown} pixels")
        digits = digits[: width * height]
        if digits.max() > 1:
            raise DataError("damaged: other digits than 0 and 1")
        return digits.reshape(height, width)

    def _text(self, data: bytes) -> Array:
        wanted = self.size[0] * self.size[1] * (1 if self.grey else 3)
        text = _REMARK.sub(b"", data[self._start :])
        if text.translate(None, b"0123456789 \t\n\v\f\r"):
            raise DataError("damaged: other letters than digits")
        # A count would be filled up with whatever lies in memory.
        values: Array = np.fromstring(text.strip().decode("ascii") or "0", np.int64, sep=" ")
        if len(values) < wanted:
            raise DataError(f"truncated: {len(values):,} of {wanted:,} values")
        return np.asarray(values[:wanted])

    @property
    def _shown(self) -> str:
        return f"{self.size[0]} x {self.size[1]}"


def _parse(head: bytes) -> tuple[int, int, int, int, int] | None:
    """Number of the kind, width, height, white, and where the pixels begin."""
    found = _HEADERS[head[1:2] not in (b"1", b"4")].match(head)
    if found is None:
        return None
    number, width, height = (int(found[group]) for group in (1, 2, 3))
    white = 1 if number in (1, 4) else int(found[4])
    return number, width, height, white, found.end()


def _stretched(values: Array, white: int) -> Pixels:
    """Values up to white -> uint8 or uint16 that fill their range, rounded."""
    if white < 256:
        table = (np.arange(white + 1) * 255 + white // 2) // white
        return values.astype(np.uint8) if white == 255 else table.astype(np.uint8)[values]
    if white == 65535:
        return values.astype(np.uint16)
    return ((values.astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)
