"""A file's bytes -> the array a model sees. Shared with runtimes that have no torch."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from recame.contracts import Pixels, PreprocessSpec, ResizeRule
from recame.errors import DataError

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
#: Cameras with 10, 12 or 14 bits store them in 16-bit files.
_CAMERA_BITS = (10, 12, 14)
#: Differences between channels up to here (of 255) are rounding, not colour.
_GREY_TOLERANCE = 2
#: Pixels that `propose_spec` decodes at most, so that large images cost seconds and not minutes.
_SAMPLE_PIXELS = 2**27
_SIDE_RANGE = (16, 2048)


def decode_image(source: Path | bytes, spec: PreprocessSpec, *, max_pixels: int) -> Pixels:
    """Decode PNG, JPEG, BMP or TIFF, grey or colour, 8 or 16 bit, and bring it to `spec`.

    EXIF orientation is applied and alpha is dropped. 8-bit files become 16 bit by a factor of 257
    (255 -> 65535), 16-bit files become 8 bit by their upper byte; colour becomes grey by the
    weights of ITU-R BT.601, grey becomes colour by repetition. An image that already has the
    right size is not resampled.

    Args:
        source: a file, or a file's bytes.
        spec: size, channels, bit depth and resize rule.
        max_pixels: an image with more is refused before it is decoded.

    Returns:
        (H, W, C), uint8 or uint16 as `spec.dtype`, contiguous.

    Raises:
        DataError: why the file cannot be used, in a few words and without its name.
    """
    data = source if isinstance(source, bytes) else read_source(source)
    return match_pixels(_read_pixels(data, max_pixels), spec)


def match_pixels(pixels: Pixels, spec: PreprocessSpec) -> Pixels:
    """Bring decoded pixels to a spec's depth, channels and size, as `decode_image` does.

    Args:
        pixels: (H', W') or (H', W', 3), uint8 or uint16.
        spec: size, channels, bit depth and resize rule.

    Returns:
        (H, W, C), uint8 or uint16 as `spec.dtype`, contiguous.
    """
    return np.ascontiguousarray(_resize(_match_channels(_match_depth(pixels, spec), spec), spec))


def propose_spec(
    paths: Sequence[Path],
    *,
    size: int | None,
    channels: Literal["auto", 1, 3] = "auto",
    bit_depth: Literal["auto", 8, 16] = "auto",
    resize: ResizeRule = "stretch",
    max_pixels: int,
    sample: int = 64,
    mean: float = 0.5,
    std: float = 0.5,
) -> tuple[PreprocessSpec, tuple[int, int]]:
    """Choose the preprocessing from an evenly spaced sample of the readable files.

    What is left open is decided so: three channels if any sampled image is really coloured; 16
    bit if any file is; the side from the median of sqrt(height * width), within 16 to 2048. The
    scale is 255, or for 16 bit 65535; where no sampled value needs more than 10, 12 or 14 bits
    it is the largest value of that many bits, as cameras of that depth store it.

    Args:
        paths: image files.
        size: side of the square the images are brought to, or None for their own.
        channels: 1, 3 or `auto`.
        bit_depth: 8, 16 or `auto`.
        resize: how the aspect ratio is treated.
        max_pixels: an image with more counts as unreadable.
        sample: how many files are looked at.
        mean: for every channel, in [0, 1].
        std: for every channel, in [0, 1].

    Returns:
        The spec, and the median (height, width) of the files.

    Raises:
        DataError: none of the sampled files can be read.
    """
    sizes: list[tuple[int, int]] = []
    coloured = deep = False
    peak = decoded = 0
    reason = "no files"
    for path in (paths[i] for i in evenly_spaced(len(paths), sample)):
        try:
            data = read_source(path)
            image = _open(io.BytesIO(data))
            height, width = _upright_size(image)
            is_deep = _bits(image, data) == 16
            wanted = (channels == "auto" and not coloured) or is_deep
            # 8-bit files among the others need the whole range.
            file_peak = 0 if is_deep else 0xFFFF
            if wanted and (not sizes or decoded < _SAMPLE_PIXELS):
                pixels = _read_pixels(data, max_pixels)
                decoded += height * width
                coloured = coloured or _is_coloured(pixels)
                file_peak = max(file_peak, int(pixels.max()))
        except DataError as error:
            reason = f"{path}: {error}"
            continue
        sizes.append((height, width))
        deep = deep or is_deep
        peak = max(peak, file_peak)
    native = _median_size(sizes, reason)
    own_side = round(float(np.median([(h * w) ** 0.5 for h, w in sizes])))
    side = size or int(np.clip(own_side, *_SIDE_RANGE))
    num_channels: Literal[1, 3] = (3 if coloured else 1) if channels == "auto" else channels
    depth: Literal[8, 16] = (16 if deep else 8) if bit_depth == "auto" else bit_depth
    bits = next((bits for bits in _CAMERA_BITS if peak < 2**bits), 16) if depth == 16 else 8
    spec = PreprocessSpec(
        height=side,
        width=side,
        channels=num_channels,
        bit_depth=depth,
        scale=float(2**bits - 1),
        mean=(mean,) * num_channels,
        std=(std,) * num_channels,
        resize=resize,
    )
    return spec, native


def working_side(native: tuple[int, int]) -> int:
    """Side in pixels that images are resized to where nobody says: near their own, 64 to 128.

    Args:
        native: median height and width of the images.

    Examples:
        >>> working_side((20, 20)), working_side((90, 100)), working_side((900, 1600))
        (64, 96, 128)
    """
    side = math.sqrt(native[0] * native[1])
    return min(128, max(64, 32 * round(side / 32)))


def native_size(paths: Sequence[Path], *, sample: int = 64) -> tuple[int, int]:
    """Median (height, width) of an evenly spaced sample of files, from their headers alone.

    Raises:
        DataError: none of the sampled files has a readable header.
    """
    sizes, reason = [], "no files"
    for path in (paths[i] for i in evenly_spaced(len(paths), sample)):
        try:
            with path.open("rb") as stream:
                sizes.append(_upright_size(_open(stream)))
        except (DataError, OSError) as error:
            reason = f"{path}: {error}"
    return _median_size(sizes, reason)


def read_source(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: why it cannot be read, in a few words and without its name.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError("no such file") from None
    except OSError as error:
        raise DataError(f"{NOT_OPENED}: {error.strerror or error}") from error


def evenly_spaced(total: int, sample: int) -> list[int]:
    """At most `sample` of so many positions, from the first to the last."""
    return sorted(set(np.linspace(0, total - 1, min(sample, total)).astype(int).tolist()))


def _median_size(sizes: list[tuple[int, int]], reason: str) -> tuple[int, int]:
    if not sizes:
        raise DataError(
            f"None of the sampled images can be read ({reason}), so nothing tells how to "
            "preprocess them. Check the paths and the files."
        )
    height, width = np.median(np.asarray(sizes), axis=0)
    return round(float(height)), round(float(width))


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


def _read_pixels(data: bytes, max_pixels: int) -> Pixels:
    """Decode at the file's own size: (H, W) or (H, W, 3), uint8 or uint16."""
    image = _open(io.BytesIO(data))
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{width} x {height} = {width * height:,} pixels, more than max_pixels ({max_pixels:,})"
        )
    bits = _bits(image, data)
    try:
        image.load()
    except Exception as error:  # damaged pixels can break a decoder anywhere
        text = _one_line(error)
        kind = "truncated" if "truncated" in text.lower() else "damaged"
        raise DataError(f"{kind}: {text}") from error
    # Pillow cuts 16-bit colour to 8 bits; it has checked the file, OpenCV gives the values.
    is_deep_colour = bits == 16 and not image.mode.startswith("I")
    pixels = _read_deep_colour(data) if is_deep_colour else _to_array(image)
    # Both libraries' TIFF readers turn the pixels by themselves.
    return pixels if image.format == "TIFF" else _orient(pixels, _orientation(image))


