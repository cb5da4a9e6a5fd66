"""An image file -> its own pixels: what may be opened, how much memory it takes, how it is read."""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

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

from recame.contracts import Pixels
from recame.errors import DataError
from recame.files import open_regular

#: First bytes -> reader. Named readers rather than `Image.open`: the content decides and not the
#: file's name, and `max_pixels` is the only limit on the size.
_READERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),
)
#: How the reason starts where a file may open next time: a right, a drive that is away.
NOT_OPENED = "cannot be opened"

_ORIENTATION, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 0x0112, 258, 339
_UNSIGNED, _FLOAT = 1, 3
#: Bytes of a pixel that no format exceeds (four samples of 16 bits), and what comes beside pixels.
_MOST_BYTES, _BESIDE_PIXELS = 8, 2**20
#: Deflate packs no tighter.
_MOST_PACKED = 1100
#: Rows are taken over in parts of so many pixels, so that an image is not held three times.
_PART_PIXELS = 2**24
#: Pages of a file that are counted.
_MOST_PAGES = 1000


def decoders() -> str:
    """Name and version of everything that decides a decoded pixel."""
    codecs = (f"{name} {features.version(name)}" for name in ("libjpeg_turbo", "jpg", "libtiff"))
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


@contextmanager
def open_header(path: Path) -> Iterator[BinaryIO]:
    """Open a file to look at its first bytes; never waits for a pipe or a device.

    Raises:
        DataError: why it cannot be opened, in a few words and without its name.
    """
    with _readable():
        stream = open_regular(path)
    with stream:
        yield stream


@contextmanager
def whole_file(path: Path, *, max_pixels: int) -> Iterator[bytes]:
    """Read a file that is an image by its header and small enough, and give its bytes.

    Within the block file and pixels count among what all threads hold at once.

    Raises:
        DataError: why it cannot be read, in a few words and without its name.
    """
    with open_header(path) as stream:
        with _readable():
            size = os.fstat(stream.fileno()).st_size
            needed = _needed(_open(stream), size, max_pixels)
        with _AT_ONCE.taking(needed):
            with _readable():
                stream.seek(0)
                data = stream.read()
            yield data


@contextmanager
def _readable() -> Iterator[None]:
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


