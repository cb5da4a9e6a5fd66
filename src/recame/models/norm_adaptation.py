"""Batch norm statistics between those of the pretrained weights and those of a set (AdaBN)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from recame.models.experts import MultiExpertClassifier


@torch.no_grad()
def adapt_batch_norms(
    model: MultiExpertClassifier, batches: Iterable[Tensor], share: float
) -> None:
    """Move the statistics of the backbone's batch norms towards those of images, in place.

    Inspection images look unlike ImageNet, and a norm with ImageNet's statistics then gives values
    that the next layer has never seen. The images' own statistics alone are noisy, and forget what
    the weights were trained with; a mixture is better than either (Schneider et al., NeurIPS 2020,
    after AdaBN of Li et al., 2016; docs/decisions/0051). Labels are not used.

    Args:
        model: is left in evaluation mode.
        batches: images (B, C, H, W) in [0, 1], some ten of them or more.
        share: weight of the images' statistics, 0 to 1.
    """
    norms = [
        module
        for stage in (model.trunk, model.tails)
        for module in stage.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    model.eval()
    if share == 0 or not norms:
        return
    before = [[value.clone() for value in _statistics(norm)] for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for images in batches:
        model.pooled(images)
    for norm, pretrained, momentum in zip(norms, before, momenta, strict=True):
        for own, other in zip(_statistics(norm), pretrained, strict=True):
            own.lerp_(other, 1 - share)
        norm.momentum = momentum
    model.eval()


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var
