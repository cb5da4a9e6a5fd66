"""An image as given -> the array that a model sees and what is lost on the way, or an error.

Needs no torch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from recame.contracts import Array, Pixels, PreprocessSpec
from recame.data.file_part import FilePart
from recame.data.image_file import DecodedFile, FileContent, read_image, whole_file
from recame.data.listing import is_table, list_image_names
from recame.data.paged_file import content_sha256
from recame.data.resize import brought_to
from recame.errors import DataError

#: Cameras with 10, 12 or 14 bits store them in 16-bit files.
CAMERA_BITS = (10, 12, 14)
#: Pixels that are brought to a specification at once: whole copies of a large image, one for each
#: step, would take several times the memory of the image.
_AT_ONCE_PIXELS = 2**20
#: Differences between channels up to here (of 255) are rounding, not colour.
_GREY_TOLERANCE = 2

#: What a file may lose as it is brought to a specification.
Loss = Literal["clipped", "near black", "colour", "pages"]

#: A file's path, a file's bytes, or decoded pixels.
Image = Path | str | bytes | Array

#: Seconds before each further try to read a file that the system does not give now.
_WAITS_S = (0.1, 0.4, 1.6)
#: After this many unavailable files in a row, each further file is tried only once, as the fault
#: lies with their drive and not with the files.
_MANY_AWAY = 8
#: Bytes of decoded pixels that are kept for a file's next box.
_MOST_KEPT = 2**28
#: Errors that waiting does not remove.
_LASTING = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EINVAL),
}
#: Windows' own numbers of errors that pass, which it maps to lasting ones: a file that another
#: program still writes, a network that is down.
_WINDOWS_PASSING = {32, 33, 51, 53, 54, 59, 64, 67, 121, 1231}


class FileFacts(NamedTuple):
    """Properties of a file that the conversion to a specification may lose.

    Attributes:
        deep: whether its samples have more than 8 bits.
        peak: its largest value, of 16 bits; 0 where file and specification have 8.
        above: shares of its values that need more than 10, 12 and 14 bits.
        coloured: whether colour became grey; not looked at where colour is kept.
        pages: images in the file, of which the first is read; 1 where a page was asked for.
        outside: share of floating-point values outside the specification's range.
    """

    deep: bool = False
    peak: int = 0
    above: tuple[float, float, float] = (0.0, 0.0, 0.0)
    coloured: bool = False
    pages: int = 1
    outside: float = 0.0


#: Facts of a file that loses nothing.
PLAIN = FileFacts()


def clipped_share(facts: FileFacts, spec: PreprocessSpec) -> float:
    """Share of a file's values that lie above the specification's white, or outside its range."""
    if facts.outside or spec.bit_depth == 8:
        return facts.outside
    for bits, share in zip(CAMERA_BITS, facts.above, strict=True):
        if spec.scale < 2**bits:
            return share
    return 0.0


def losses(facts: FileFacts, spec: PreprocessSpec) -> dict[Loss, str]:
    """What a file loses when it is converted to a specification, in words.

    Examples:
        >>> grey = PreprocessSpec(64, 64, 1, 8, 255.0, (0.5,), (0.5,))
        >>> losses(FileFacts(deep=True, peak=4000), grey)
        {'near black': 'its values use 12 of 16 bits, but the model sees only the upper 8 bits'}
    """
    told: dict[Loss, str] = {}
    bits = next((bits for bits in CAMERA_BITS if facts.peak < 2**bits), 16)
    if facts.outside and spec.float_range is not None:
        low, high = spec.float_range
        told["clipped"] = f"{facts.outside:.1%} of its values lie outside {low:g} to {high:g}"
    elif share := clipped_share(facts, spec):
        told["clipped"] = f"{share:.1%} of its values lie above {spec.scale:.0f}, which is white"
    if facts.deep and spec.bit_depth == 8 and bits < 16:
        told["near black"] = (
            f"its values use {bits} of 16 bits, but the model sees only the upper 8 bits"
        )
    elif facts.deep and spec.bit_depth == 16 and 16 * (2**bits - 1) <= spec.scale:
        told["near black"] = f"its values use {bits} bits, but {spec.scale:.0f} is white"
    if facts.coloured:
        told["colour"] = "its colour becomes grey"
    if facts.pages > 1:
        told["pages"] = f"only the first of its {facts.pages} pages is read"
    return told


def near_black(lost: Mapping[Loss, str], spec: PreprocessSpec) -> bool:
    """Whether a model of 8-bit images sees almost nothing of an image, so a person must look."""
    return spec.bit_depth == 8 and "near black" in lost


def decode_image(source: Path | bytes, spec: PreprocessSpec, *, max_pixels: int) -> Pixels:
    """Decode an image file, grey or colour, 8 or 16 bit or floating-point, and bring it to `spec`.

    PNG, JPEG, BMP, TIFF, WebP, JPEG 2000 and PBM, PGM, PPM are read, by their content. EXIF
    orientation is applied and alpha is dropped. Files whose header says which value is white
    (PGM and PPM of other maxima than 255 and 65535, JPEG 2000 of 9 to 15 bits) fill 8 or 16 bits
    by it; floating-point values do by the specification's range. 8-bit files become 16 bit by a
    factor of 257 (255 -> 65535), 16-bit files become 8 bit by their upper byte; colour becomes grey
    by the weights of ITU-R BT.601, grey becomes colour by repetition. An image that already has the
    right size is not resampled.

    Args:
        source: a file, a page of a TIFF file (`file.tif#2`) or a box with what surrounds it
            (`file.png#xywh=10,20,30,40`), or a file's bytes.
        spec: size, channels, bit depth, resize rule, range and context of boxes.
        max_pixels: an image with more is refused before it is decoded.

    Returns:
        (H, W, C), uint8 or uint16 as `spec.dtype`, contiguous.

    Raises:
        DataError: why the file cannot be used, in a few words and without its name.
    """
    if isinstance(source, bytes):
        return decode_with_facts(source, spec, max_pixels=max_pixels)[0]
    with whole_file(source, max_pixels=max_pixels) as file:
        return decode_with_facts(file, spec, max_pixels=max_pixels)[0]


def decode_with_facts(
    file: FileContent | bytes, spec: PreprocessSpec, *, max_pixels: int
) -> tuple[Pixels, FileFacts]:
    """`decode_image` of a file's bytes, and what the file holds that may be lost."""
    data, part = FileContent(file) if isinstance(file, bytes) else file
    decoded = read_image(data, max_pixels=max_pixels, page=part.page)
    return fitted(decoded, part, spec)


