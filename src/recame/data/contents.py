"""What the files of a manifest hold: headers, brightness, equal pixels."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from recame.contracts import CONTEXT, Array, IntArray
from recame.data.file_part import split_part
from recame.data.image_file import open_header, stored_form
from recame.data.paged_file import content_sha256
from recame.data.proposal import evenly_spaced
from recame.errors import DataError
from recame.progress import Progress, silent

#: Pixel values that are reckoned with at once.
_BLOCK_VALUES = 1 << 24


def read_headers(
    paths: Sequence[str], sample: int = 2000, *, context: float = CONTEXT
) -> pd.DataFrame:
    """Size, channels and bit depth that the files' headers name; files without one are left out.

    A palette counts as colour, whatever colours it holds; sizes are of the upright image.

    Args:
        paths: files.
        sample: at most so many are opened, evenly spaced.
        context: what is seen of a box, see `PreprocessSpec`.

    Returns:
        One row a file: `path`, `height`, `width`, `channels`, `bits`, `format`, `bytes`.
    """
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in (paths[i] for i in evenly_spaced(len(paths), sample)):
            with contextlib.suppress(DataError, OSError), open_header(Path(path)) as opened:
                stream, part = opened
                size = os.fstat(stream.fileno()).st_size
                form = stored_form(stream, part, context)
                rows.append({"path": path, **form, "bytes": size})
    columns = ["path", "height", "width", "channels", "bits", "format", "bytes"]
    return pd.DataFrame(rows, columns=columns)


def pixel_statistics(images: Array, scale: float, on_progress: Progress = silent) -> pd.DataFrame:
    """Brightness and contrast of each image, and a hash of its pixels.

    Args:
        images: (N, H, W, C) stored pixels, maybe memory-mapped.
        scale: the stored value that means 1.
        on_progress: told of the progress.

    Returns:
        N rows: `brightness` (mean), `contrast` (standard deviation over the image), both of [0, 1]
        pixels, and `digest`, equal for equal pixels only.
    """
    means, deviations = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    digests: list[str] = []
    together = max(1, min(256, _BLOCK_VALUES // max(1, math.prod(images.shape[1:]))))
    for start in range(0, len(images), together):
        block = np.ascontiguousarray(images[start : start + together])
        flat = block.reshape(len(block), -1).astype(np.float32) / scale
        means.append(flat.mean(1))
        deviations.append(flat.std(1))
        digests += [hashlib.blake2b(image.data, digest_size=16).hexdigest() for image in block]
        on_progress("reading pixels", start + len(block), len(images))
    return pd.DataFrame(
        {
            "brightness": np.concatenate(means),
            "contrast": np.concatenate(deviations),
            "digest": digests,
        }
    )


def equal_groups(digests: Sequence[str]) -> IntArray:
    """Number the groups of equal texts.

    Returns:
        (N,) group number, -1 where no other text is equal.

    Examples:
        >>> equal_groups(["a", "b", "a", "c"]).tolist()
        [0, -1, 0, -1]
    """
    codes = pd.factorize(np.asarray(digests, dtype=object))[0]
    repeated = np.bincount(codes) > 1
    return np.where(repeated, np.cumsum(repeated) - 1, -1)[codes]


def content_digests(paths: Sequence[str]) -> list[str]:
    """Hash of each file's bytes and part; the path itself where it cannot be read."""
    digests = []
    for path in paths:
        try:
            digests.append(f"{content_sha256(Path(path))}{split_part(path)[1]}")
        except OSError:
            digests.append(path)
    return digests
