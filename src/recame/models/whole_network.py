"""A timm network that cannot be cut: one stage; experts share all of it or nothing."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

#: Largest difference of a map's average from timm's pooled features, relative to the largest value.
_TOLERANCE = 1e-3

Layout = Literal["NCHW", "NHWC", "tokens", "pooled"]


class WholeNetwork(nn.Module):
    """Map images to timm's features as a map, or to timm's pooled features as a map of one place.

    Args:
        model: of timm, without a classifier.
        layout: of its features; `pooled`: features after timm's own pooling, which is not their
            average.
        grid: rows and columns of `tokens`, which begin with the prefix tokens.
    """

    def __init__(self, model: nn.Module, layout: Layout, grid: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.model, self.layout, self.grid = model, layout, grid

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) normalised images to (B, C, h, w)."""
        found = self.model.forward_features(images)  # type: ignore[operator]
        if self.layout == "pooled":
            pooled: Tensor = self.model.forward_head(found, pre_logits=True)  # type: ignore[operator]
            return pooled.flatten(1)[:, :, None, None]
        return _as_maps(found, self.layout, self.grid)


@torch.no_grad()
def as_one_stage(model: Any, in_channels: int, size: tuple[int, int]) -> tuple[WholeNetwork, int]:
    """A network as one stage, and the number of channels of its output.

    Args:
        model: of timm, without a classifier; put into training mode.
        in_channels: of its images.
        size: height and width of an image that it takes.

    Raises:
        ValueError: its features are not a tensor of one width; the message says what they are.
    """
    model.eval()
    try:
        images = torch.linspace(-1, 1, in_channels * size[0] * size[1])
        images = images.view(1, in_channels, *size)
        found = model.forward_features(images)
        pooled = model.forward_head(found, pre_logits=True)
        if not isinstance(pooled, Tensor) or pooled.flatten(1).shape[0] != 1:
            raise ValueError(f"its head gives a {type(pooled).__name__} before the classifier")
        pooled = pooled.flatten(1)
        width = int(pooled.shape[1])
        for layout, grid in _layouts(found, width, size):
            maps = _as_maps(found, layout, grid)
            scale = max(1.0, float(pooled.abs().max()))
            if float((maps.mean((2, 3)) - pooled).abs().max()) <= _TOLERANCE * scale:
                return WholeNetwork(model, layout, grid), width
        return WholeNetwork(model, "pooled"), width
    finally:
        model.train()


def _layouts(
    found: object, width: int, size: tuple[int, int]
) -> list[tuple[Layout, tuple[int, int]]]:
    """Possible layouts of features of this shape."""
    if not isinstance(found, Tensor):
        return []
    if found.ndim == 4:
        names: list[tuple[Layout, int]] = [("NCHW", 1), ("NHWC", 3)]
        return [(name, (1, 1)) for name, axis in names if found.shape[axis] == width]
    if found.ndim != 3 or found.shape[2] != width:
        return []
    places = int(found.shape[1])
    for rows in range(int(places**0.5), 0, -1):  # in the image's shape, as far as they divide
        columns = places // rows
        if rows * columns == places and rows * size[1] == columns * size[0]:
            return [("tokens", (rows, columns))]
    return [("tokens", (1, places))]


def _as_maps(found: Tensor, layout: Layout, grid: tuple[int, int]) -> Tensor:
    if layout == "NHWC":
        return found.permute(0, 3, 1, 2)
    if layout == "tokens":
        return found.transpose(1, 2).reshape(-1, found.shape[2], *grid)
    return found
