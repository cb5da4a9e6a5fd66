"""Whether a confidence of 0.9 means nine times out of ten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

FloatArray = np.ndarray[Any, np.dtype[Any]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

#: Where `fit_temperature` looks.
TEMPERATURE_RANGE = (0.05, 20.0)

_GOLDEN = (5**0.5 - 1) / 2


def reliability_bins(probabilities: FloatArray, target: IntArray, bins: int = 15) -> pd.DataFrame:
    """Compare confidence and accuracy in bins of equal width.

    Args:
        probabilities: (N, C).
        target: (N,) class indices; rows with -1 are left out.
        bins: number of bins over [0, 1].

    Returns:
        One row a bin: `low`, `high`, `images`, mean `confidence`, `accuracy` and their `gap`; the
        last three are NaN where a bin holds no image.
    """
    known = target >= 0
    chosen = probabilities[known].astype(np.float64)
    confidence = chosen.max(1) if len(chosen) else np.zeros(0)
    correct = (chosen.argmax(1) if len(chosen) else np.zeros(0)) == target[known]
    # A bin holds its upper edge, as in Guo et al. (2017).
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(which, minlength=bins)
    empty = np.full(bins, np.nan)
    mean_confidence, accuracy = (
        np.divide(np.bincount(which, values, bins), images, out=empty.copy(), where=images > 0)
        for values in (confidence, correct.astype(np.float64))
    )
    edges = np.linspace(0, 1, bins + 1)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "images": images,
            "confidence": mean_confidence,
            "accuracy": accuracy,
            "gap": mean_confidence - accuracy,
        }
    )


def expected_calibration_error(
    probabilities: FloatArray, target: IntArray, bins: int = 15
) -> float:
    """Mean distance of confidence and accuracy over equal-width bins, weighted by images.

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


def fit_temperature(logits: FloatArray, target: IntArray) -> float:
    """Find the temperature T that makes softmax(logits / T) most likely (Guo et al., ICML 2017).

    The likelihood has one maximum in T; a golden-section search over log T finds it. Where every
    image is called right (or wrong), the answer lies on the edge of `TEMPERATURE_RANGE`.

    Args:
        logits: (N, C) logits or log-probabilities; which of the two makes no difference.
        target: (N,) class indices; rows with -1 are left out.

    Returns:
        T > 0; above 1 the model was too sure. 1.0 when no row has a label.
    """
    known = target >= 0
    if not known.any():
        return 1.0
    scores = logits[known].astype(np.float64)
    # A probability of exactly 0 has no logarithm; its class stays hopeless, and finite.
    scores = np.maximum(scores - scores.max(1, keepdims=True), -1e4)
    own = scores[np.arange(len(scores)), target[known]]

    def loss(log_temperature: float) -> float:
        beta = np.exp(-log_temperature)
        return float((np.log(np.exp(scores * beta).sum(1)) - own * beta).mean())

    low, high = np.log(TEMPERATURE_RANGE)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    while high - low > 1e-5:
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - _GOLDEN * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + _GOLDEN * (high - low)
            loss_right = loss(right)
    return float(np.exp((low + high) / 2))
