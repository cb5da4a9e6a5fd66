"""Attribution maps from the stages of a model: where in the image is the evidence for a class?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import Array
from recame.inference.forward import evaluating
from recame.models import MultiExpertClassifier
from recame.pieces import apart, together

#: Smallest sides of the two maps that are blended: the coarse one has the meaning, the fine one the
#: place.
_SIDES = (4, 8)


def attribution_stages(model: MultiExpertClassifier, images: Tensor) -> tuple[int, ...]:
    """The stages whose maps are blended: the deepest with at least 4 x 4, and with at least 8 x 8.

    Args:
        model: any number of experts.
        images: (B, C, H, W) in [0, 1]; only their size is used.

    Returns:
        One or two stage indices, ascending. If no map is that large, the deepest of the largest
        maps. If only a class token is classified, the last stage is left out, since its patches
        carry no information on the class.
    """
    blind = int(model.architecture.pooling == "token" and model.num_stages > 1)
    with evaluating(model), torch.no_grad():
        maps = (apart(images[:1], model.spec.pieces) - model.mean) / model.std
        sides = []
        for stage in model.stages()[: model.num_stages - blind]:
            maps = stage(maps)
            sides.append(min(maps.shape[2:]))
    largest = max(sides)
    chosen = {
        max(i for i, side in enumerate(sides) if side >= min(least, largest)) for least in _SIDES
    }
    return tuple(sorted(chosen))


def attribution_maps(
    model: MultiExpertClassifier,
    images: Tensor,
    classes: Tensor,
    stages: tuple[int, ...] | None = None,
) -> Array:
    """Compute maps of the evidence for given classes, for each image and expert.

    At each stage: activation times gradient, summed over the channels (HiResCAM: Draelos and Carin,
    arXiv 2011.08891). The gradient is that of the class's logit minus the mean of the expert's
    logits, so that evidence for all classes alike cancels. Evidence against the class is dropped.
    An image's maps of one stage are divided by the largest absolute value among them, resized, and
    averaged over the stages, so they can be compared between classes and between experts. If the
    experts share the stage, the mean over them is the map of the ensemble.

    Args:
        model: its weights get no gradient.
        images: (B, C, H, W) in [0, 1].
        classes: (B, K) class indices.
        stages: indices of stages; None: `attribution_stages`.

    Returns:
        (B, K, E, H, W) float32, 0 or more.
    """
    stages = attribution_stages(model, images) if stages is None else stages
    pieces, size = model.spec.pieces, (int(images.shape[2]), int(images.shape[3]))
    count, num_maps = len(images), classes.shape[1] * model.num_experts
    with evaluating(model):
        spoken = _spoken_for(model, images, classes, stages)
        total = torch.zeros(count, num_maps, *size, device=images.device)
        for parts in spoken:
            maps = together(torch.stack(parts, 1), pieces)
            largest = maps.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
            total += _enlarged(maps / largest, size, pieces).relu()
    shape = (count, classes.shape[1], model.num_experts, *size)
    return np.asarray((total / len(stages)).view(shape).cpu().numpy())


def _spoken_for(
    model: MultiExpertClassifier, images: Tensor, classes: Tensor, stages: tuple[int, ...]
) -> list[list[Tensor]]:
    """Activation times gradient of each stage, summed over its channels, by expert and class."""
    layers = [[model.stages(expert)[i] for expert in range(model.num_experts)] for i in stages]
    left: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        left[layer] = output
        return output.clone()  # later layers may work in place

    hooks = [
        layer.register_forward_hook(keep) for layer in {layer for row in layers for layer in row}
    ]
    try:
        # The weights may have no gradient, so the images must have one.
        logits = model(images.detach().clone().requires_grad_(True)).logits
    finally:
        for hook in hooks:
            hook.remove()
    above = logits - logits.mean(2, keepdim=True)
    found: list[list[Tensor]] = [[] for _ in stages]
    for target in classes.T:
        for expert in range(model.num_experts):
            maps = [left[row[expert]] for row in layers]
            score = above[:, expert].gather(1, target[:, None]).sum()
            for parts, activation, gradient in zip(
                found, maps, torch.autograd.grad(score, maps, retain_graph=True), strict=True
            ):
                parts.append((activation * gradient).sum(1).detach())
    return found


def _enlarged(maps: Tensor, size: tuple[int, int], pieces: int) -> Tensor:
    """Enlarge maps (B, M, h, w) to the size of the images, each tile by itself."""
    of_piece = (size[0] // pieces, size[1])
    return together(functional.interpolate(apart(maps, pieces), of_piece, mode="bilinear"), pieces)
