"""Mutual distillation: every expert learns from every other one's distribution.

Sources: Zhang et al., Deep Mutual Learning, CVPR 2018; Li et al., Nested Collaborative Learning
(NCL), CVPR 2022. ReCAME-Net uses it in this form.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

#: Added to probabilities before their logarithm, as published. The prior of frequent classes makes
#: probabilities of rare ones tiny: without this, losses differ from the published values by up to
#: 5e-5 and single gradients by 1e-3.
FLOOR_PROBABILITY = 1e-9


def mutual_distillation(logits: Tensor, *, detach_target: bool = False) -> Tensor:
    """Sum over ordered pairs (i, j) of KL(p_j || p_i), divided by E - 1.

    The sum is computed without pairs: with m the mean log-probability of the experts, it is
    `E * sum_j sum_c p_j (log p_j - m)`, which is also exactly 0 for one expert.

    Args:
        logits: (B, E, C) balanced logits, all categories or the masked ones.
        detach_target: whether p_j is a constant. In the published code, both have a gradient.

    Returns:
        (B,) in nats, at least 0 up to rounding.
    """
    num_experts = logits.shape[1]
    probabilities, logs = _distribution(logits)
    mean = logs.mean(1, keepdim=True)
    if detach_target:
        probabilities, logs = probabilities.detach(), logs.detach()
    divergence = (probabilities * (logs - mean)).sum((1, 2))
    return divergence * (num_experts / max(num_experts - 1, 1))


def category_distillation(
    logits: Tensor, categories: Tensor, *, detach_target: bool = False
) -> Tensor:
    """Mutual distillation over the kept categories only.

    Experts may keep different categories, and a divergence between distributions over different
    sets is infinite. So each pair is compared on the categories that its target j keeps.

    Args:
        logits: (B, E, C) balanced logits.
        categories: (B, E, h) class indices that each expert keeps.
        detach_target: whether p_j is a constant.

    Returns:
        (B,) in nats; with h = C the same as `mutual_distillation` over all categories.
    """
    num_experts = logits.shape[1]
    # (B, j, i, h): expert i's logits on the categories that expert j keeps.
    index = categories[:, :, None].expand(-1, -1, num_experts, -1)
    kept = logits[:, None].expand(-1, num_experts, -1, -1).gather(3, index)
    probabilities, logs = _distribution(kept)
    teacher, teacher_logs = (
        values.diagonal(dim1=1, dim2=2).movedim(-1, 1)[:, :, None]
        for values in (probabilities, logs)
    )
    if detach_target:
        teacher, teacher_logs = teacher.detach(), teacher_logs.detach()
    return (teacher * (teacher_logs - logs)).sum((1, 2, 3)) / max(num_experts - 1, 1)


def _distribution(logits: Tensor) -> tuple[Tensor, Tensor]:
    probabilities = functional.softmax(logits, -1)
    return probabilities, (probabilities + FLOOR_PROBABILITY).log()