def _needed(image: ImageFile.ImageFile, size: int, max_pixels: int) -> int:
    """Bytes that decoding takes: the file, Pillow's pixels, and ours.

    Raises:
        DataError: there are too many pixels, or more than so many bytes can hold, or the other way
            round.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{width} x {height} = {width * height:,} pixels, more than max_pixels ({max_pixels:,})"
        )
    if size > (most := _MOST_BYTES * max_pixels + _BESIDE_PIXELS):
        raise DataError(
            f"{size:,} bytes, and no image of max_pixels ({max_pixels:,}) needs more than {most:,}"
        )
    if image.format == "PNG" and width * height > 8 * _MOST_PACKED * max(size, 1024):
        raise DataError(f"truncated: {size:,} bytes hold no {width} x {height} pixels")
    grey = image.mode in {"1", "L", "LA"} or image.mode.startswith("I")
    return size + width * height * (6 if grey else 16)


def read_image(data: bytes, *, max_pixels: int) -> tuple[Pixels, int]:
    """Decode a file's bytes at its own size.

    Args:
        data: of the whole file.
        max_pixels: an image with more is refused before it is decoded.

    Returns:
        (H, W) or (H, W, 3) pixels, upright, uint8 or uint16; and how many images the file holds, of
        which this is the first.

    Raises:
        DataError: why the file cannot be used, in a few words and without its name.
    """
    image = _open(io.BytesIO(data))
    with _AT_ONCE.taking(_needed(image, len(data), max_pixels)):
        pages = _num_pages(image, data)
        return _read_pixels(image, data), pages


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def stored_form(stream: BinaryIO) -> dict[str, Any]:
    """`height` and `width` as seen, `channels`, `bits` and `format` that a file's header names.

    Raises:
        DataError: it is no image, or of a kind that is not read.
    """
    image = _open(stream)
    stream.seek(0)
    height, width = _upright_size(image)
    grey = image.mode in {"1", "L", "LA"} or image.mode.startswith("I")
    return {
        "height": height,
        "width": width,
        "channels": 1 if grey else 3,
        "bits": _bits(image, stream.read(32)),
        "format": str(image.format),
    }


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
    """Read the header only."""
    head = stream.read(16)
    stream.seek(0)
    if not head:
        raise DataError("empty file (0 bytes)")
    reader = next((reader for magic, reader in _READERS if head.startswith(magic)), None)
    if reader is None:
        raise DataError("not an image (neither PNG, JPEG, BMP nor TIFF)")
    try:
        return reader(stream)
    except Exception as error:  # a damaged header can break a parser anywhere
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file
        if "unknown pixel mode" in str(error):
            raise DataError(
                "pixels that are neither 8 nor 16 bit unsigned integers: convert the file"
            ) from error
        raise DataError(f"damaged or truncated header: {_one_line(error)}") from error


def _orientation(image: ImageFile.ImageFile) -> int:
    # Pillow's PNG reader would decode all pixels to look for metadata behind them.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return 1  # a damaged note beside sound pixels
    return value if value in range(1, 9) else 1


def _upright_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    width, height = image.size
    # Pillow's TIFF reader turns the size, and later the pixels, by itself.
    turned = image.format != "TIFF" and _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def _bits(image: ImageFile.ImageFile, data: bytes) -> int:
    """Bits of a sample: 8 or 16.

    Raises:
        DataError: the samples are signed, floating-point or of more than 16 bits.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        return 16 if data[24] == 16 else 8
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 8
    bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    kinds = image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    if _FLOAT in kinds:
        raise DataError("floating-point pixels: convert the file to 8 or 16 bit")
    if bits > 16 or any(kind > _FLOAT for kind in kinds) or 2 in kinds:
        raise DataError(f"signed or {bits}-bit pixels: convert the file to 8 or 16 bit unsigned")
    return 16 if bits > 8 else 8


def _read_pixels(image: ImageFile.ImageFile, data: bytes) -> Pixels:
    bits = _bits(image, data)
    try:
        image.load()
        # Pillow cuts 16-bit colour to 8 bits; it has checked the file, OpenCV gives the values.
        is_deep_colour = bits == 16 and not image.mode.startswith("I")
        pixels = _read_deep_colour(data) if is_deep_colour else _to_array(image)
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{NOT_OPENED}: not enough memory") from None
    except Exception as error:  # damaged pixels can break a decoder anywhere
        text = _one_line(error)
        kind = "truncated" if "truncated" in text.lower() else "damaged"
        raise DataError(f"{kind}: {text}") from error
    # Both libraries' TIFF readers turn the pixels by themselves.
    return pixels if image.format == "TIFF" else _orient(pixels, _orientation(image))


def _num_pages(image: ImageFile.ImageFile, data: bytes) -> int:
    """Images in a file, of which the first is read: pages of a TIFF, frames of a PNG or JPEG."""
    if image.format != "TIFF":  # a JPEG of several names their place in its header
        return int(getattr(image, "n_frames", 1)) + ("mpoffset" in image.info)
    if not getattr(image, "is_animated", False):
        return 1
    pages = _open(io.BytesIO(data))
    try:
        for number in range(1, _MOST_PAGES):
            pages.seek(number)
    except Exception:  # noqa: BLE001  # the end, or a page that is damaged
        return max(2, pages.tell() + 1)
    return _MOST_PAGES


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


def _read_deep_colour(data: bytes) -> Pixels:
    # Pillow has judged the file; what OpenCV remarks on its tags helps nobody.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"damaged: {_one_line(error)}") from error
    if pixels is None or pixels.dtype != np.uint16:
        raise DataError("16-bit colour in a layout that cannot be decoded: convert the file")
    return np.asarray(pixels)[..., 2::-1] if pixels.ndim == 3 else np.asarray(pixels)


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (1 to 8, CIPA DC-008 4.6.4)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