def fitted(decoded: DecodedFile, part: FilePart, spec: PreprocessSpec) -> tuple[Pixels, FileFacts]:
    """What `decode_with_facts` gives, of a file that is decoded already.

    Raises:
        DataError: why the part cannot be used.
    """
    if part.box is not None:
        decoded = decoded._replace(pixels=part.cut(decoded.pixels, spec.context))
    pixels, outside = stored_values(decoded, spec.float_range)
    ready, facts = match_with_facts(pixels, spec)
    pages = 1 if part.page else decoded.pages
    if not (decoded.declares_white or outside or pages > 1):
        return ready, facts
    # The file's white is that of 16 bits: dark values are dark, and of no camera's fewer bits.
    peak = 0xFFFF if decoded.declares_white and facts.peak else facts.peak
    return ready, facts._replace(peak=peak, pages=pages, outside=outside)


def stored_values(
    decoded: DecodedFile, float_range: tuple[float, float] | None
) -> tuple[Pixels, float]:
    """Pixels as integers, and the share of floating-point values that are cut off by the range.

    Floating-point values fill 16 bits linearly: the range's ends are 0 and 65535.

    Raises:
        DataError: they are floating-point without a range, or no numbers.
    """
    pixels = decoded.pixels
    if pixels.dtype.kind != "f":
        return pixels, 0.0
    if odd := pixels.size - np.count_nonzero(np.isfinite(pixels)):
        raise DataError(f"{odd:,} of its floating-point values are not finite (NaN or infinite)")
    least, most = float(pixels.min()), float(pixels.max())
    if float_range is None:
        raise DataError(
            f"floating-point pixels, here from {least:.6g} to {most:.6g}, and no setting says "
            "which values are black and white: set data.float_range=[BLACK,WHITE] before training"
        )
    low, high = float_range
    values = pixels.astype(np.float64)  # the range's ends are none of fewer bits
    outside = np.count_nonzero((values < low) | (values > high)) / values.size
    values -= low
    values *= 0xFFFF / (high - low)
    return np.rint(np.clip(values, 0, 0xFFFF, out=values), out=values).astype(np.uint16), outside


