"""Reads image files to pixels, with checks of format and memory."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import PIL
from PIL import (
    BmpImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    features,
)

from recame.contracts import CONTEXT, Pixels
from recame.data.deep_colour import read_unchanged
from recame.data.file_part import WHOLE, FilePart, readings, why_missing
from recame.data.jpeg2000 import Jpeg2000Image
from recame.data.listing import KINDS
from recame.data.opened import Opened, one_line, oriented
from recame.data.pnm import PnmImage
from recame.data.tiff import FloatTiff, count_pages
from recame.data.webp import WebpImage
from recame.errors import DataError
from recame.files import open_regular

#: First bytes -> Pillow's reader. Named readers rather than `Image.open`: the content decides and
#: not the file's name, and `max_pixels` is the only limit on the size.
_READERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),
)
#: And the readers of our own.
_OTHERS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Opened]], ...] = (
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebpImage),
    (re.compile(rb"P[1-6][\s#]"), PnmImage),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), Jpeg2000Image),
)
#: Start of the reason if a file may open next time: missing permission, unavailable drive.
NOT_OPENED = "cannot be opened"

_ORIENTATION, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 0x0112, 258, 339
_UNSIGNED, _FLOAT = 1, 3
#: Bytes of a pixel that no file of integers exceeds (four samples of 16 bits; text and floating
#: point take up to three times as many), and what comes beside pixels.
_MOST_BYTES, _BESIDE_PIXELS = 8, 2**20
#: Deflate packs no tighter.
_MOST_PACKED = 1100
#: Rows are taken over in parts of so many pixels, so that an image is not held three times.
_PART_PIXELS = 2**20


def decoders() -> str:
    """Name and version of everything that decides a decoded pixel."""
    named = ("libjpeg_turbo", "jpg", "libtiff", "webp", "jpg_2000")
    codecs = (f"{name} {features.version(name)}" for name in named)
    return "; ".join((f"Pillow {PIL.__version__}", f"OpenCV {cv2.__version__}", *codecs))


class _Budget:
    """Bytes that all threads of a process share: who wants more than is left waits."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = threading.Condition()
        self._thread = threading.local()

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Hold so much in the block; more than there is waits until it is alone."""
        if getattr(self._thread, "holds", False):  # or it would wait for itself
            yield
            return
        size = min(size, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        self._thread.holds = True
        try:
            yield
        finally:
            self._thread.holds = False
            with self._changed:
                self._free += size
                self._changed.notify_all()


#: What the decoders of a process hold at once.
_AT_ONCE = _Budget(2**30)


class FileContent(NamedTuple):
    """What a name leads to.

    Attributes:
        data: the whole file's bytes.
        part: that the name asks for.
    """

    data: bytes
    part: FilePart = WHOLE


def open_named(path: Path) -> tuple[BufferedReader, FilePart]:
    """Open `path`, or the file that it names a part of, as `file.tif#2`; an existing file wins."""
    try:
        return open_regular(path), WHOLE
    except FileNotFoundError:
        for file, part in list(readings(path))[1:]:
            with suppress(FileNotFoundError):
                return open_regular(Path(file)), part
        raise


@contextmanager
def open_header(path: Path) -> Iterator[tuple[BufferedReader, FilePart]]:
    """Open a file to look at its first bytes, with the part that its name asks for.

    Never waits for a pipe or a device.

    Raises:
        DataError: why it cannot be opened, in a few words and without its name.
    """
    with readable():
        try:
            stream, part = open_named(path)
        except FileNotFoundError:
            raise DataError(why_missing(path)) from None
    with stream:
        yield stream, part


@contextmanager
def whole_file(path: Path, *, max_pixels: int) -> Iterator[FileContent]:
    """Read a file that is an image by its header and small enough.

    Within the block file and pixels count among what all threads hold at once.

    Raises:
        DataError: why it cannot be read, in a few words and without its name.
    """
    with open_header(path) as (stream, part):
        with readable():
            size = os.fstat(stream.fileno()).st_size
        yield from checked_content(stream, part, size, max_pixels)


def checked_content(
    stream: BinaryIO, part: FilePart, size: int, max_pixels: int
) -> Iterator[FileContent]:
    """An open file's content, once; its header was looked at before.

    While it is used, file and pixels count among what all threads hold at once.

    Raises:
        DataError: as of `whole_file`.
    """
    with readable():
        needed = _needed(_open(stream, part.page), size, max_pixels)
    with _AT_ONCE.taking(needed):
        with readable():
            stream.seek(0)
            data = stream.read()
        yield FileContent(data, part)


@contextmanager
def readable() -> Iterator[None]:
    """Say in a few words why the system gives no file; what may pass begins with `NOT_OPENED`.

    Raises:
        DataError: without the file's name.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError("no such file") from None
    except OSError as error:
        raise DataError(f"{NOT_OPENED}: {error.strerror or error}") from error
    except ValueError as error:  # a name that no file can have
        raise DataError(f"{NOT_OPENED}: {error}") from error


