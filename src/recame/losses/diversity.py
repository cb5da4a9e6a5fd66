"""Diversity: pushes the experts away from their ensemble.

Source: Wang et al., Long-tailed Recognition by Routing Diverse Distribution-Aware Experts (RIDE),
ICLR 2021, Eq. 4. As in the published code, each expert is compared with the ensemble instead of
with every other expert, and the ensemble is a constant.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from recame.contracts import ensemble_logits


def expert_divergence(logits: Tensor) -> Tensor:
    """Sum over the experts of KL(ensemble || expert).

    Args:
        logits: (B, E, C).

    Returns:
        (B,) in nats, at least 0 up to rounding; 0 for one expert or equal ones.
    """
    logs = functional.log_softmax(logits, -1)
    ensemble = functional.log_softmax(ensemble_logits(logits), -1).detach()
    return (ensemble.exp()[:, None] * (ensemble[:, None] - logs)).sum((1, 2))