def match_pixels(pixels: Pixels, spec: PreprocessSpec) -> Pixels:
    """Bring decoded pixels to a spec's depth, channels and size, as `decode_image` does.

    Args:
        pixels: (H', W') or (H', W', 3), uint8 or uint16.
        spec: size, channels, bit depth and resize rule.

    Returns:
        (H, W, C), uint8 or uint16 as `spec.dtype`, contiguous.
    """
    return match_with_facts(pixels, spec)[0]


def match_with_facts(pixels: Pixels, spec: PreprocessSpec) -> tuple[Pixels, FileFacts]:
    """`match_pixels`, and what the pixels hold that may be lost."""
    deep = pixels.dtype == np.uint16
    watched = deep or spec.bit_depth == 16
    ready = pixels[..., None] if pixels.ndim == 2 and spec.channels == 1 else pixels
    peak, above, coloured = 0, [0] * len(CAMERA_BITS), False
    changes = ready.dtype != spec.dtype or ready.shape[2:] != (spec.channels,)
    if changes:
        ready = np.empty((*pixels.shape[:2], spec.channels), spec.dtype)
    rows = max(1, _AT_ONCE_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), rows) if changes or watched else ():
        part = pixels[top : top + rows]
        matched = _match_depth(part, spec)
        if watched:
            peak, above = _brighter(part if deep else matched, peak, above)
        coloured = coloured or (spec.channels == 1 and is_coloured(part))
        if changes:
            ready[top : top + rows] = _match_channels(matched, spec)
    ten, twelve, fourteen = (number / pixels.size for number in above)
    facts = FileFacts(deep, peak, (ten, twelve, fourteen), coloured)
    return np.ascontiguousarray(brought_to(ready, spec)), facts


def _brighter(values: Pixels, peak: int, above: list[int]) -> tuple[int, list[int]]:
    """The largest of 16-bit values, and how many need more than each camera's bits, so far."""
    most = int(values.max())
    more = [int(np.count_nonzero(values >= 2**b)) if most >= 2**b else 0 for b in CAMERA_BITS]
    return max(peak, most), [sum(both) for both in zip(above, more, strict=True)]


def is_coloured(pixels: Pixels) -> bool:
    """Whether an image of three channels is more than grey stored three times."""
    if pixels.ndim == 2:
        return False
    most = _GREY_TOLERANCE * (257 if pixels.dtype == np.uint16 else 1)
    red, green, blue = cv2.split(np.ascontiguousarray(pixels))
    pairs = ((red, green), (green, blue), (red, blue))
    return any(int(cv2.absdiff(one, other).max()) > most for one, other in pairs)


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


class ReadImage(NamedTuple):
    """An image as a model wants it.

    Attributes:
        pixels: (H, W, C), or why there are none.
        sha256: of the file's bytes, where it was asked for and the file gave any.
        lost: what the image has lost on the way, in words.
    """

    pixels: Array | str
    sha256: str | None
    lost: dict[Loss, str]


