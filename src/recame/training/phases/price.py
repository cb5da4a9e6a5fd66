"""The cost of an answer, and the choice of views and networks that are worth it, on `val`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from recame.contracts import FloatArray, IntArray, Predictions
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


def affordable(prices: Mapping[Option, float], limit: float) -> list[Option]:
    """The options within a limit of cost, cheapest first; the cheapest one at any cost."""
    cheapest, *dearer = sorted(prices, key=lambda option: prices[option])
    return [cheapest, *(option for option in dearer if prices[option] <= limit)]


def buy(losses: Mapping[Option, FloatArray], target: IntArray) -> Option:
    """The option with the least log loss, with equal weight of all classes; of equals the first.

    With a few images of a class in `val`, accuracy does not show the gain of one more view, but the
    log loss does (docs/decisions/0022).

    Args:
        losses: option -> (N,) `log_losses` of the same images; cheapest first.
        target: (N,) class indices.
    """
    return min(losses, key=lambda option: float(class_means(losses[option], target).mean()))


def log_losses(predictions: Predictions) -> FloatArray:
    """`true_class_losses` of predictions."""
    return true_class_losses(predictions.probabilities, predictions.target)


def true_class_losses(probabilities: FloatArray, target: IntArray) -> FloatArray:
    """Negative log probability of each true class, after temperature scaling of its own.

    Args:
        probabilities: (N, C).
        target: (N,) class indices.

    Returns:
        (N,).
    """
    scores: FloatArray = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    temperature = float(np.clip(fit_temperature(scores, target), *BELIEVED))
    scaled = calibrated(probabilities, temperature)
    right = np.take_along_axis(scaled, target[:, None], 1)[:, 0]
    losses: FloatArray = -np.log(np.fmax(right, 1e-7))
    return losses
