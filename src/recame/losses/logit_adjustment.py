"""Cross-entropy, and cross-entropy on logits shifted by the class prior.

Balanced softmax and logit adjustment are one loss: the log of the training prior, times `tau`, is
added to the logits while training and left out at test time. `tau = 0` is plain cross-entropy, one
`tau` an expert makes the experts specialise on head, middle and tail.

Sources: Ren et al., Balanced Meta-Softmax, NeurIPS 2020; Menon et al., Long-tail learning via logit
adjustment, ICLR 2021, Eq. 10; Aimar et al., Balanced Product of Calibrated Experts (BalPoE), CVPR
2023, for one tau an expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recame.errors import ConfigError

#: A class without training images is treated as if it had this many, so that logs stay finite.
FLOOR_COUNT = 1.0


def log_class_counts(counts: Tensor, prior: Tensor | None = None) -> Tensor:
    """Log of the number of training images of each class, as the network meets them.

    A constant added to all classes cancels in the softmax, but not in the published hard category
    mining, which sets categories to 0: there the level of `log(counts)` matters. A prior that a
    sampler imposes is therefore scaled to the same total number of images.

    Args:
        counts: (C,) training images of each class; zeros allowed.
        prior: (C,) probabilities, up to a factor, with which the classes are drawn in training;
            None where every image is drawn equally often.

    Returns:
        (C,) finite; a class below one image counts as one image.

    Examples:
        >>> import torch
        >>> log_class_counts(torch.tensor([1.0, 0.0, 1.0]))
        tensor([0., 0., 0.])
    """
    effective = counts.clamp_min(FLOOR_COUNT)
    if prior is not None:
        effective = (prior / prior.sum() * effective.sum()).clamp_min(FLOOR_COUNT)
    return effective.log()


def checked_tau(tau: float | Sequence[float], num_experts: int) -> Tensor:
    """One factor an expert (E,) as float64, out of one number or one an expert.

    Raises:
        ConfigError: there are as many as neither, or one is not finite.
    """
    factors = torch.as_tensor(tau, dtype=torch.float64)
    if factors.numel() not in {1, num_experts} or not bool(factors.isfinite().all()):
        raise ConfigError(
            f"tau={tau} for num_experts={num_experts}: give one number, or one for each expert."
        )
    return factors.flatten().expand(num_experts).clone()


def adjust_logits(logits: Tensor, log_counts: Tensor, tau: Tensor) -> Tensor:
    """Add `tau * log(counts)`.

    Args:
        logits: (B, E, C).
        log_counts: (C,).
        tau: (E,) one factor an expert.

    Returns:
        (B, E, C), the "balanced logits" of the training loss.
    """
    return logits + tau[:, None] * log_counts


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each image and expert.

    Args:
        logits: (B, E, C).
        target: (B,) class indices.

    Returns:
        (B, E), in nats.
    """
    index = target[:, None, None].expand(-1, logits.shape[1], 1)
    return -functional.log_softmax(logits, -1).gather(2, index).squeeze(2)


def balanced_softmax(logits: Tensor, target: Tensor, log_counts: Tensor, tau: Tensor) -> Tensor:
    """Cross-entropy on logits adjusted by the class prior.

    Args:
        logits: (B, E, C) raw logits.
        target: (B,) class indices.
        log_counts: (C,) see `log_class_counts`.
        tau: (E,) one factor an expert; 1 is consistent for the balanced error.

    Returns:
        (B, E), in nats.
    """
    return cross_entropy(adjust_logits(logits, log_counts, tau), target)
