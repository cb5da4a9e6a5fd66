"""What an answer costs, and which views and networks are worth it: bought one by one, on `val`."""

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

#: Multiplications and additions a second that a limit in images a second is reckoned with: those
#: of the packaged backbone's graph on two cores (docs/decisions/0022). A constant: the same images
#: and seed choose the same network on any machine, however busy it is.
NOMINAL_MACS_PER_S = 3.3e10


class Option(NamedTuple):
    """A way to answer.

    Attributes:
        network: name of the candidate.
        views: test-time views that are averaged.
    """

    network: str
    views: int


def macs(model: MultiExpertClassifier) -> float:
    """Multiplications and additions of one image's forward under one view."""
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
    """Start with the cheapest option and buy each dearer one that `val` says is worth it.

    A dearer one is worth its price if the images' true classes are more probable by it: the log
    loss, with each option's own temperature, and every class counting alike. The accuracy of a val
    of a few images a class does not see what one more view brings; its log loss does
    (docs/decisions/0022).

    Args:
        predicted: each option's predictions, of the same images.
        prices: of each option, in any unit.
        limit: no option above it is bought, but the cheapest, whatever it costs.
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
