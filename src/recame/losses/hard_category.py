"""Hard category mining: look again at the categories that an image is confused with.

For each image only its own category and the highest-scoring others are kept. Introduced by Li et
al., Nested Collaborative Learning (NCL), CVPR 2022; used so by ReCAME-Net.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recame.losses.logit_adjustment import cross_entropy


def num_hard_categories(num_classes: int, fraction: float) -> int:
    """How many categories to keep, the target's included: at least 2, at most all.

    Examples:
        >>> num_hard_categories(31, 0.3), num_hard_categories(5, 0.3), num_hard_categories(2, 0.9)
        (9, 2, 2)
    """
    return min(num_classes, max(2, round(fraction * num_classes)))


def hard_categories(scores: Tensor, target: Tensor, num_hard: int) -> Tensor:
    """Indices of the target and of the `num_hard - 1` highest-scoring other categories.

    Args:
        scores: (B, E, C); each expert's own scores, or E = 1 for a choice that all share.
        target: (B,) class indices.
        num_hard: h, from 1 to C.

    Returns:
        (B, E, h) class indices, the target first. No gradient flows through the choice.
    """
    index = target[:, None, None].expand(-1, scores.shape[1], 1)
    others = scores.detach().scatter(2, index, -torch.inf)
    return torch.cat([index, others.topk(num_hard - 1, dim=2).indices], 2)


def keep_hard(logits: Tensor, categories: Tensor) -> Tensor:
    """Set the other categories' logits to 0.

    They stay in the softmax with weight `exp(0)`. This is what the published code does; it is not
    the same as leaving them out, for which see `gathered_cross_entropy`.

    Args:
        logits: (B, E, C) balanced logits.
        categories: (B, E, h) class indices to keep.

    Returns:
        (B, E, C).
    """
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(2, categories, value=True)
    return logits.where(kept, 0.0)


def masked_cross_entropy(logits: Tensor, target: Tensor, categories: Tensor) -> Tensor:
    """Cross-entropy with the other categories' logits at 0 (`reference`).

    Args:
        logits: (B, E, C) balanced logits.
        target: (B,) class indices.
        categories: (B, E, h).

    Returns:
        (B, E), in nats.
    """
    return cross_entropy(keep_hard(logits, categories), target)


def gathered_cross_entropy(logits: Tensor, categories: Tensor) -> Tensor:
    """Cross-entropy of a softmax over the kept categories only (`gather`).

    Args:
        logits: (B, E, C) balanced logits.
        categories: (B, E, h), the target first.

    Returns:
        (B, E), in nats; with h = C the cross-entropy over all categories.
    """
    return cross_entropy(logits.gather(2, categories), torch.zeros_like(categories[:, 0, 0]))
