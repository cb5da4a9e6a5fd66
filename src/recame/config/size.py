"""The size of the images a network sees: a side, or height x width."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator

_SIDES = (16, 2048)
_HOW = "give the side of a square, for example 128, or height x width, for example 128x512"


def as_size(value: object) -> int | str:
    """Convert a size to the form of the settings: the side of a square, else the text `HxW`.

    Args:
        value: a side, or a pair of height and width, as numbers or as a text; pixels.

    Examples:
        >>> as_size(128), as_size("96x320"), as_size((96, 320)), as_size("64x64")
        (128, '96x320', '96x320', 64)

    Raises:
        ValueError: the value is no size, or a side is outside 16 to 2048 pixels.
    """
    sides: Sequence[object]
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX×]\s*(\d{1,9}))?\s*", value)  # noqa: RUF001
        sides = [int(side) for side in found.groups() if side is not None] if found else []
    else:
        sides = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    whole = [
        int(side)
        for side in sides
        if isinstance(side, int | float) and not isinstance(side, bool) and side % 1 == 0
    ]
    if not whole or len(whole) < len(sides):
        raise ValueError(_HOW)
    low, high = _SIDES
    if not all(low <= side <= high for side in whole):
        raise ValueError(f"each side must have {low} to {high} pixels: {_HOW}")
    height, width = whole[0], whole[-1]
    return height if height == width else f"{height}x{width}"


def height_width(size: int | str) -> tuple[int, int]:
    """Height and width in pixels of a size in the form of the settings.

    Examples:
        >>> height_width(128), height_width("96x320")
        ((128, 128), (96, 320))
    """
    height, _, width = str(size).partition("x")
    return int(height), int(width or height)


#: A size as `as_size` returns it.
Size = Annotated[int | str, BeforeValidator(as_size)]
