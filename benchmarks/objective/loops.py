"""The published objective as its formulas read: the yardstick of what batching it brings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Categories kept by hard category mining, of 31.
NUM_HARD = 9


def loop_objective(logits: Tensor, features: Tensor, target: Tensor, log_counts: Tensor) -> Tensor:
    """The same objective, written as the formulas read: Python loops over pairs and experts."""
    total = logits.new_zeros(())
    size, experts = logits.shape[:2]
    scores = logits[:, 0].detach().scatter(1, target[:, None], torch.inf)
    mask = torch.zeros_like(scores).scatter(1, scores.topk(NUM_HARD).indices, 1.0)
    balanced = [logits[:, k] + log_counts for k in range(experts)]
    for views in (balanced, [x * mask for x in balanced]):
        for x in views:
            total = total + functional.cross_entropy(x, target)
        for i in range(experts):
            for j in range(experts):
                if i != j:
                    learner = (views[i].softmax(-1) + 1e-9).log()
                    pair = functional.kl_div(learner, views[j].softmax(-1), reduction="batchmean")
                    total = total + 0.6 / (experts - 1) * pair
    for k in range(experts):
        pairs, inner = logits.new_zeros(()), logits.new_zeros(())
        for i in range(size):
            for j in range(i + 1, size):
                distance = (features[i, k] - features[j, k]).norm()
                if target[i] == target[j]:
                    pairs, inner = pairs + distance, inner + distance
                else:
                    pairs = pairs + (20.0 - distance).clamp_min(0)
        total = total + (0.05 * pairs + 0.05 * 0.0125 * inner) / size**2
    return total
