"""Images that are seen in pieces: one below the other where they are stored, apart in a network.

Needs no torch until it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def apart(images: Tensor, pieces: int) -> Tensor:
    """The pieces of images, each an image: (B, C, T * h, w) -> (B * T, C, h, w).

    Nothing is copied where the images are channels last.
    """
    if pieces == 1:
        return images
    _, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(-1, height // pieces, width, channels)
    return rows.permute(0, 3, 1, 2)


def together(images: Tensor, pieces: int) -> Tensor:
    """What `apart` made of images, as it was: (B * T, C, h, w) -> (B, C, T * h, w)."""
    if pieces == 1:
        return images
    _, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(-1, pieces * height, width, channels)
    return rows.permute(0, 3, 1, 2)
