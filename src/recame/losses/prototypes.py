"""Clusters within classes: each class has a few prototypes, each image is pulled to the nearest.

Defects of one class may look different from each other ("few in many", Shao et al., ReCAME-Net,
IEEE TCAD 2026). A term that pulls all images of a class together works against that; with
prototypes, the images of a class gather in several clusters, which may lie apart.

Sources: Zhou, Wang, Konukoglu and Van Gool, Rethinking Semantic Segmentation: A Prototype View,
CVPR 2022, for several prototypes per class as running means without a gradient, and for the pull to
the nearest. They spread the pixels of a class evenly over its prototypes (Sinkhorn, as Caron et
al., SwAV, NeurIPS 2020), which needs many of each class in a batch; a rare class has only one. So
other rules are used here:

- assignment: online k-means on the sphere (Zhong, Efficient Online Spherical K-means Clustering,
  IJCNN 2005);
- running means: as in VQ-VAE (van den Oord et al., NeurIPS 2017, appendix A.1);
- a prototype that no image has been assigned to for long is freed (Zeghidour et al., SoundStream,
  IEEE/ACM TASLP 2022);
- the image farthest from all prototypes takes a free one (Gonzalez, Clustering to Minimize the
  Maximum Intercluster Distance, 1985).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Factor of the old sums for each new image of the class: prototypes stand for about the latest
#: hundred images of a class, however rare these are.
PROTOTYPE_MOMENTUM = 0.99
#: A prototype that stands for fewer images than this is free. A single image falls below it after
#: 69 further images of its class.
LEAST_IMAGES = 0.5
#: Least cosine distance to all prototypes at which an image takes a free one.
_SAME_PLACE = 1e-4


def num_prototypes(counts: Tensor, most: int) -> Tensor:
    """Largest number of prototypes of each class: n / 2 for n images, from 1 to `most`.

    Args:
        counts: (C,) training images of each class; zeros allowed.
        most: 1 or more.

    Returns:
        (C,) int64.

    Examples:
        >>> num_prototypes(torch.tensor([0, 1, 5, 900]), 4)
        tensor([1, 1, 2, 4])
    """
    return counts.div(2, rounding_mode="floor").clamp(1, most).long()


def own_distances(features: Tensor, target: Tensor, sums: Tensor, images: Tensor) -> Tensor:
    """Cosine distances, `1 - cos`, of each image to the prototypes of its class.

    Args:
        features: (B, E, D) of unit length.
        target: (B,) class indices.
        sums: (C, E, K, D) running sums of features; their directions are the prototypes.
        images: (C, E, K) number of images that each stands for.

    Returns:
        (B, E, K) in [0, 2], infinite for free prototypes. Only `features` have a gradient.
    """
    prototypes = functional.normalize(sums.detach()[target], dim=-1)
    distances = 1.0 - (prototypes @ features[..., None]).squeeze(-1)
    return distances.where(images[target] >= LEAST_IMAGES, torch.inf)


def nearest_distance(distances: Tensor) -> Tensor:
    """The distance to the nearest prototype; 0 if the class has none yet.

    Args:
        distances: (B, E, K) of `own_distances`.

    Returns:
        (B, E).
    """
    nearest = distances.min(2).values
    return nearest.where(nearest.isfinite(), 0.0)


def updated_prototypes(
    sums: Tensor, images: Tensor, room: Tensor, features: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Update the running sums with a batch.

    For each class and expert: first, if a prototype is free, the image of the batch that is
    farthest from the prototypes in use takes it (the first image, if none is in use). Then the old
    sums are multiplied by `PROTOTYPE_MOMENTUM` once for each image of the class in the batch, and
    every image is added to its nearest prototype. Classes that are not in the batch do not change.

    Args:
        sums: (C, E, K, D) running sums of features.
        images: (C, E, K) number of images that each stands for.
        room: (C, K) which prototypes a class may have.
        features: (M, E, D) of unit length.
        target: (M,) class indices.
        weight: (M,) in [0, 1], weight of each image; below `LEAST_IMAGES` it takes no free
            prototype.

    Returns:
        The new sums (C, E, K, D) and images (C, E, K).
    """
    num_classes, num_experts, num_places = images.shape
    distances, nearest = own_distances(features, target, sums, images).min(2)
    free = room[:, None] & (images < LEAST_IMAGES)
    opener = _openers(distances, target, weight, num_classes).where(free.any(2), -1)
    place = free.int().argmax(2)  # the first free prototype
    opens = opener[target] == torch.arange(len(target), device=target.device)[:, None]
    chosen = place[target].where(opens, nearest)
    counted = weight[:, None] * (opens | distances.isfinite())
    fresh = functional.one_hot(place, num_places).bool() & (opener >= 0)[..., None]
    faded = PROTOTYPE_MOMENTUM ** weight.new_zeros(num_classes).index_add(0, target, weight)
    kept = faded[:, None, None].where(~fresh, 0.0)
    experts = torch.arange(num_experts, device=target.device)
    index = ((target[:, None] * num_experts + experts) * num_places + chosen).flatten()
    images = (kept * images).flatten().index_add(0, index, counted.flatten()).view_as(images)
    added = (counted[..., None] * features).flatten(0, 1)
    sums = (kept[..., None] * sums).flatten(0, 2).index_add(0, index, added).view_as(sums)
    return sums, images


