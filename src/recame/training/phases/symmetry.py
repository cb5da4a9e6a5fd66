"""Under which flips and turns an image keeps its class: asked of the data, before training."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from recame.config import SYMMETRIES, ProbeConfig
from recame.contracts import ensemble_logits
from recame.losses import TrainingLoss
from recame.metrics.statistics import balanced_accuracy
from recame.models import ExpertHead
from recame.training.phases.features import ProbeFeatures, fit_heads

#: Steps of the short probes that are compared; they rank the symmetries as long ones do.
_STEPS = 300
#: A smaller group of symmetries must be better by this much balanced accuracy to be taken.
_MARGIN = 0.01


def choose_symmetry(
    head: ExpertHead,
    train: ProbeFeatures,
    val: ProbeFeatures,
    objective: TrainingLoss,
    settings: ProbeConfig,
    *,
    num_experts: int,
    seed: int,
) -> tuple[str, dict[str, float]]:
    """Fit a short probe for each symmetry, with its views in training and at test time.

    Where orientation carries meaning (text, a part that always lies the same way), turned copies
    are other images and cost accuracy; where it carries none, they multiply the tail.

    Args:
        head: the experts' untrained heads; left as they are.
        train: features under up to 8 views.
        val: the validation split's, under as many views.
        objective: the loss for the probe's prior.
        settings: the probe's section of the settings.
        num_experts: E.
        seed: of every random number.

    Returns:
        The symmetry to take, and each one's balanced accuracy on `val`.
    """
    short = settings.model_copy(update={"steps": min(_STEPS, int(settings.steps))})
    scores = {}
    for name, views in SYMMETRIES.items():
        if views > train.pooled.shape[1]:
            continue
        trial = copy.deepcopy(head)
        seen = replace(train, pooled=train.pooled[:, :views])
        fit_heads(trial, seen, objective, short, num_experts=num_experts, seed=seed)
        scores[name] = _accuracy(trial, val, num_experts, views)
    best = max(scores.values())
    largest_first = sorted(scores, key=lambda name: -SYMMETRIES[name])
    return next(name for name in largest_first if scores[name] >= best - _MARGIN), scores


@torch.inference_mode()
def _accuracy(head: ExpertHead, features: ProbeFeatures, num_experts: int, views: int) -> float:
    device = next(head.parameters()).device
    head.eval()
    total = torch.zeros(())
    for view in range(views):
        inputs = features.expand(features.pooled[:, view].to(device), num_experts)
        total = total + ensemble_logits(head(inputs).logits).softmax(1).cpu()
    right = (total.argmax(1) == features.target) & total.isfinite().all(1)
    return balanced_accuracy(right.numpy(), features.target.numpy())
