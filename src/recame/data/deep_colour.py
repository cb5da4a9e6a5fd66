"""What Pillow would cut to 8 bits or does not know, by OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike

from recame.contracts import Array
from recame.data.opened import one_line
from recame.errors import DataError


def read_unchanged(data: bytes, *kinds: DTypeLike, page: int = 1) -> Array:
    """Decode a file's bytes to their own values, alpha dropped.

    Args:
        data: of the whole file, which a header has been read of.
        kinds: the values that are wanted.
        page: of several.

    Returns:
        (H, W), or (H, W, 3) in RGB order.

    Raises:
        DataError: it cannot be decoded, or to values of another kind.
    """
    # The header was judged; what OpenCV remarks on a file's tags helps nobody.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    encoded = np.frombuffer(data, np.uint8)
    found: Any
    try:
        if page == 1:
            found = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        else:
            span = (page - 1, page)
            _, several = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=span)
            found = several[0] if len(several) == 1 else None
    except cv2.error as error:
        raise DataError(f"damaged: {one_line(error)}") from error
    if found is None or found.dtype not in [np.dtype(kind) for kind in kinds]:
        raise DataError("pixels in a layout that cannot be decoded: convert the file")
    pixels = np.asarray(found)
    if pixels.ndim == 3 and pixels.shape[2] < 3:
        return pixels[..., 0]
    return pixels[..., 2::-1] if pixels.ndim == 3 else pixels
