"""Calibration of confidences: is an image with confidence 0.9 right nine times out of ten?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recame.contracts import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd


def reliability_bins(probabilities: FloatArray, target: IntArray, bins: int = 15) -> pd.DataFrame:
    """Compare confidence and accuracy in bins of equal width.

    Args:
        probabilities: (N, C).
        target: (N,) class indices; rows with -1 are left out.
        bins: number of bins over [0, 1].

    Returns:
        One row per bin: `low`, `high`, `images`, mean `confidence`, `accuracy` and their `gap`; the
        last three are NaN if the bin holds no image.
    """
    import pandas as pd

    known = target >= 0
    chosen = probabilities[known].astype(np.float64)
    confidence, correct = chosen.max(1), chosen.argmax(1) == target[known]
    # A bin includes its upper edge, as in Guo et al. (2017).
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    edges, images = np.linspace(0, 1, bins + 1), np.bincount(which, minlength=bins)
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "images": images})
    table["confidence"] = np.bincount(which, confidence, bins) / table["images"]
    table["accuracy"] = np.bincount(which, correct, bins) / table["images"]
    table["gap"] = table["confidence"] - table["accuracy"]
    return table


def expected_calibration_error(
    probabilities: FloatArray, target: IntArray, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by images.

    Naeini et al., AAAI 2015; 15 bins as in Guo et al., ICML 2017.

    Args:
        probabilities: (N, C).
        target: (N,) class indices; rows with -1 are left out.
        bins: number of bins over [0, 1].

    Returns:
        In [0, 1]; 0 when no row has a label.
    """
    table = reliability_bins(probabilities, target, bins)
    images = table["images"].to_numpy()
    gaps = np.abs(np.nan_to_num(table["gap"].to_numpy()))
    return float((gaps * images).sum() / max(int(images.sum()), 1))
