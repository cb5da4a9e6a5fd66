"""Long-tailed versions of balanced sets, as the literature makes them."""

from __future__ import annotations

import numpy as np

from recame.contracts import IntArray
from recame.errors import ConfigError


def long_tailed_counts(num_classes: int, max_count: int, imbalance: float) -> IntArray:
    """Images a class under the exponential profile of Cao et al. (NeurIPS 2019).

    n_c = floor(max_count * imbalance ** (-c / (C - 1))), so that the first class has `max_count`
    and the last one `max_count / imbalance` images.

    Args:
        num_classes: C, at least 2.
        max_count: images of the first class.
        imbalance: largest count over smallest, at least 1.

    Returns:
        (C,) counts, descending.

    Raises:
        ConfigError: an argument is out of range.

    Examples:
        >>> long_tailed_counts(10, 5000, 100).tolist()
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    if num_classes < 2 or max_count < 1 or imbalance < 1:
        raise ConfigError(
            f"A long tail needs at least 2 classes, 1 image and an imbalance of 1, got "
            f"{num_classes}, {max_count} and {imbalance}: correct them."
        )
    share = np.arange(num_classes) / (num_classes - 1)
    # The small term keeps 5000 / 100 from becoming 49.
    return np.floor(max_count * float(imbalance) ** -share + 1e-9).astype(np.int64)
