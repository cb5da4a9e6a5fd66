"""The symmetries of a square of stored pixels, for machines without torch."""

from __future__ import annotations

import numpy as np

from recame.contracts import Array
from recame.errors import ConfigError

#: How many test-time views there may be.
NUM_VIEWS = (1, 2, 4, 8)


def stored_view(images: Array, view: int, pieces: int = 1) -> Array:
    """One of the eight views, as `recame.data.transforms.dihedral_view` numbers them.

    Args:
        images: (B, H, W, C).
        view: 0 as is, 1 mirrored left-right, 2 mirrored up-down, 3 both; 4 to 7 the same of the
            transposed image, which must be square.
        pieces: that each image is made of, one below the other; each is turned by itself.
    """
    if pieces > 1:
        rows = images.reshape(len(images) * pieces, -1, *images.shape[2:])
        return stored_view(rows, view).reshape(images.shape)
    if view >= 4:
        images = images.transpose(0, 2, 1, 3)
    if view & 1:
        images = images[:, :, ::-1]
    if view & 2:
        images = images[:, ::-1]
    return np.ascontiguousarray(images)


def check_views(views: int, height: int, width: int) -> int:
    """Refuse a number of views that images of this size do not have.

    Raises:
        ConfigError: it is none of `NUM_VIEWS`, or asks to turn images that are not square.
    """
    if views not in NUM_VIEWS:
        raise ConfigError(
            f"views={views}: test-time augmentation averages over 1, 2, 4 or 8 flips and rotations "
            "of an image. Give one of these numbers."
        )
    if views > 4 and height != width:
        raise ConfigError(
            f"views={views}: images of {height} x {width} pixels cannot be rotated by 90 degrees. "
            "Give at most 4."
        )
    return views
