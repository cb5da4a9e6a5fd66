"""The part of a file that a name means: `lot/7.tif#2` a page, `lot/7.png#xywh=10,20,30,40` a box.

A box is a spatial fragment of W3C Media Fragments (`xywh=x,y,width,height`, pixels, here also
fractions of them); one on a page is `lot/7.tif#2&xywh=10,20,30,40`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recame.contracts import Pixels
from recame.errors import DataError

#: Sides of a crop, in pixels, below which a defect's surroundings cannot be seen.
LEAST_SIDE = 32
#: No image has a side of so many pixels.
TOO_FAR = 10**7

_NUMBER = r"\d{1,7}(?:\.\d{1,3})?"
_PART = re.compile(
    rf"(.+)#(?:([1-9]\d{{0,6}})|(?:([1-9]\d{{0,6}})&)?"
    rf"xywh=(-?{_NUMBER}),(-?{_NUMBER}),({_NUMBER}),({_NUMBER}))",
    re.DOTALL,
)


class Box(NamedTuple):
    """A rectangle of the upright image, in pixels from its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def __str__(self) -> str:
        """As names have it: thousandths of a pixel at most, no zeros at the end.

        Examples:
            >>> str(Box(10, 20.5, 30.0, 40.12345))
            '10,20.5,30,40.123'
        """
        return ",".join(f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".") for value in self)


class FilePart(NamedTuple):
    """A part of an image file.

    Attributes:
        page: of a TIFF, from 1; 0: none is asked for, which means the first.
        box: what shall be seen of it; None: all.
    """

    page: int = 0
    box: Box | None = None

    def __str__(self) -> str:
        """What stands behind the file's name; empty for a whole file.

        Examples:
            >>> str(FilePart(2)), str(FilePart(2, Box(1, 2, 3, 4)))
            ('#2', '#2&xywh=1,2,3,4')
        """
        words = [str(self.page)] * bool(self.page)
        words += [] if self.box is None else [f"xywh={self.box}"]
        return f"#{'&'.join(words)}" if words else ""

    def size(self, height: int, width: int, context: float) -> tuple[int, int]:
        """Height and width of what is seen of an upright image.

        Raises:
            DataError: as of `crop`.
        """
        if self.box is None:
            return height, width
        rows, columns = crop(self.box, height, width, context)
        return rows.stop - rows.start, columns.stop - columns.start

    def cut(self, pixels: Pixels, context: float) -> Pixels:
        """What is seen of the upright pixels (H, W) or (H, W, 3).

        Raises:
            DataError: as of `crop`.
        """
        if self.box is None:
            return pixels
        height, width = pixels.shape[:2]
        rows, columns = crop(self.box, height, width, context)
        return pixels[rows, columns]


#: A whole file.
WHOLE = FilePart()


def split_part(name: str | Path) -> tuple[str, FilePart]:
    """A file's name and the part that is asked for.

    Whether a file has the whole name is not looked at: one that has wins.

    Examples:
        >>> split_part("lot/7.tif#2") == ("lot/7.tif", FilePart(2))
        True
        >>> split_part("lot #2/7.png#xywh=1,2,3,4")[1].box
        Box(x=1.0, y=2.0, width=3.0, height=4.0)
        >>> split_part("lot #2/7.tif") == ("lot #2/7.tif", WHOLE)
        True
    """
    text = str(name)
    found = _PART.fullmatch(text) if "#" in text else None
    if found is None:
        return text, WHOLE
    page = int(found[2] or found[3] or 0)
    if found[4] is None:
        return found[1], FilePart(page)
    return found[1], FilePart(page, Box(*map(float, found.groups()[3:])))


def readings(name: str | Path) -> Iterator[tuple[str, FilePart]]:
    """The files that a name may lead to, each with the part of it: the first that exists is meant.

    Examples:
        >>> [(file, str(part)) for file, part in readings("a.tif#2&xywh=1,2,3,4")]
        [('a.tif#2&xywh=1,2,3,4', ''), ('a.tif#2', '#xywh=1,2,3,4'), ('a.tif', '#2&xywh=1,2,3,4')]
    """
    yield str(name), WHOLE
    file, part = split_part(name)
    if part.page and part.box is not None:
        yield f"{file}#{part.page}", FilePart(0, part.box)
    if part != WHOLE:
        yield file, part


def exists(name: str | Path) -> bool:
    """Whether a name leads to a file."""
    return any(Path(file).is_file() for file, _ in readings(name))


def why_missing(name: str | Path) -> str:
    """Why a name leads to no file, in a few words; of a page, that they begin at 1.

    Examples:
        >>> why_missing("nowhere/7.tif#0")
        'no such file'
    """
    file, sign, page = str(name).rpartition("#")
    if sign and re.fullmatch(r"-?\d+", page) and Path(file).is_file():
        return f"no page {page}: pages are counted from 1, as #1, #2"
    return "no such file"


def crop(box: Box, height: int, width: int, context: float) -> tuple[slice, slice]:
    """Rows and columns of an upright image that show a box with what surrounds it.

    They are a square around the box's middle, `context` times as long as the box's longer side and
    `LEAST_SIDE` pixels at least; of a narrow image the largest square, as long as it holds the box.
    At the border the square is shifted inside, so that no pixel is made up. Of a box that reaches
    over the border the part inside counts.

    Args:
        box: its middle must lie in the image.
        height: of the image, in pixels.
        width: of the image, in pixels.
        context: 1 or more.

    Raises:
        DataError: the box has no area, or lies outside.

    Examples:
        >>> crop(Box(90, 10, 20, 30), 480, 640, 2.0)
        (slice(0, 60, None), slice(70, 130, None))
    """
    if box.width <= 0 or box.height <= 0:
        raise DataError(f"its box {box} (x, y, width, height) has no area")
    middle_x, middle_y = box.x + box.width / 2, box.y + box.height / 2
    if not (0 <= middle_x < width and 0 <= middle_y < height):
        raise DataError(
            f"its box {box} (x, y, width, height) lies outside its {width} x {height} pixels"
        )
    left, right = max(box.x, 0.0), min(box.x + box.width, width)
    top, bottom = max(box.y, 0.0), min(box.y + box.height, height)
    longer = max(right - left, bottom - top)
    side = min(max(context * longer, LEAST_SIDE), max(longer, min(height, width)))
    return _span(top, bottom, side, height), _span(left, right, side, width)


def _span(first: float, last: float, side: float, length: int) -> slice:
    """So many pixels around a stretch, shifted inside of the image."""
    size = min(length, math.ceil(side))
    start = round((first + last - size) / 2)
    start = min(max(start, 0), length - size)
    return slice(start, start + size)
