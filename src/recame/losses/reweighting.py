"""Losses of other long-tail methods: class-balanced weights, focal, LDAM; and the batch mean.

Sources: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019; Lin et
al., Focal Loss for Dense Object Detection, ICCV 2017; Cao et al., Learning Imbalanced Datasets with
Label-Distribution-Aware Margin Loss, NeurIPS 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recame.losses.logit_adjustment import FLOOR_COUNT, cross_entropy


def class_balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """Inverse effective number of samples, `(1 - beta) / (1 - beta^n)` (Cui et al. 2019).

    Args:
        counts: (C,) training images of each class; a class with none counts as one image.
        beta: in [0, 1]; 0 gives equal weights, 1 is the limit `1 / n`.

    Returns:
        (C,) weights that sum to C.

    Examples:
        >>> class_balanced_weights(torch.tensor([30.0, 10.0]), beta=1.0)
        tensor([0.5000, 1.5000])
    """
    images = counts.double().clamp_min(FLOOR_COUNT)
    if beta >= 1.0:
        weights = 1.0 / images
    else:
        # expm1 is exact where 1 - beta^n would lose digits, for beta close to 1.
        weights = -1.0 / torch.expm1(images * (math.log(beta) if beta > 0 else -math.inf))
    return (weights / weights.sum() * len(weights)).to(counts.dtype)


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Focal loss, `(1 - p)^gamma * -log p` (Lin et al. 2017, Eq. 4).

    Deviation: softmax over the classes instead of one sigmoid per class, as all long-tail work
    does.

    Args:
        logits: (B, E, C).
        target: (B,) class indices.
        gamma: at least 0; 0 is cross-entropy.

    Returns:
        (B, E).
    """
    losses = cross_entropy(logits, target)
    # Without the clamp, a gamma below 1 has an infinite slope at 0, and 0 * inf is NaN.
    miss = (-torch.expm1(-losses)).clamp_min(1e-12)
    return miss.pow(gamma) * losses


def ldam_margins(counts: Tensor, max_margin: float) -> Tensor:
    """Margins that grow as `n^(-1/4)`, the largest being `max_margin` (Cao et al. 2019).

    Args:
        counts: (C,) training images of each class; a class with none counts as one image.
        max_margin: margin of the rarest class, in units of the cosine.

    Returns:
        (C,) in (0, max_margin].
    """
    margins = counts.clamp_min(FLOOR_COUNT).pow(-0.25)
    return margins * (max_margin / margins.max())


def ldam(logits: Tensor, target: Tensor, margins: Tensor, scale: float) -> Tensor:
    """Label-distribution-aware margin loss (Cao et al. 2019).

    The paper subtracts the margin from the cosines and then multiplies by `scale`. Here the
    classifier has multiplied already, so the margin is multiplied too: the loss is the same if
    `scale` is the classifier's scale.

    Args:
        logits: (B, E, C) cosines times the classifier's scale.
        target: (B,) class indices.
        margins: (C,) in units of the cosine.
        scale: the scale by which the classifier multiplied its cosines.

    Returns:
        (B, E), in nats.
    """
    shift = (scale * margins[target])[:, None, None].expand(-1, logits.shape[1], 1)
    index = target[:, None, None].expand_as(shift)
    return cross_entropy(logits.scatter_add(2, index, -shift), target)


def batch_mean(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over the experts, mean over the batch.

    Args:
        losses: (B,) or (B, E).
        weights: (B,) weight of each image, or None. The sum is divided by the sum of the weights,
            as in the code published with LDAM-DRW, so batches of rare classes do not change the
            scale of the loss.

    Returns:
        (); for an empty batch a zero that is still differentiable.
    """
    if weights is None:
        return losses.sum() / max(len(losses), 1)
    per_image = losses.sum(1) if losses.ndim == 2 else losses
    return (weights * per_image).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
