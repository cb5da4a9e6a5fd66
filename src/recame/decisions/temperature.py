"""One number that says how sure a model may be: fitted to labelled scores, then divided by."""

from __future__ import annotations

import numpy as np

from recame.contracts import Array, FloatArray, IntArray

#: Where `fit_temperature` looks.
TEMPERATURE_RANGE = (0.05, 20.0)
#: Where a temperature is believed; a validation split without an error asks for 0.
BELIEVED = (0.25, 4.0)


def fit_temperature(
    logits: FloatArray, target: IntArray, weights: FloatArray | None = None
) -> float:
    """Find the temperature T that makes softmax(logits / T) most likely (Guo et al., ICML 2017).

    The likelihood is concave in 1 / T; its slope is bisected over log T. Where every
    image is called right (or wrong), the answer lies on the edge of `TEMPERATURE_RANGE`.

    Args:
        logits: (N, C) logits or log-probabilities; which of the two makes no difference. Rows that
            are no numbers are left out.
        target: (N,) class indices; rows with -1 are left out.
        weights: (N,) how much each image counts; None: all the same.

    Returns:
        T > 0; above 1 the model was too sure. 1.0 when no row has a label.
    """
    # The largest is NaN where any is; -inf, a probability of exactly 0, is a number.
    known = (target >= 0) & np.isfinite(logits.max(1, initial=-np.inf))
    if not known.any():
        return 1.0
    scores = logits[known].astype(np.float64)
    # A probability of exactly 0 has no logarithm; its class stays hopeless, and finite.
    scores = np.maximum(scores - scores.max(1, keepdims=True), -1e4)
    own = scores[np.arange(len(scores)), target[known]]
    counted = None if weights is None else weights[known]

    low, high = np.log(TEMPERATURE_RANGE)
    while high - low > 1e-5:
        middle = (low + high) / 2
        powers = np.exp(scores * np.exp(-middle))
        # How the loss grows with 1 / T.
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
