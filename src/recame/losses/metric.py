"""Metric terms on the experts' features: pull a class together, push classes apart.

Both terms use the L2 distances of all pairs of a batch, which are computed once.

Source: Shao et al., ReCAME-Net, IEEE TCAD 2026 (contrastive and intra-class terms); the contrastive
form goes back to Hadsell, Chopra and LeCun, CVPR 2006, without its squares.

The right margin depends on the features: unit vectors of many dimensions have a distance of about
sqrt(2) from each other (Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017, who
learn the boundary for that reason). `relative_margin` takes it from the batch instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

#: Feature vectors shorter than this are not scaled to unit length: their gradient would explode.
SHORTEST_FEATURE = 1e-4


class _PairwiseDistance(torch.autograd.Function):
    """L2 distances by one matrix product in the forward and one in the backward pass.

    `|a - b|^2 = a.a + b.b - 2 a.b` cancels for close pairs, so the products are computed in double
    precision on centred features. That is exact to float32 and still many times cheaper than the
    differences of all pairs.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Distances (E, B, B) of features (B, E, D)."""
        # Apple's and some other accelerators have no double precision.
        exact = torch.float32 if features.device.type == "mps" else torch.float64
        points = features.transpose(0, 1).to(exact)
        points = points - points.mean(1, keepdim=True)
        products = points @ points.mT
        squares = products.diagonal(dim1=1, dim2=2)
        scale = squares[:, :, None] + squares[:, None, :]
        squared = scale - 2.0 * products
        # For equal vectors the rest is rounding: set it to exactly 0, which has no gradient.
        squared = squared.where(squared > 500.0 * torch.finfo(exact).eps * scale, 0.0)
        distances = squared.sqrt()
        ctx.save_for_backward(points, distances)
        ctx.dtype = features.dtype
        return distances.to(torch.promote_types(features.dtype, torch.float32))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient (diag(W 1) - W) X with W = gradient / distance, 0 where the distance is."""
        points, distances = ctx.saved_tensors
        weights = (grad / distances).where(distances > 0.0, 0.0)
        weights = weights + weights.mT
        laplacian = torch.diag_embed(weights.sum(2)) - weights
        return (laplacian @ points).transpose(0, 1).to(ctx.dtype)  # type: ignore[no-any-return]


def unit_features(features: Tensor) -> Tensor:
    """Scale features (..., D) to unit length, at least in float32; tiny ones stay shorter."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return functional.normalize(wide, dim=-1, eps=SHORTEST_FEATURE)


def pairwise_distances(features: Tensor, *, normalise: bool = False) -> Tensor:
    """L2 distances between all images of a batch, for each expert.

    Args:
        features: (B, E, D).
        normalise: whether features are scaled to unit length first; distances are then in [0, 2].

    Returns:
        (E, B, B), float32 (float64 for float64 features), with a zero gradient at distance 0.
        Differentiable once.
    """
    if normalise:
        features = unit_features(features)
    return _PairwiseDistance.apply(features)  # type: ignore[no-any-return]


def contrastive(
    distances: Tensor, target: Tensor, margin: float | Tensor, *, pull: bool = True
) -> Tensor:
    """Contrastive loss: sum over pairs i < j of distance or missing margin, divided by B * B.

    Args:
        distances: (E, B, B) symmetric, zero on the diagonal.
        target: (B,) class indices.
        margin: how far apart images of different classes should be; one number, or (E,).
        pull: whether to pull images of one class together; else only the margin counts.

    Returns:
        (E,): the distance of same-class pairs, plus `max(0, margin - distance)` of the others.
    """
    apart = (_of_experts(margin) - distances).clamp_min(0.0)
    same = target[:, None] == target
    return _over_pairs(distances.where(same, apart) if pull else apart.where(~same, 0.0))


def relative_margin(distances: Tensor, target: Tensor, factor: float) -> Tensor:
    """A factor times the mean distance between images of different classes.

    With a factor of 1, about half of these pairs lie within the margin, for any scale and width of
    the features. A smaller factor pushes only pairs that are closer than usual. It stops when all
    classes are about equally far from each other, as in well trained networks (Papyan, Han and
    Donoho, Prevalence of Neural Collapse, PNAS 2020). A quantile instead of the mean would go on
    pushing its share of the pairs even then.

    Args:
        distances: (E, B, B) symmetric.
        target: (B,) class indices.
        factor: 0 pushes nothing.

    Returns:
        (E,) constants; 0 if the batch has one class only.
    """
    different = target[:, None] != target
    total = distances.detach().where(different, 0.0).sum((1, 2))
    return factor * total / different.sum().clamp_min(1)


def active_share(distances: Tensor, target: Tensor, margin: float | Tensor) -> Tensor:
    """Share of the pairs of different classes that lie within the margin and are pushed apart.

    Args:
        distances: (E, B, B) symmetric.
        target: (B,) class indices.
        margin: one number, or (E,).

    Returns:
        (E,) in [0, 1]; 0 if the batch has one class only.
    """
    different = target[:, None] != target
    within = (distances < _of_experts(margin)) & different
    return within.sum((1, 2)) / different.sum().clamp_min(1)


def intra_class(distances: Tensor, target: Tensor) -> Tensor:
    """Intra-class loss: sum over same-class pairs i < j of the distance, divided by B * B.

    Args:
        distances: (E, B, B) symmetric, zero on the diagonal.
        target: (B,) class indices.

    Returns:
        (E,).
    """
    return _over_pairs(distances.where(target[:, None] == target, 0.0))


def _of_experts(margin: float | Tensor) -> float | Tensor:
    return margin[:, None, None] if isinstance(margin, Tensor) else margin


def _over_pairs(terms: Tensor) -> Tensor:
    """Sum of symmetric (E, B, B) over pairs i < j, divided by B * B: (E,)."""
    return terms.sum((1, 2)) / (2 * max(len(terms[0]), 1) ** 2)