def _to_array(image: ImageFile.ImageFile) -> Pixels:
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16, copy=False)
    if image.mode == "LA":
        return np.asarray(image)[..., 0]
    if image.mode in ("RGBA", "RGBX"):
        return np.asarray(image)[..., :3]
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode == "1" else "RGB"))


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


def _is_coloured(pixels: Pixels) -> bool:
    if pixels.ndim == 2:
        return False
    spread = int((pixels.max(2) - pixels.min(2)).max())
    return spread > _GREY_TOLERANCE * (257 if pixels.dtype == np.uint16 else 1)


def _match_depth(pixels: Pixels, spec: PreprocessSpec) -> Pixels:
    if pixels.dtype == spec.dtype:
        return pixels
    if spec.bit_depth == 16:
        return pixels.astype(np.uint16) * np.uint16(257)
    return (pixels >> 8).astype(np.uint8)


def _match_channels(pixels: Pixels, spec: PreprocessSpec) -> Pixels:
    """(H, W) or (H, W, 3) -> (H, W, C)."""
    if pixels.ndim == 2:
        grey = pixels[..., None]
        return grey if spec.channels == 1 else np.repeat(grey, 3, axis=2)
    if spec.channels == 3:
        return pixels
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[..., None])


def _scaled(pixels: Pixels, height: int, width: int) -> Pixels:
    """Shrink by area, enlarge linearly, each axis by what it needs."""
    pixels = np.ascontiguousarray(pixels)
    smaller = (min(height, pixels.shape[0]), min(width, pixels.shape[1]))
    for target, rule in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if pixels.shape[:2] != target:
            pixels = np.asarray(cv2.resize(pixels, target[::-1], interpolation=rule))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _resize(pixels: Pixels, spec: PreprocessSpec) -> Pixels:
    """(H', W', C) -> (H, W, C) by the spec's rule."""
    height, width = pixels.shape[:2]
    if (height, width) == (spec.height, spec.width):
        return pixels
    if spec.resize == "stretch":
        return _scaled(pixels, spec.height, spec.width)
    ratios = (spec.height / height, spec.width / width)
    ratio = min(ratios) if spec.resize == "pad" else max(ratios)
    pixels = _scaled(pixels, max(1, round(height * ratio)), max(1, round(width * ratio)))
    height, width = pixels.shape[:2]
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    if spec.resize == "crop":
        return pixels[-top : -top + spec.height, -left : -left + spec.width]
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    fill = np.median(rim, axis=0).astype(spec.dtype)
    canvas = np.full((spec.height, spec.width, spec.channels), fill)
    canvas[top : top + height, left : left + width] = pixels
    return canvas