class Reader:
    """Reads and decodes images for one model; several threads may use it at once.

    Args:
        spec: how the model wants its images.
        max_pixels: an image with more is refused.
    """

    def __init__(self, spec: PreprocessSpec, max_pixels: int) -> None:
        self._spec, self.max_pixels = spec, max_pixels
        self._away = 0
        self._last: tuple[tuple[str, int], DecodedFile] | None = None

    def read(self, image: Image, *, checksum: bool = False) -> ReadImage:
        """Read and decode one image.

        Args:
            image: a path, a file's bytes, or pixels.
            checksum: whether the checksum of the file's bytes is told.

        Raises:
            DataError: an array is no image.
        """
        if isinstance(image, np.ndarray):
            return self._ready(*match_with_facts(_checked(image), self._spec), None)
        sha256 = None
        try:
            with contextlib.ExitStack() as opened:
                file = FileContent(image) if isinstance(image, bytes) else self._file(image, opened)
                if checksum:
                    sha256 = hashlib.sha256(file.data).hexdigest()
                decoded = self._decoded(file, sha256)
            return self._ready(*decoded, sha256)
        except DataError as error:
            if checksum and sha256 is None and not isinstance(image, bytes):
                sha256 = None if _not_given(error) else self.content(image)
            return ReadImage(str(error), sha256, {})

    def _decoded(self, file: FileContent, sha256: str | None) -> tuple[Pixels, FileFacts]:
        """`decode_with_facts`; the file of the last box is kept, as its next box mostly follows."""
        data, part = file
        if part.box is None:
            return decode_with_facts(file, self._spec, max_pixels=self.max_pixels)
        key = sha256 or hashlib.sha256(data).hexdigest(), part.page
        kept = self._last
        if kept is None or kept[0] != key:
            kept = key, read_image(data, max_pixels=self.max_pixels, page=part.page)
            self._last = kept if kept[1].pixels.nbytes <= _MOST_KEPT else None
        return fitted(kept[1], part, self._spec)

    def _ready(self, pixels: Array, facts: FileFacts, sha256: str | None) -> ReadImage:
        return ReadImage(pixels, sha256, losses(facts, self._spec))

    def whole(self, image: Path | str) -> AbstractContextManager[FileContent]:
        """An image's file, looked at before it is read."""
        return whole_file(Path(image), max_pixels=self.max_pixels)

    def content(self, image: Path | str) -> str | None:
        """Checksum of a file that its header shows to be no image; None where it gives no bytes."""
        try:
            return content_sha256(Path(image))
        except OSError:
            return None

    def _file(self, image: Path | str, opened: contextlib.ExitStack) -> FileContent:
        """A file's content; after an error that may pass (a lost drive), it is read again."""
        waits = iter(_WAITS_S if self._away < _MANY_AWAY else ())
        while True:
            try:
                file = opened.enter_context(self.whole(image))
            except DataError as error:
                wait_s = next(waits, None) if _may_pass(error.__cause__) else None
                if wait_s is None:
                    self._away += isinstance(error.__cause__, OSError)
                    raise
                time.sleep(wait_s)
            else:
                self._away = 0
                return file


def _not_given(reason: DataError) -> bool:
    return isinstance(reason.__cause__, OSError) and reason.__cause__.errno is not None


def _may_pass(reason: BaseException | None) -> bool:
    # What a decoder raises has no number of the system's.
    if not isinstance(reason, OSError) or reason.errno is None:
        return False
    return reason.errno not in _LASTING or getattr(reason, "winerror", None) in _WINDOWS_PASSING


def expanded(image: Image) -> Sequence[Image]:
    """A folder's or a table's images, or the image itself."""
    if not isinstance(image, (str, os.PathLike)):
        return [image]
    if os.path.isdir(image) or (is_table(image) and os.path.isfile(image)):  # noqa: PTH112, PTH113 - as cheap
        return list_image_names([image])
    return [image]


def _checked(image: Array) -> Array:
    """(H, W) or (H, W, 3), uint8 or uint16.

    Raises:
        DataError: the array is no image; the message says what to do.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"An image of {image.dtype} values was given, but the model was trained on stored "
            "pixels: give uint8 (0 to 255) or uint16, as they come from the file or the camera."
        )
    if image.size == 0 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        raise DataError(
            f"An array of shape {image.shape} is not an image: give (H, W), (H, W, 1) or (H, W, 3) "
            "in RGB order; drop an alpha channel with image[..., :3]."
        )
    return image[..., 0] if image.shape[2:] == (1,) else image
