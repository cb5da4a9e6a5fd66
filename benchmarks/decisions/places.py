"""What the packaged network sees of images, by places: for scorers that average over none.

An unseen defect type on a known board is, to features that are averaged over the image, that
board. PatchCore (Roth et al., CVPR 2022) compares places: each with the nearest one of a memory,
and an image is as strange as its strangest place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from recame.contracts import FloatArray, IntArray
from recame.models import PACKAGED_BACKBONE, build_backbone, pretrained_mean_std

#: Stages whose maps are laid over each other: strides of 4, 8 and 16 pixels.
STAGES = (1, 2, 3)
MEMORY, PER_IMAGE = 8192, 24


class Seen(NamedTuple):
    """Of N images: channels' means, deviations and maxima (N, P) each, and places (N, Q, D)."""

    means: FloatArray
    deviations: FloatArray
    peaks: FloatArray
    places: FloatArray


class Looker:
    """The packaged EfficientNet-Lite0 with ImageNet weights."""

    def __init__(self, channels: int) -> None:
        trunk = build_backbone(PACKAGED_BACKBONE, pretrained="package", in_channels=channels)
        self._stages = trunk.stages[: max(STAGES) + 2].eval()
        mean, std = pretrained_mean_std(PACKAGED_BACKBONE, "package", channels)
        self._mean = torch.tensor(mean).view(1, -1, 1, 1)
        self._std = torch.tensor(std).view(1, -1, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> Seen:
        """Images (B, C, H, W) in [0, 1]."""
        maps, kept, pooled = (images - self._mean) / self._std, [], []
        for number, stage in enumerate(self._stages):
            maps = stage(maps)
            if number:
                flat = maps.flatten(2)
                pooled.append((flat.mean(2), flat.std(2, correction=0), flat.amax(2)))
            if number in STAGES:
                kept.append(torch.nn.functional.avg_pool2d(maps, 3, 1, 1, count_include_pad=False))
        size = kept[1].shape[2:]
        laid = [torch.nn.functional.interpolate(m, size=size, mode="area") for m in kept[:2]]
        laid += [
            torch.nn.functional.interpolate(m, size=size, mode="bilinear", align_corners=False)
            for m in kept[2:]
        ]
        places = torch.cat(laid, 1).flatten(2).transpose(1, 2)
        return Seen(
            *(torch.cat(part, 1).numpy() for part in zip(*pooled, strict=True)), places.numpy()
        )


def looked_at(batches: Callable[[], object], channels: int) -> Seen:
    """All of an iterable of batches (B, C, H, W)."""
    looker = Looker(channels)
    parts = [looker(batch) for batch in batches()]  # type: ignore[attr-defined]
    return Seen(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class Places:
    """Each place's distance from a memory of the training images' places."""

    def __init__(self, places: FloatArray, target: IntArray, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(target))
        rank = np.zeros(len(target), np.int64)
        for label in np.unique(target):
            rows = order[target[order] == label]
            rank[rows] = np.arange(len(rows))
        images = np.argsort(rank, kind="stable")[: MEMORY // PER_IMAGE]
        chosen = places[images].astype(np.float32)
        picked = np.stack([rng.permutation(chosen.shape[1])[:PER_IMAGE] for _ in images])
        flat = np.take_along_axis(chosen, picked[..., None], 1).reshape(-1, chosen.shape[2])
        self.mean, self.scale = flat.mean(0), flat.std(0) + 1e-6
        self.memory = (flat - self.mean) / self.scale
        covariance = np.cov(self.memory.T) + 0.01 * np.eye(self.memory.shape[1])
        self.whiten = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)

    def distances(self, places: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Of each place (N, Q): to the nearest of the memory, and to all by one covariance."""
        squares = (self.memory**2).sum(1)
        nearest, gauss = [], []
        for part in np.array_split(places, max(1, len(places) // 64)):
            flat = ((part.astype(np.float32) - self.mean) / self.scale).reshape(-1, part.shape[2])
            own = (flat**2).sum(1)
            nearest.append(
                (own + (squares - 2 * flat @ self.memory.T).min(1)).reshape(len(part), -1)
            )
            gauss.append(((flat @ self.whiten) ** 2).sum(1).reshape(len(part), -1))
        return np.concatenate(nearest), np.concatenate(gauss)
