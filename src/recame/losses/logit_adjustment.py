"""Cross-entropy, and cross-entropy on logits shifted by the class prior.

Balanced softmax and logit adjustment are the same loss: the log of the training prior, times the
strength `tau`, is added to the logits in training and left out at test time. `tau = 0` is plain
cross-entropy. With a different `tau` for each expert, the experts specialise on head, middle and
tail.

Sources: Ren et al., Balanced Meta-Softmax, NeurIPS 2020; Menon et al., Long-tail learning via logit
adjustment, ICLR 2021, Eq. 10; Aimar et al., Balanced Product of Calibrated Experts (BalPoE), CVPR
2023, for one tau per expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recame.errors import ConfigError

#: Least count of a class, so that logs are finite: a class without training images counts as this.
FLOOR_COUNT = 1.0


def log_class_counts(counts: Tensor, prior: Tensor | None = None) -> Tensor:
    """Log of the number of training images of each class, as the sampler shows them.

    A constant added to all classes cancels in the softmax, but not in the published hard category
    mining, which sets categories to 0: there the level of `log(counts)` matters. So the prior of a
    sampler is scaled to the same total number of images.

    Args:
        counts: (C,) training images of each class; zeros allowed.
        prior: (C,) probabilities, up to a factor, with which training draws the classes; None for
            instance-balanced sampling.

    Returns:
        (C,) finite; less than one image counts as one.

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
    """One factor for each expert, (E,) as float64, from one number or one number per expert.

    Raises:
        ConfigError: the number of values is neither 1 nor E, or one is not finite.
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
        tau: (E,) one factor for each expert.

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
        tau: (E,) one factor for each expert; 1 is consistent for the balanced error.

    Returns:
        (B, E), in nats.
    """
    return cross_entropy(adjust_logits(logits, log_counts, tau), target)
