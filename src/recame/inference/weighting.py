"""Weight experts at test time by how stable their predictions are under flips.

Source: Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed
Recognition (SADE), NeurIPS 2022, Eqs. 6-7 and Algorithm 1. The weights are learned without labels,
but from the images: they hold only for the set of images on which they were learned.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Weighting = Literal["mean", "stability"]

#: Learning stops if a weight falls below this share of an equal weight (the published code: 0.05
#: with three experts), since the most stable combination is often a single expert.
_LEAST_SHARE = 0.15

_MOMENTUM = 0.9

#: Images whose gradient is computed at once.
_CHUNK = 8192


def weighted_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the experts' logits; equal weights give the mean.

    Args:
        logits: (B, E, C).
        weights: (E,) at least 0, sum 1.

    Returns:
        (B, C).
    """
    return torch.einsum("bec,e->bc", logits, weights.to(logits))


def prediction_stability(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Cosine similarity of the weighted experts' softmax predictions of two views (Eq. 6).

    Args:
        first: (B, E, C) logits of one view of each image.
        second: (B, E, C) of another one.
        weights: (E,) at least 0, sum 1.

    Returns:
        (B,) in (0, 1].
    """
    one, two = (weighted_logits(logits, weights).softmax(-1) for logits in (first, second))
    return functional.cosine_similarity(one, two, dim=-1)


def stability_weights(
    first: Tensor, second: Tensor, *, steps: int = 200, lr: float = 0.2
) -> Tensor:
    """Learn expert weights that make the predictions of two views most similar, without labels.

    Gradient ascent with Nesterov momentum from equal weights, with a softmax that keeps them on the
    simplex, until the steps are over or a weight is nearly 0. Deviations from the published code:
    the gradient is that of all images instead of batches, so that neither order nor seed matters;
    no weight decay; steps and learning rate correspond to about its five epochs of 10,000 images.

    Args:
        first: (N, E, C) logits of one view of each image.
        second: (N, E, C) of another one.
        steps: largest number of steps.
        lr: learning rate.

    Returns:
        (E,) at least 0, sum 1, on the logits' device.

    Examples:
        >>> logits = torch.tensor([[[4.0, 0.0], [4.0, 0.0]]])
        >>> stability_weights(logits, logits)
        tensor([0.5000, 0.5000])
    """
    num_images, num_experts = first.shape[:2]
    # The caller may be in inference mode, where no gradient can be computed.
    with torch.inference_mode(mode=False), torch.enable_grad():
        scores = torch.zeros(num_experts, device=first.device, requires_grad=True)
        if num_images == 0 or num_experts == 1:
            return scores.detach().softmax(0)
        one, two = (_differentiable(logits) for logits in (first, second))
        starts = range(0, num_images, _CHUNK)
        climber = torch.optim.SGD([scores], lr=lr, momentum=_MOMENTUM, nesterov=True, maximize=True)
        for _ in range(steps):
            climber.zero_grad()
            for start in starts:
                part = slice(start, start + _CHUNK)
                stability = prediction_stability(one[part], two[part], scores.softmax(0))
                torch.autograd.backward(stability.sum() / num_images)
            climber.step()
            if float(scores.detach().softmax(0).min()) < _LEAST_SHARE / num_experts:
                break
        return scores.detach().softmax(0)


def _differentiable(logits: Tensor) -> Tensor:
    plain = logits.clone() if logits.is_inference() else logits
    return plain.detach().float()
