"""Temperature scaling: fit one number to labelled scores, then divide the logits by it."""

from __future__ import annotations

import numpy as np

from recame.contracts import Array, FloatArray, IntArray

#: Range in which `fit_temperature` searches.
TEMPERATURE_RANGE = (0.05, 20.0)
#: Range in which a temperature is trusted; a validation split without errors would give 0.
BELIEVED = (0.25, 4.0)


def fit_temperature(
    logits: FloatArray, target: IntArray, weights: FloatArray | None = None
) -> float:
    """Find the temperature T that makes softmax(logits / T) most likely (Guo et al., ICML 2017).

    The log-likelihood is concave in 1 / T; the zero of its slope is found by bisection over log T.
    If every image is classified correctly (or wrongly), the result is an end of
    `TEMPERATURE_RANGE`.

    Args:
        logits: (N, C) logits or log-probabilities; both give the same result. Rows with NaN are
            left out.
        target: (N,) class indices; rows with -1 are left out.
        weights: (N,) weight of each image; None: all the same.

    Returns:
        T > 0; above 1 the model was overconfident. 1.0 if no row has a label.
    """
    # The maximum is NaN if any value is; a single -inf is a probability of exactly 0 and allowed.
    known = (target >= 0) & np.isfinite(logits.max(1, initial=-np.inf))
    if not known.any():
        return 1.0
    scores = logits[known].astype(np.float64)
    # The log of a probability of exactly 0 is replaced by a finite value.
    scores = np.maximum(scores - scores.max(1, keepdims=True), -1e4)
    own = scores[np.arange(len(scores)), target[known]]
    counted = None if weights is None else weights[known]

    low, high = np.log(TEMPERATURE_RANGE)
    while high - low > 1e-5:
        middle = (low + high) / 2
        powers = np.exp(scores * np.exp(-middle))
        # Derivative of the loss with respect to 1 / T.
        slopes = (powers * scores).sum(1) / powers.sum(1) - own
        slope = slopes.mean() if counted is None else counted @ slopes
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def calibrated(probabilities: Array, temperature: float) -> Array:
    """`softmax(log(probabilities) / temperature)`, (N, C)."""
    if temperature == 1 or not probabilities.size:
        return probabilities
    scores = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)) / temperature
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
