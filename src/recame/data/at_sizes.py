"""A sample of files at several sizes, in memory: each file is read once, and no cache is made."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recame.contracts import Array, IntArray, Pixels, PreprocessSpec
from recame.data.decode import match_pixels, stored_values
from recame.data.image_file import read_image, whole_file
from recame.errors import DataError
from recame.machine import usable_cores

#: Bytes that the images of all sizes may take together.
MOST_BYTES = 2**29
#: Files that are read before the clock is looked at again.
_AT_ONCE = 16


@dataclass(frozen=True)
class ImagesAtSizes:
    """Some files, decoded.

    Attributes:
        positions: (N,) of the files that were decoded, among those that were given; ascending.
        images: for each size (N, H, W, C), as a cache would hold them.
        tried: number of files that there was time and memory for, readable or not.
        seconds: that this took.
    """

    positions: IntArray
    images: tuple[Array, ...]
    tried: int
    seconds: float


def decode_at_sizes(
    paths: Sequence[Path],
    spec: PreprocessSpec,
    sizes: Sequence[tuple[int, int]],
    *,
    max_pixels: int,
    most_s: float | None = None,
) -> ImagesAtSizes:
    """Decode files once each and bring them to every size.

    Files that cannot be read are left out, and so is what time or memory do not suffice for, from
    the end: give the files in an order whose beginning is a sample.

    Args:
        paths: the files.
        spec: all of preprocessing but the size.
        sizes: height and width each.
        max_pixels: an image with more counts as unreadable.
        most_s: seconds after which no further file is begun; None: as long as it takes.
    """
    began = time.monotonic()
    specs = [replace(spec, height=height, width=width) for height, width in sizes]
    image_bytes = sum(s.height * s.width * s.channels * s.dtype.itemsize for s in specs)
    paths = paths[: max(1, MOST_BYTES // image_bytes)]

    def decoded(path: Path) -> list[Pixels] | None:
        try:
            with whole_file(path, max_pixels=max_pixels) as (data, part):
                image = read_image(data, max_pixels=max_pixels, page=part.page)
                image = image._replace(pixels=part.cut(image.pixels, spec.context))
                pixels, _ = stored_values(image, spec.float_range)
                return [match_pixels(pixels, one) for one in specs]
        except DataError:
            return None

    found: list[tuple[int, list[Pixels]]] = []
    tried = 0
    with ThreadPoolExecutor(min(8, usable_cores())) as pool, warnings.catch_warnings():
        # Pillow remarks on odd tags of files that decode well.
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        for start in range(0, len(paths), _AT_ONCE):
            if start and most_s is not None and time.monotonic() - began > most_s:
                break
            some = paths[start : start + _AT_ONCE]
            tried, read = tried + len(some), pool.map(decoded, some)
            found += [(start + n, sides) for n, sides in enumerate(read) if sides is not None]
    images = tuple(
        np.stack([sides[number] for _, sides in found])
        if found
        else np.empty((0, one.height, one.width, one.channels), one.dtype)
        for number, one in enumerate(specs)
    )
    positions = np.array([position for position, _ in found], np.int64)
    return ImagesAtSizes(positions, images, tried, time.monotonic() - began)
