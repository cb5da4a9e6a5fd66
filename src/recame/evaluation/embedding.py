"""Images -> vectors by a frozen trunk, without any training; and their map in two dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recame.contracts import PreprocessSpec
from recame.data.dataset import to_unit
from recame.models import (
    PACKAGED_BACKBONE,
    FrozenForward,
    LoadedModel,
    MultiExpertClassifier,
    build_backbone,
    pretrained_mean_std,
)

Array = np.ndarray[Any, np.dtype[Any]]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

#: The packaged network is cut after this many stages; the outputs of all but the first are pooled.
#: Early stages see texture and edges, which is what product lines and defects differ in.
NUM_STAGES = 5
#: Side in pixels that images are brought to (smaller ones enlarged: the trunk's maps get finer).
SIDE = 96
_BATCH = 128
_BATCH_PIXELS = _BATCH * 256 * 256


@dataclass(frozen=True)
class Embedding:
    """Vectors of N images.

    Attributes:
        looks: (N, P) means and deviations over each channel's map: what the surface looks like,
            wherever the pattern lies.
        details: (N, Q) the same with each channel's maximum, which answers to small defects.
        source: which network made them, in words.
    """

    looks: FloatArray
    details: FloatArray
    source: str


class _PackagedTrunk(nn.Module):
    """The first stages of the packaged EfficientNet-Lite0 with ImageNet weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        trunk = build_backbone(PACKAGED_BACKBONE, pretrained="package", in_channels=channels)
        self.stages = nn.ModuleList(list(trunk.stages)[:NUM_STAGES])
        mean, std = pretrained_mean_std(PACKAGED_BACKBONE, "package", channels)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> means and deviations (B, P), maxima (B, P / 2)."""
        maps = nn.functional.interpolate(
            images, size=(SIDE, SIDE), mode="bilinear", align_corners=False
        )
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


class _RunTrunk(nn.Module):
    """What the heads of a trained model see, averaged over the experts."""

    def __init__(self, model: MultiExpertClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> (B, P), and nothing more (B, 0)."""
        pooled = self.model.pooled(images).mean(1)
        return pooled, pooled[:, :0]


class PickedRows:
    """Some rows of memory-mapped images, read where they are asked for and never all at once.

    Args:
        images: (N, H, W, C).
        rows: (M,) which, in their order.
    """

    def __init__(self, images: Array, rows: IntArray) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int | slice) -> Array:
        """One image (H, W, C), or those of a slice."""
        picked: Array = self._images[self._rows[at]]
        return picked


def embed_images(
    images: Array | PickedRows,
    spec: PreprocessSpec,
    *,
    model: LoadedModel | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Embedding:
    """Embed images by the packaged EfficientNet-Lite0, or by a trained model.

    Args:
        images: (N, H, W, C) stored pixels; N >= 1.
        spec: how they were decoded; of the model where one is given.
        model: whose pooled features are taken instead; it has seen the labels of its training
            images, so that label errors it has learnt by heart stay hidden.
        on_progress: called with (done, total).
    """
    trunk: nn.Module
    if model is None:
        trunk, source = _PackagedTrunk(spec.channels), "EfficientNet-Lite0 (ImageNet), not trained"
    else:
        trunk, source = _RunTrunk(model.model), f"trained {model.architecture.backbone}"
    if model is None:
        return _embedded(trunk.eval(), source, images, spec, num_pixels=SIDE**2, report=on_progress)
    device, mode = next(model.model.parameters()).device, model.model.training
    try:
        trunk = trunk.to("cpu").eval()
        return _embedded(trunk, source, images, spec, num_pixels=None, report=on_progress)
    finally:  # it is the caller's
        model.model.to(device).train(mode)


def _embedded(
    trunk: nn.Module,
    source: str,
    images: Array | PickedRows,
    spec: PreprocessSpec,
    *,
    num_pixels: int | None,
    report: Callable[[int, int], None] | None,
) -> Embedding:
    """The trunk's features; `num_pixels` of what it resizes images to, None: it does not."""
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
        if report is not None:
            report(start + len(block), len(images))
    look, peak = torch.cat(looks).numpy(), torch.cat(peaks).numpy()
    return Embedding(look, np.concatenate([look, peak], 1), source)


def standardise(features: FloatArray) -> FloatArray:
    """Mean 0 and deviation 1 a column; a column that never changes becomes 0."""
    deviation = features.std(0)
    centred = features - features.mean(0)
    return np.asarray(centred / np.where(deviation > 1e-6, deviation, 1.0), np.float32)


def principal_components(features: FloatArray, most: int) -> FloatArray:
    """Scores on the first principal components of the standardised features.

    Args:
        features: (N, P).
        most: components wanted; fewer where N or P do not allow them.

    Returns:
        (N, Q) float32, largest variance first; a component's sign makes its largest loading
        positive.
    """
    z = standardise(features)
    values, vectors = np.linalg.eigh((z.T @ z).astype(np.float64) / max(len(z), 1))
    count = max(1, min(most, len(z) - 1, int((values > 1e-6 * values[-1]).sum())))
    vectors = vectors[:, ::-1][:, :count]
    top = vectors[np.abs(vectors).argmax(0), np.arange(count)]
    return np.asarray(z @ (vectors * np.where(top < 0, -1, 1)).astype(np.float32), np.float32)


def project_map(components: FloatArray, seed: int) -> FloatArray:
    """Lay points out in two dimensions so that neighbours stay neighbours.

    t-SNE (van der Maaten and Hinton, JMLR 2008) started from the first two components; for fewer
    than 30 points these two themselves. Distances between far groups mean nothing.

    Args:
        components: (N, Q) principal components.
        seed: of the layout.

    Returns:
        (N, 2).
    """
    if components.shape[1] < 2:
        components = np.concatenate([components, np.zeros((len(components), 1), np.float32)], 1)
    start = components[:, :2]
    if len(components) < 30:
        return np.asarray(start, np.float32)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    spread = float(start[:, 0].std()) or 1.0
    tsne = TSNE(
        perplexity=min(30.0, len(components) / 4),
        init=np.asarray(start / spread * 1e-4, np.float32),
        max_iter=600,
        random_state=seed,
    )
    # Its threads spin while they wait, which costs minutes on a machine that has other work.
    with threadpool_limits(1):
        return np.asarray(tsne.fit_transform(components), np.float32)
