"""Embed images by a frozen backbone, without any training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recame.contracts import Array, FloatArray, PreprocessSpec
from recame.data.cache import PickedRows
from recame.data.transforms import to_unit
from recame.models import (
    PACKAGED_BACKBONE,
    FrozenForward,
    LoadedModel,
    MultiExpertClassifier,
    build_backbone,
    pretrained_mean_std,
)
from recame.progress import Progress, silent

#: Stages of the packaged network that are used; the outputs of all but the first are pooled. Early
#: stages see texture and edges, in which product lines and defects differ.
NUM_STAGES = 5
#: Images are resized to about SIDE x SIDE pixels, in their own shape; smaller images are enlarged,
#: which gives finer maps.
SIDE = 96
_BATCH = 128
_BATCH_PIXELS = _BATCH * 256 * 256


@dataclass(frozen=True)
class Embedding:
    """Vectors of N images.

    Attributes:
        looks: (N, P) mean and standard deviation of each channel's map: the appearance of the
            surface, wherever the pattern lies.
        details: (N, Q) the same with each channel's maximum, which reacts to small defects.
        source: the network that made them, in words.
    """

    looks: FloatArray
    details: FloatArray
    source: str


class _PackagedTrunk(nn.Module):
    """The first stages of the packaged EfficientNet-Lite0 with ImageNet weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        trunk = build_backbone(PACKAGED_BACKBONE, pretrained="package", in_channels=channels)
        self.stages = nn.ModuleList(list(trunk.stages)[:NUM_STAGES])
        mean, std = pretrained_mean_std(PACKAGED_BACKBONE, "package", channels)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> means and deviations (B, P), maxima (B, P / 2)."""
        size = _seen_size(int(images.shape[2]), int(images.shape[3]), self.side)
        maps = nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
        maps = (maps - self.mean) / self.std
        means, deviations, peaks = [], [], []
        for number, stage in enumerate(self.stages):
            maps = stage(maps)
            if number:
                flat = maps.flatten(2)
                mean = flat.mean(2)
                means.append(mean)
                deviations.append((flat.square().mean(2) - mean.square()).clamp_min(0).sqrt())
                peaks.append(flat.amax(2))
        return torch.cat([*means, *deviations], 1), torch.cat(peaks, 1)


def _seen_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Size at which the packaged network sees an image: its shape, no side below `side` / 3."""
    scale = side / (height * width) ** 0.5
    return max(side // 3, round(height * scale)), max(side // 3, round(width * scale))


class _RunTrunk(nn.Module):
    """The features of a trained model before its heads, averaged over the experts."""

    def __init__(self, model: MultiExpertClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> (B, P), and an empty array (B, 0).

        For a tiled image, the maximum of each feature over the tiles: a defect may lie in one tile.
        """
        pooled = self.model.pooled(images).mean(1)
        if self.model.spec.tiles:
            pooled = pooled.view(len(pooled), self.model.spec.pieces, -1).amax(1)
        return pooled, pooled[:, :0]


def embed_images(
    images: Array | PickedRows,
    spec: PreprocessSpec,
    *,
    model: LoadedModel | None = None,
    side: int = SIDE,
    on_progress: Progress = silent,
) -> Embedding:
    """Embed images by the packaged EfficientNet-Lite0, or by a trained model.

    Args:
        images: (N, H, W, C) stored pixels; N >= 1.
        spec: how they were decoded; that of the model if one is given.
        model: its pooled features are used instead. It has seen the labels of its training images,
            so it may hide label errors that it has memorised.
        side: the packaged network sees about side x side pixels.
        on_progress: called with the progress.
    """
    trunk: nn.Module
    if model is None:
        trunk = _PackagedTrunk(spec.channels, side)
        source = "EfficientNet-Lite0 (ImageNet), not trained"
    else:
        trunk, source = _RunTrunk(model.model), f"trained {model.architecture.backbone}"
    if model is None:
        seen = _seen_size(spec.height, spec.width, side)
        return _embedded(
            trunk.eval(), source, images, spec, num_pixels=seen[0] * seen[1], progress=on_progress
        )
    device, mode = next(model.model.parameters()).device, model.model.training
    try:
        trunk = trunk.to("cpu").eval()
        return _embedded(trunk, source, images, spec, num_pixels=None, progress=on_progress)
    finally:  # the model belongs to the caller
        model.model.to(device).train(mode)


def _embedded(
    trunk: nn.Module,
    source: str,
    images: Array | PickedRows,
    spec: PreprocessSpec,
    *,
    num_pixels: int | None,
    progress: Progress,
) -> Embedding:
    """The backbone's features; `num_pixels`: size to which it resizes images, None: it does not."""
    looks: list[Tensor] = []
    peaks: list[Tensor] = []
    forward: FrozenForward | None = None
    step = max(1, min(_BATCH, _BATCH_PIXELS // (spec.height * spec.width)))
    for start in range(0, len(images), step):
        block = np.ascontiguousarray(images[start : start + step])
        if block.dtype == np.uint16:
            block = block.astype(np.int32)
        batch = to_unit(torch.from_numpy(block).permute(0, 3, 1, 2), spec.scale)
        if forward is None:
            size = batch.shape[-1] * batch.shape[-2]
            scale = 1 if num_pixels is None else num_pixels / size
            forward = FrozenForward(trunk, batch, num_images=int(len(images) * max(scale, 1)))
        first, second = forward(batch)
        looks.append(first)
        peaks.append(second)
        progress("embedding", start + len(block), len(images))
    look, peak = torch.cat(looks).numpy(), torch.cat(peaks).numpy()
    return Embedding(look, np.concatenate([look, peak], 1), source)