def _needed(image: Opened, size: int, max_pixels: int) -> int:
    """Bytes that decoding takes: the file, the decoder's pixels, and ours.

    Raises:
        DataError: there are too many pixels, or more than so many bytes can hold, or the other way
            round.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{width} x {height} = {width * height:,} pixels, more than max_pixels ({max_pixels:,})"
        )
    pixel = _MOST_BYTES if isinstance(image, PillowImage) else 3 * _MOST_BYTES
    most = pixel * max_pixels + _BESIDE_PIXELS
    if size > most and size > most * image.num_pages():
        raise DataError(
            f"{size:,} bytes, but no image of max_pixels ({max_pixels:,}) needs more than {most:,}"
        )
    if image.kind == "PNG" and width * height > 8 * _MOST_PACKED * max(size, 1024):
        raise DataError(f"truncated: {size:,} bytes cannot hold {width} x {height} pixels")
    return size + width * height * image.pixel_bytes


class DecodedFile(NamedTuple):
    """An image at its own size.

    Attributes:
        pixels: (H, W) or (H, W, 3), upright: uint8, uint16, float32 or float64.
        pages: images in the file, of which this is one.
        declares_white: whether the file says which value is white, so that integers fill their
            type's range whatever their largest.
    """

    pixels: Pixels
    pages: int
    declares_white: bool


def read_image(data: bytes, *, max_pixels: int, page: int = 0) -> DecodedFile:
    """Decode a file's bytes at its own size.

    Args:
        data: of the whole file.
        max_pixels: an image with more is refused before it is decoded.
        page: of a TIFF, from 1; 0: the first image of any file.

    Raises:
        DataError: why the file cannot be used, in a few words and without its name.
    """
    image = _open(io.BytesIO(data), page)
    with _AT_ONCE.taking(_needed(image, len(data), max_pixels)):
        _ = image.bits  # refuses what is not read
        pages = image.num_pages()
        try:
            pixels = image.pixels(data)
        except DataError:
            raise
        except MemoryError:
            raise DataError(f"{NOT_OPENED}: not enough memory") from None
        except Exception as error:  # damaged pixels can break a decoder anywhere
            text = one_line(error)
            kind = "truncated" if "truncated" in text.lower() else "damaged"
            raise DataError(f"{kind}: {text}") from error
        return DecodedFile(pixels, pages, image.declares_white)


def stored_form(
    stream: BinaryIO, part: FilePart = WHOLE, context: float = CONTEXT
) -> dict[str, Any]:
    """`height` and `width` as seen, `channels`, `bits` and `format` that a file's header names.

    Args:
        stream: the file.
        part: that is asked for.
        context: what is seen of a box, see `PreprocessSpec`.

    Raises:
        DataError: it is no image, or of a kind that is not read, or a box lies outside of it.
    """
    image = _open(stream, part.page)
    height, width = part.size(*image.upright_size, context)
    is_float = isinstance(image, FloatTiff)
    return {
        "height": height,
        "width": width,
        "channels": 1 if image.grey else 3,
        "bits": image.bits,
        "format": f"{image.kind} float" if is_float else image.kind,
    }


def _open(stream: BinaryIO, page: int) -> Opened:
    """Read the header only."""
    head = stream.read(32)
    stream.seek(0)
    if not head:
        raise DataError("empty file (0 bytes)")
    try:
        reader = next((reader for magic, reader in _READERS if head.startswith(magic)), None)
        if reader is TiffImagePlugin.TiffImageFile:
            return _open_tiff(stream, head, max(1, page))
        image = (
            _open_other(stream, head)
            if reader is None
            else PillowImage(reader(stream), stream, head)
        )
    except DataError:
        raise
    except Exception as error:  # a damaged header can break a parser anywhere
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file
        raise DataError(f"damaged or truncated header: {one_line(error)}") from error
    if page > 1:
        raise DataError(f"no page {page}: only TIFF has pages here, and this is {image.kind}")
    return image


def _open_other(stream: BinaryIO, head: bytes) -> Opened:
    opener = next((opener for magic, opener in _OTHERS if magic.match(head)), None)
    if opener is None:
        raise DataError(f"not an image (none of {KINDS})")
    return opener(stream)


def _open_tiff(stream: BinaryIO, head: bytes, page: int) -> Opened:
    try:
        image = TiffImagePlugin.TiffImageFile(stream)
        if page > 1:
            image.seek(page - 1)
    except EOFError:
        raise DataError(f"no page {page}: the file has {count_pages(stream)}") from None
    except Exception as error:
        if "unknown pixel mode" not in str(error):
            raise
        return FloatTiff(stream, page)
    if _FLOAT in image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,)):
        return FloatTiff(stream, page)
    return PillowImage(image, stream, head, page)


class PillowImage:
    """PNG, JPEG, BMP and TIFF; 16-bit colour by OpenCV.

    Args:
        image: its header.
        stream: of the file.
        head: its first 32 bytes.
        page: of a TIFF.
    """

    declares_white = False

    def __init__(
        self, image: ImageFile.ImageFile, stream: BinaryIO, head: bytes, page: int = 1
    ) -> None:
        self._image, self._stream, self._head, self._page = image, stream, head, page
        self.kind, self.size = str(image.format), image.size
        self.grey = image.mode in {"1", "L", "LA"} or image.mode.startswith("I")
        self.pixel_bytes = 6 if self.grey else 16

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) as seen."""
        width, height = self.size
        # Pillow's TIFF reader turns the size, and later the pixels, by itself.
        turned = self.kind != "TIFF" and self._orientation() >= 5
        return (width, height) if turned else (height, width)

    @property
    def bits(self) -> int:
        """8 or 16.

        Raises:
            DataError: the samples are signed or of more than 16 bits.
        """
        if self.kind == "PNG":
            return 16 if self._head[24] == 16 else 8
        if not isinstance(self._image, TiffImagePlugin.TiffImageFile):
            return 8
        bits = max(self._image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
        kinds = self._image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))
        if bits > 16 or any(kind > _FLOAT for kind in kinds) or 2 in kinds:
            raise DataError(
                f"signed or {bits}-bit pixels: convert the file to 8 or 16 bit unsigned"
            )
        return 16 if bits > 8 else 8

    def num_pages(self) -> int:
        """Pages of a TIFF, frames of a PNG or JPEG."""
        if self.kind == "TIFF":
            animated = self._page > 1 or getattr(self._image, "is_animated", False)
            return max(2, count_pages(self._stream)) if animated else 1
        # A JPEG of several names their place in its header.
        frames = int(getattr(self._image, "n_frames", 1))
        return frames + ("mpoffset" in self._image.info)

    def pixels(self, data: bytes) -> Pixels:
        """(H, W) or (H, W, 3), uint8 or uint16, upright."""
        image = self._image
        image.load()
        if self.bits == 16 and not image.mode.startswith("I"):
            # Pillow cuts 16-bit colour to 8 bits; it has checked the file, OpenCV gives the values.
            pixels = read_unchanged(data, np.uint16, page=self._page)
        else:
            pixels = _to_array(image)
        # Both libraries' TIFF readers turn the pixels by themselves.
        orientation = 1 if self.kind == "TIFF" else self._orientation()
        return pixels if orientation == 1 else oriented(pixels, orientation)

    def _orientation(self) -> int:
        # Pillow's PNG reader would decode all pixels to look for metadata behind them.
        if self.kind == "PNG" and "exif" not in self._image.info:
            return 1
        try:
            value = self._image.getexif().get(_ORIENTATION, 1)
        except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
            return 1  # a damaged note beside sound pixels
        return value if value in range(1, 9) else 1


def _to_array(image: ImageFile.ImageFile) -> Pixels:
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16, copy=False)
    if image.mode in ("L", "LA"):
        return _in_parts(image, 1)
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return _in_parts(image, 3)
    return np.asarray(image.convert("L" if image.mode == "1" else "RGB"))


def _in_parts(image: ImageFile.ImageFile, channels: int) -> Pixels:
    """The first channels of an 8-bit image; Pillow would hold a large one two times more."""
    width, height = image.size
    pixels = np.empty((height, width, channels), np.uint8)
    rows = max(1, _PART_PIXELS // width)
    for top in range(0, height, rows):
        part = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        pixels[top : top + rows] = part.reshape(*part.shape[:2], -1)[..., :channels]
    return pixels[..., 0] if channels == 1 else pixels