def _openers(distances: Tensor, target: Tensor, weight: Tensor, num_classes: int) -> Tensor:
    """The image of each class that is farthest from its prototypes (C, E), the first of equal ones.

    -1 if no image of the class has enough weight and distance from them.
    """
    num_images, num_experts = distances.shape
    index = target[:, None].expand(-1, num_experts)
    eligible = (weight[:, None] >= LEAST_IMAGES) & (distances > _SAME_PLACE)
    score = distances.where(eligible, -1.0)
    best = score.new_full((num_classes, num_experts), -1.0).scatter_reduce(0, index, score, "amax")
    rows = torch.arange(num_images, device=target.device)[:, None]
    rows = rows.where((score == best[target]) & (score > 0.0), num_images)
    first = rows.new_full((num_classes, num_experts), num_images)
    first = first.scatter_reduce(0, index, rows, "amin")
    return first.where(first < num_images, -1)


class Prototypes(nn.Module):
    """The prototypes of every class and expert, a memory without gradient.

    Args:
        counts: (C,) training images of each class, zeros included.
        num_experts: E.
        num_features: D.
        most: largest number of prototypes of a class; see `num_prototypes`.
    """

    sums: Tensor
    images: Tensor
    room: Tensor

    def __init__(self, counts: Tensor, num_experts: int, num_features: int, most: int) -> None:
        super().__init__()
        allowed = num_prototypes(counts, most)
        num_places = int(allowed.max())
        shape = (len(counts), num_experts, num_places)
        self.register_buffer("sums", torch.zeros(*shape, num_features))
        self.register_buffer("images", torch.zeros(shape))
        room = torch.arange(num_places) < allowed[:, None]
        self.register_buffer("room", room, persistent=False)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Distances (B, E) of unit features (B, E, D) to the nearest prototype of their class."""
        sums = self.sums.to(features.dtype)
        return nearest_distance(own_distances(features, target, sums, self.images))

    @torch.no_grad()
    def remember(self, features: Tensor, target: Tensor, weight: Tensor) -> None:
        """Update the running sums with a batch; see `updated_prototypes`."""
        features, weight = features.to(self.sums.dtype), weight.to(self.sums.dtype)
        updated = updated_prototypes(self.sums, self.images, self.room, features, target, weight)
        for buffer, value in zip((self.sums, self.images), updated, strict=True):
            buffer.copy_(value)

    def forget(self) -> None:
        """Free all prototypes."""
        self.sums.zero_()
        self.images.zero_()

    def num_live(self) -> Tensor:
        """() number of prototypes in use per class: mean over experts and classes that have any."""
        live = (self.images >= LEAST_IMAGES).sum(2).float()
        return live.sum() / (live > 0).sum().clamp_min(1)
