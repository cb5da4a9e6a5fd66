"""The interface of an opened image file of any format."""

from __future__ import annotations

from typing import Protocol

from recame.contracts import Pixels


class Opened(Protocol):
    """An image file of which only the header was read.

    Attributes:
        kind: name of the format.
        size: (width, height) as stored.
        grey: whether its pixels have one channel, alpha aside.
        pixel_bytes: what decoding takes for each pixel, the file's own bytes aside.
        declares_white: whether the header says which value is white, so that the pixels fill
            their type's range; else a file of 16 bits may use fewer.
    """

    kind: str
    size: tuple[int, int]
    grey: bool
    pixel_bytes: int
    declares_white: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) as seen."""
        ...

    @property
    def bits(self) -> int:
        """Bits of a decoded sample: 8 or 16; of floating-point ones 16, 32 or 64.

        Raises:
            DataError: the samples are of a kind that is not read.
        """
        ...

    def num_pages(self) -> int:
        """Images in the file."""
        ...

    def pixels(self, data: bytes) -> Pixels:
        """(H, W) or (H, W, 3), upright, of the whole file's bytes.

        Raises:
            DataError: they cannot be decoded; any other error means damage.
        """
        ...


def one_line(error: BaseException) -> str:
    """An error's text, short and without line ends."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (1 to 8, CIPA DC-008 4.6.4)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
