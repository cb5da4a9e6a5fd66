"""Under which flips and turns an image keeps its class: asked of the data, before training."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from recame.config import SYMMETRIES, ProbeConfig
from recame.contracts import FloatArray, ensemble_logits
from recame.losses import TrainingLoss
from recame.metrics.statistics import class_means, paired_difference
from recame.models import ExpertHead
from recame.training.phases.features import ProbeFeatures, fit_heads
from recame.training.phases.price import true_class_losses

#: Steps of the short probes that are compared; they rank the symmetries as long ones do.
_STEPS = 300
#: A smaller group of symmetries must have a log loss lower by so many standard errors to be taken.
_MARGIN = 1.0


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
        The symmetry to take: the largest group whose log loss is not higher than the least by a
        standard error (docs/decisions/0050). And each one's balanced log loss on `val`.
    """
    short = settings.model_copy(update={"steps": min(_STEPS, int(settings.steps))})
    losses = {}
    for name, views in SYMMETRIES.items():
        if views > train.pooled.shape[1]:
            continue
        trial = copy.deepcopy(head)
        seen = replace(train, pooled=train.pooled[:, :views])
        fit_heads(trial, seen, objective, short, num_experts=num_experts, seed=seed)
        losses[name] = _losses(trial, val, num_experts, views)
    target = val.target.numpy()
    scores = {name: float(class_means(each, target).mean()) for name, each in losses.items()}
    best = losses[min(scores, key=lambda name: scores[name])]

    def good(name: str) -> bool:
        more, error = paired_difference(losses[name] - best, target)
        return more <= _MARGIN * error

    largest_first = sorted(scores, key=lambda name: -SYMMETRIES[name])
    return next(name for name in largest_first if good(name)), scores


@torch.inference_mode()
def _losses(head: ExpertHead, features: ProbeFeatures, num_experts: int, views: int) -> FloatArray:
    """(N,) log losses; an answer that is not a number has the largest."""
    device = next(head.parameters()).device
    head.eval()
    total = torch.zeros(())
    for view in range(views):
        inputs = features.expand(features.pooled[:, view].to(device), num_experts)
        total = total + ensemble_logits(head(inputs).logits).softmax(1).cpu()
    return true_class_losses((total / views).nan_to_num(0.0).numpy(), features.target.numpy())
