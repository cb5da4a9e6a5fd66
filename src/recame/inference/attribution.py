"""Where a model looked: attribution maps of its stages, and the gates of its regional attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import Array
from recame.inference.forward import evaluating
from recame.models import MultiExpertClassifier
from recame.pieces import apart, together

#: Least sides of the two maps that are blended: the coarse one sees what, the fine one where.
_SIDES = (4, 8)


def attribution_stages(model: MultiExpertClassifier, images: Tensor) -> tuple[int, ...]:
    """The stages whose maps are blended: the deepest of at least 4 x 4 and of at least 8 x 8.

    Args:
        model: any number of experts.
        images: (B, C, H, W) in [0, 1]; only their size counts.

    Returns:
        One or two stage indices, ascending. Where no map is that large, the deepest of the largest.
        Where only a class token is classified, the last stage's patches say nothing: left out.
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
    """What speaks for each of some classes in each image, by each expert.

    At each stage, activation times gradient, summed over the channels (HiResCAM: Draelos and
    Carin, arXiv 2011.08891); the gradient is that of the
    class's logit above the mean of the expert's logits, so that what speaks for every class alike
    cancels. What speaks against the class is dropped. An image's maps of one stage are divided by
    the largest absolute value among them, resized, and averaged over the stages; so its maps are
    comparable between classes and between experts. The mean over the experts is the map of the
    ensemble where they share the stage.

    Args:
        model: its weights keep no gradient.
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
    """Activation times gradient of each stage, summed over its channels: the experts' by class."""
    layers = [[model.stages(expert)[i] for expert in range(model.num_experts)] for i in stages]
    left: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        left[layer] = output
        return output.clone()  # what follows may work in place

    hooks = [
        layer.register_forward_hook(keep) for layer in {layer for row in layers for layer in row}
    ]
    try:
        # Weights may keep no gradient: it is followed from the images on.
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
    """Maps (B, M, h, w) at the size of the images; no piece tints the one below it."""
    of_piece = (size[0] // pieces, size[1])
    return together(functional.interpolate(apart(maps, pieces), of_piece, mode="bilinear"), pieces)
