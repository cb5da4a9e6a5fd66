"""The cost of an answer, and the choice of views and networks that are worth it, on `val`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from recame.contracts import FloatArray, Predictions
from recame.decisions.temperature import BELIEVED, calibrated, fit_temperature
from recame.metrics.statistics import class_means
from recame.models import MultiExpertClassifier

#: Multiply-accumulates per second, to convert a limit in images per second: the speed of the
#: packaged backbone's graph on two cores (docs/decisions/0022). It is a constant, so that the same
#: images and seed choose the same network on any machine, however busy.
NOMINAL_MACS_PER_S = 3.3e10


class Option(NamedTuple):
    """A way to answer.

    Attributes:
        network: name of the candidate.
        views: number of views in test-time augmentation.
    """

    network: str
    views: int


def macs(model: MultiExpertClassifier) -> float:
    """Multiply-accumulates of one image's forward pass, without test-time augmentation."""
    spec = model.spec
    device = next(model.parameters()).device
    blank = torch.zeros(1, spec.channels, spec.height, spec.width, device=device)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(blank)
    model.train(was_training)
    return float(counter.get_total_flops()) / 2


def buy(
    predicted: Mapping[Option, Predictions], prices: Mapping[Option, float], limit: float
) -> Option:
    """Start with the cheapest option, and take each more expensive one that pays off on `val`.

    An option pays off if it has a smaller log loss, with its own temperature and equal weight of
    all classes. With a few images of a class in `val`, accuracy does not show the gain of one more
    view, but the log loss does (docs/decisions/0022).

    Args:
        predicted: predictions of each option, for the same images.
        prices: cost of each option, in any unit.
        limit: largest cost; the cheapest option is allowed at any cost.
    """
    by_price = sorted(predicted, key=lambda option: prices[option])
    bought, *dearer = by_price
    losses = {option: _balanced_loss(found) for option, found in predicted.items()}
    for option in dearer:
        if prices[option] <= limit and losses[option] < losses[bought]:
            bought = option
    return bought


def _balanced_loss(predictions: Predictions) -> float:
    """Mean over the classes of the mean negative log probability of the true class, calibrated."""
    scores: FloatArray = np.log(np.maximum(predictions.probabilities.astype(np.float64), 1e-30))
    temperature = float(np.clip(fit_temperature(scores, predictions.target), *BELIEVED))
    probabilities = calibrated(predictions.probabilities, temperature)
    right = np.take_along_axis(probabilities, predictions.target[:, None], 1)[:, 0]
    return float(class_means(-np.log(np.fmax(right, 1e-7)), predictions.target).mean())
