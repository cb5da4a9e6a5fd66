"""From an image's own size to the size that a model sees."""

from __future__ import annotations

import cv2
import numpy as np

from recame.contracts import Pixels, PreprocessSpec
from recame.data.tiles import cut, places


def scaled(pixels: Pixels, height: int, width: int) -> Pixels:
    """Shrink by area, enlarge linearly, each axis by what it needs."""
    pixels = np.ascontiguousarray(pixels)
    smaller = (min(height, pixels.shape[0]), min(width, pixels.shape[1]))
    for target, rule in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if pixels.shape[:2] != target:
            pixels = np.asarray(cv2.resize(pixels, target[::-1], interpolation=rule))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def brought_to(pixels: Pixels, spec: PreprocessSpec) -> Pixels:
    """Bring an image to a specification's size by its rule, or to the pieces that it is seen in.

    Args:
        pixels: (H', W', C) of the specification's depth and channels.
        spec: size, rule and tiles.

    Returns:
        (H, W, C); with tiles the whole image, stretched, and below it the tiles, the most unusual
        first.
    """
    if spec.tiles:
        size = spec.piece_size
        found = (cut(pixels, top, left, *size) for top, left in places(pixels, spec).tolist())
        return np.concatenate([scaled(pixels, *size), *found])
    height, width = pixels.shape[:2]
    if (height, width) == (spec.height, spec.width):
        return pixels
    if spec.resize == "stretch":
        return scaled(pixels, spec.height, spec.width)
    ratios = (spec.height / height, spec.width / width)
    ratio = min(ratios) if spec.resize == "pad" else max(ratios)
    pixels = scaled(pixels, max(1, round(height * ratio)), max(1, round(width * ratio)))
    height, width = pixels.shape[:2]
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    if spec.resize == "crop":
        return pixels[-top : -top + spec.height, -left : -left + spec.width]
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    fill = np.median(rim, axis=0).astype(spec.dtype)
    canvas = np.full((spec.height, spec.width, spec.channels), fill)
    canvas[top : top + height, left : left + width] = pixels
    return canvas
