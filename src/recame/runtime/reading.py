"""What a predictor is given -> decoded pixels, or why there are none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recame.contracts import Array, PreprocessSpec
from recame.data.decode import FileFacts, Loss, decode_with_facts, losses, match_with_facts
from recame.data.image_file import whole_file
from recame.data.listing import list_image_names
from recame.errors import DataError
from recame.files import sha256 as file_sha256

#: A file's path, a file's bytes, or decoded pixels.
Image = Path | str | bytes | Array

#: Seconds before each further try to read a file that the system does not give now.
_WAITS_S = (0.1, 0.4, 1.6)
#: After so many files in a row that stayed away, each further one is tried once: it is not the
#: file that is ill, but the place where all of them lie.
_MANY_AWAY = 8
#: What no waiting mends.
_LASTING = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EINVAL),
}
#: Windows' own numbers of what passes, which it maps to lasting ones: a file that another program
#: still writes, a network that is away.
_WINDOWS_PASSING = {32, 33, 51, 53, 54, 59, 64, 67, 121, 1231}


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
        self._spec, self._max_pixels = spec, max_pixels
        self._away = 0

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
                data = image if isinstance(image, bytes) else self._bytes(Path(image), opened)
                if checksum:
                    sha256 = hashlib.sha256(data).hexdigest()
                decoded = decode_with_facts(data, self._spec, max_pixels=self._max_pixels)
            return self._ready(*decoded, sha256)
        except DataError as error:
            if checksum and sha256 is None and not isinstance(image, bytes):
                sha256 = _content(Path(image), error)
            return ReadImage(str(error), sha256, {})

    def _ready(self, pixels: Array, facts: FileFacts, sha256: str | None) -> ReadImage:
        return ReadImage(pixels, sha256, losses(facts, self._spec))

    def _bytes(self, path: Path, opened: contextlib.ExitStack) -> bytes:
        """A file's content; what may pass, as a share that is away, is tried again."""
        waits = iter(_WAITS_S if self._away < _MANY_AWAY else ())
        while True:
            try:
                data = opened.enter_context(whole_file(path, max_pixels=self._max_pixels))
            except DataError as error:
                wait_s = next(waits, None) if _may_pass(error.__cause__) else None
                if wait_s is None:
                    self._away += isinstance(error.__cause__, OSError)
                    raise
                time.sleep(wait_s)
            else:
                self._away = 0
                return data


def _content(path: Path, reason: DataError) -> str | None:
    """Checksum of a file that its header shows to be no image; None where it gives no bytes."""
    if isinstance(reason.__cause__, OSError) and reason.__cause__.errno is not None:
        return None
    try:
        return file_sha256(path)
    except OSError:
        return None


def _may_pass(reason: BaseException | None) -> bool:
    # What a decoder raises has no number of the system's.
    if not isinstance(reason, OSError) or reason.errno is None:
        return False
    return reason.errno not in _LASTING or getattr(reason, "winerror", None) in _WINDOWS_PASSING


def expanded(image: Image) -> Sequence[Image]:
    """A folder's images, or the image itself."""
    if isinstance(image, (str, os.PathLike)) and os.path.isdir(image):  # noqa: PTH112 - as cheap
        return list_image_names([image])
    return [image]


def _checked(image: Array) -> Array:
    """(H, W) or (H, W, 3), uint8 or uint16.

    Raises:
        DataError: the array is no image; the message says what to do.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"An image of {image.dtype} values was given, and the model was trained on stored "
            "pixels: give uint8 (0 to 255) or uint16, as they come from the file or the camera."
        )
    if image.size == 0 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        raise DataError(
            f"An array of shape {image.shape} is no image: give (H, W), (H, W, 1) or (H, W, 3) in "
            "RGB order; drop an alpha channel with image[..., :3]."
        )
    return image[..., 0] if image.shape[2:] == (1,) else image
