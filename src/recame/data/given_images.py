"""Converts images in any accepted form to a path, a file's bytes or stored pixels.

The libraries of these objects are not imported here: whoever gives such an object has the library.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from recame.contracts import Array
from recame.data.decode import Image, expanded
from recame.errors import DataError

#: Modes of PIL -> what holds the same values as an array; others hold no stored pixels.
_MODES = {
    **dict.fromkeys(("L", "RGB", "I;16", "I;16L", "I;16B", "I;16N")),
    **dict.fromkeys(("1", "LA", "La"), "L"),
    **dict.fromkeys(("P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"),
}


def given_images(given: Any) -> list[Image]:
    """Images one by one, however they are given.

    Args:
        given: one of, or a sequence, table or generator of: a path of an image, a folder or a
            table; a file's bytes; an open file; pixels as an array (H, W), (H, W, 1) or (H, W, 3)
            or a batch of them; an image of PIL; a tensor of torch, (C, H, W) or (H, W), or a batch
            of them. All may be mixed. Of a DataFrame the column `image` counts.

    Raises:
        DataError: something has another form; says what, and what to do.
    """
    return list(chain.from_iterable(map(expanded, _flat(given))))


def _flat(given: Any) -> Iterator[Image]:
    if isinstance(given, (str, bytes, os.PathLike)):
        yield given  # type: ignore[misc]
    elif isinstance(given, (bytearray, memoryview)):
        yield bytes(given)
    elif _is_of(given, "torch", "detach"):
        yield from _of_tensor(given)
    elif isinstance(given, np.ndarray):
        yield from given if given.ndim == 4 or given.dtype == object else [given]
    elif _is_of(given, "PIL", "getexif"):
        yield _of_pil(given)
    elif hasattr(given, "read"):
        yield _of_file(given)
    elif _is_of(given, "pandas", "columns"):
        if "image" not in given:
            raise DataError(
                f"The table has no column 'image', so it names no images; its columns are "
                f"{', '.join(given)}: give the column that holds the paths, table[NAME]."
            )
        yield from map(os.fspath, given["image"])
    elif isinstance(given, Iterable) and not isinstance(given, dict):
        for each in given:
            yield from _flat(each)
    else:
        raise DataError(
            f"A {type(given).__module__}.{type(given).__name__} is not an image: give a path, a "
            "file's bytes, an open file, an array, a PIL image or a tensor, or a list of these."
        )


def _is_of(given: object, library: str, attribute: str) -> bool:
    """Whether it is an object of a library that need not be installed."""
    return hasattr(given, attribute) and any(
        kind.__module__.partition(".")[0] == library for kind in type(given).__mro__
    )


def _of_file(file: Any) -> bytes:
    content = file.read()
    if not isinstance(content, bytes):
        raise DataError(
            f"{getattr(file, 'name', 'The file')} was opened as text, but images are bytes: open "
            "it with mode 'rb'."
        )
    return content


def _of_pil(image: Any) -> Array:
    """Stored pixels of an image of PIL, upright, as its file would be read."""
    from PIL import ImageOps

    if image.mode == "I":  # 16-bit files, as some versions open them
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError(
                f"A PIL image holds values from {values.min()} to {values.max()}, but stored "
                "pixels have 8 or 16 bits: scale the values to 0 to 65535 first."
            )
        return values.astype(np.uint16)
    if image.mode not in _MODES:
        raise DataError(
            f"A PIL image has the mode {image.mode!r}, which does not hold stored pixels: give its "
            "file, or an image of mode L, RGB or I;16."
        )
    upright = ImageOps.exif_transpose(image)
    mode = _MODES[image.mode]
    pixels = np.asarray(upright if mode is None else upright.convert(mode))
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _of_tensor(tensor: Any) -> Iterator[Array]:
    """Pixels of a tensor, (C, H, W) as torch orders them, or (H, W, C) where only this can be."""
    pixels = tensor.detach().cpu().numpy()
    if pixels.ndim > 4 or pixels.ndim < 2:
        raise DataError(
            f"A tensor of shape {tuple(pixels.shape)} is not an image: give (C, H, W), (H, W), or "
            "a batch (B, C, H, W)."
        )
    if np.issubdtype(pixels.dtype, np.floating):
        raise DataError(
            f"A tensor of {pixels.dtype} was given, but the model itself scales and normalises: "
            "give stored pixels, before ToTensor and Normalize; convert values from 0 to 1 with "
            "(255 * x).round().to(torch.uint8)."
        )
    for image in pixels if pixels.ndim == 4 else [pixels]:
        channels_first = image.ndim == 3 and image.shape[0] in (1, 3)
        yield np.moveaxis(image, 0, -1) if channels_first else image
