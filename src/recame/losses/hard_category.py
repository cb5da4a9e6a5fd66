"""Hard category mining: a second loss on the categories that an image is confused with.

For each image, only its own category and the highest-scoring others are kept. Source: Li et al.,
Nested Collaborative Learning (NCL), CVPR 2022. ReCAME-Net uses it in this form.

The hard categories can also be chosen by class instead of by image, from a running confusion
matrix: the categories that images of the class were recently taken for. Zhang et al., Delving Deep
into Label Smoothing, IEEE TIP 2021, keep such a matrix for soft labels; choosing hard categories by
it is a contribution of recame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recame.losses.logit_adjustment import cross_entropy

#: Factor of the old values for each new image of the class: a row of the confusion matrix is a mean
#: over about the latest hundred images of the class.
CONFUSION_MOMENTUM = 0.99


def num_hard_categories(num_classes: int, fraction: float) -> int:
    """Number of categories to keep, the target's included: at least 2, at most all.

    Examples:
        >>> num_hard_categories(31, 0.3), num_hard_categories(5, 0.3), num_hard_categories(2, 0.9)
        (9, 2, 2)
    """
    return min(num_classes, max(2, round(fraction * num_classes)))


def hard_categories(scores: Tensor, target: Tensor, num_hard: int) -> Tensor:
    """Indices of the target and of the `num_hard - 1` highest-scoring other categories.

    Args:
        scores: (B, E, C); each expert's own scores, or E = 1 for one choice for all experts.
        target: (B,) class indices.
        num_hard: h, from 1 to C.

    Returns:
        (B, E, h) class indices, the target first. The choice has no gradient.
    """
    index = target[:, None, None].expand(-1, scores.shape[1], 1)
    others = scores.detach().scatter(2, index, -torch.inf)
    return torch.cat([index, others.topk(num_hard - 1, dim=2).indices], 2)


def keep_hard(logits: Tensor, categories: Tensor) -> Tensor:
    """Set the other categories' logits to 0.

    They stay in the softmax with weight `exp(0)`, as in the published code. This is not the same as
    leaving them out, for which see `gathered_cross_entropy`.

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


def differing_share(categories: Tensor, logits: Tensor) -> Tensor:
    """Share of (image, expert) pairs that keep other categories than those of highest raw logits.

    Args:
        categories: (B, E, h) class indices that are kept.
        logits: (B, E, C) raw logits.

    Returns:
        () in [0, 1]; 0 for an empty batch.
    """
    highest = logits.topk(categories.shape[2], dim=2).indices
    kept, top = (
        torch.zeros_like(logits, dtype=torch.bool).scatter(2, index, value=True)
        for index in (categories, highest)
    )
    differs = (kept != top).any(2)
    return differs.sum() / max(differs.numel(), 1)


def confused_first(confused: Tensor, logits: Tensor) -> Tensor:
    """Scores that rank categories by confusion, and ties by the image's logits.

    Args:
        confused: (B, C) how much each image's class is confused with each category.
        logits: (B, C) of the images.

    Returns:
        (B, C) from C, the first, down to 1.
    """
    order = logits.argsort(dim=1, descending=True, stable=True)
    by_confusion = confused.gather(1, order).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(logits.shape[1], 0, -1, dtype=logits.dtype, device=logits.device)
    order = order.gather(1, by_confusion)
    return torch.zeros_like(logits).scatter(1, order, ranks.expand_as(logits))


def updated_confusion(
    confusion: Tensor, probabilities: Tensor, target: Tensor, weight: Tensor
) -> Tensor:
    """Update a running confusion matrix with a batch.

    The row of each class in the batch moves towards the mean probabilities of its images. The old
    values are multiplied by `CONFUSION_MOMENTUM` once for each image.

    Args:
        confusion: (C, C) mean probabilities, one row for each true class.
        probabilities: (M, C).
        target: (M,) class indices.
        weight: (M,) at least 0, weight of each image.

    Returns:
        (C, C); rows that summed to 1 still do.
    """
    images = confusion.new_zeros(len(confusion)).index_add(0, target, weight)
    sums = torch.zeros_like(confusion).index_add(0, target, weight[:, None] * probabilities)
    mean = sums / images.clamp_min(torch.finfo(sums.dtype).tiny)[:, None]
    faded = (CONFUSION_MOMENTUM**images)[:, None]
    return faded * confusion + (1.0 - faded) * mean


class Confusion(nn.Module):
    """Running confusion matrix: what each class was recently taken for; without gradient.

    It starts uniform: until a class has been seen, an image's own logits decide.

    Args:
        num_classes: C.
    """

    matrix: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.full((num_classes, num_classes), 1 / num_classes))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scores (B, 1, C) for `hard_categories`, of an ensemble's logits (B, C) and the target."""
        return confused_first(self.matrix[target], logits)[:, None]

    @torch.no_grad()
    def remember(self, probabilities: Tensor, target: Tensor, weight: Tensor) -> None:
        """Update the matrix with a batch; see `updated_confusion`."""
        probabilities, weight = probabilities.to(self.matrix.dtype), weight.to(self.matrix.dtype)
        self.matrix.copy_(updated_confusion(self.matrix, probabilities, target, weight))

    def forget(self) -> None:
        """Reset the matrix to uniform."""
        self.matrix.fill_(1 / len(self.matrix))
