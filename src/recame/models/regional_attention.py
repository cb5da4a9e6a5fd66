"""Regional channel attention: each region of a feature map gets its own channel gate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.errors import ConfigError

#: What the sigmoid sees at an identity start: gates of 0.9975.
_OPEN_GATE = 6.0


def region_bounds(size: int, regions: int) -> list[int]:
    """Where an axis is cut: `floor(i * size / regions)`, the later regions being the larger ones.

    An axis shorter than the grid is cut into single pixels, so that no region is empty.

    Args:
        size: pixels along the axis.
        regions: wanted regions along it.

    Returns:
        The regions' borders, from 0 to `size`.

    Examples:
        >>> region_bounds(7, 2), region_bounds(1, 2)
        ([0, 3, 7], [0, 1])
    """
    count = min(size, regions)
    return [i * size // count for i in range(count + 1)]


def _regular_grid(size: int, regions: int) -> tuple[int, int] | None:
    """Kernel and padding with which strided pooling cuts as `region_bounds` does, if there are.

    `size = regions * kernel - padding` with a padding of 0 or 1 shortens the first region only.
    """
    kernel = -(-size // regions)
    padding = regions * kernel - size
    return (kernel, padding) if padding <= min(1, kernel // 2) else None


def pool_regions(x: Tensor, rows: Sequence[int], cols: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Average and maximum of each region.

    Args:
        x: (B, C, H, W).
        rows: borders of the R rows, as of `region_bounds`.
        cols: borders of the S columns.

    Returns:
        Both (B, C, R, S).
    """
    grid = (len(rows) - 1, len(cols) - 1)
    vertical, horizontal = _regular_grid(rows[-1], grid[0]), _regular_grid(cols[-1], grid[1])
    if vertical is not None and horizontal is not None:
        kernel, padding = zip(vertical, horizontal, strict=True)
        average = functional.avg_pool2d(x, kernel, kernel, padding, count_include_pad=False)
        return average, functional.max_pool2d(x, kernel, kernel, padding)
    parts = [
        x[:, :, top:bottom, left:right]
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(cols)
    ]
    average = torch.stack([part.mean((2, 3)) for part in parts], -1)
    maximum = torch.stack([part.amax((2, 3)) for part in parts], -1)
    return average.view(*x.shape[:2], *grid), maximum.view(*x.shape[:2], *grid)


def regional_gates(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    regions: tuple[int, int] = (2, 2),
    *,
    max_pool: bool = True,
) -> Tensor:
    """Gates `sigmoid(mlp(avgpool) + mlp(maxpool))` of each region, from one shared MLP.

    Args:
        x: (B, C, H, W) feature map.
        fc1_weight: (C / reduction, C).
        fc1_bias: (C / reduction,).
        fc2_weight: (C, C / reduction).
        fc2_bias: (C,).
        regions: rows and columns of the grid, R and S.
        max_pool: without, the gates come from the average alone.

    Returns:
        (B, C, min(R, H), min(S, W)) in (0, 1).
    """
    rows, cols = region_bounds(x.shape[2], regions[0]), region_bounds(x.shape[3], regions[1])
    average, maximum = pool_regions(x, rows, cols)
    hidden = _squeeze(average, fc1_weight, fc1_bias)
    if max_pool:
        hidden = hidden + _squeeze(maximum, fc1_weight, fc1_bias)
        # The second layer is linear: one pass over the sum equals the sum of two passes. (Added, as
        # torch 2.11 cannot export a parameter times a number.)
        fc2_bias = fc2_bias + fc2_bias
    return torch.sigmoid(functional.linear(hidden, fc2_weight, fc2_bias)).permute(0, 3, 1, 2)


def _squeeze(pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.relu(functional.linear(pooled.permute(0, 2, 3, 1), weight, bias))


def apply_gates(x: Tensor, gates: Tensor) -> Tensor:
    """Multiply each region by its gates.

    Args:
        x: (B, C, H, W).
        gates: (B, C, R, S) of `regional_gates`.

    Returns:
        (B, C, H, W), in the memory format of `x`.
    """
    num_rows, num_cols = gates.shape[2:]
    if (num_rows, num_cols) == (1, 1):
        return x * gates
    height, width = x.shape[2:]
    if height % num_rows == 0 and width % num_cols == 0:
        cut = x.view(*x.shape[:2], num_rows, height // num_rows, num_cols, width // num_cols)
        return (cut * gates[:, :, :, None, :, None]).reshape(x.shape)
    for axis, size in ((2, height), (3, width)):
        steps = itertools.pairwise(region_bounds(size, gates.shape[axis]))
        gates = torch.cat(
            [
                gates.narrow(axis, i, 1).expand(*((-1,) * axis), end - start, *((-1,) * (3 - axis)))
                for i, (start, end) in enumerate(steps)
            ],
            axis,
        )
    return x * gates


class RegionalChannelAttention(nn.Module):
    """Channel attention of each region of a grid (Shao et al., IEEE TCAD 2026, ReCAME-Net).

    A grid of (1, 1) is the channel attention of CBAM (Woo et al., ECCV 2018); without the maximum
    it is squeeze and excite (Hu et al., CVPR 2018).

    Args:
        channels: C of the map.
        regions: rows and columns of the grid. A map smaller than the grid is cut into its pixels.
        reduction: the MLP's hidden width is `max(1, channels // reduction)`.
        identity_start: start with gates of 0.9975 whatever the map holds, so that the features of
            pretrained weights stay what they are.
        max_pool: whether each region's maximum is read beside its average.

    Examples:
        >>> attention = RegionalChannelAttention(32)
        >>> attention(torch.zeros(2, 32, 7, 7)).shape
        torch.Size([2, 32, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        regions: tuple[int, int] = (2, 2),
        reduction: int = 16,
        identity_start: bool = False,
        max_pool: bool = True,
    ) -> None:
        super().__init__()
        if min(regions) < 1 or reduction < 1:
            raise ConfigError(
                f"Regional attention got regions={regions} and reduction={reduction}: a grid needs "
                "at least one row and column, and a reduction of 1 or more."
            )
        self.regions, self.max_pool = regions, max_pool
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        if identity_start:
            nn.init.zeros_(self.fc2.weight)
            nn.init.constant_(self.fc2.bias, _OPEN_GATE / (2 if max_pool else 1))

    def forward(self, x: Tensor) -> Tensor:
        """Gate a map.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        return apply_gates(x, self.gates(x))

    def gates(self, x: Tensor) -> Tensor:
        """What a map would be multiplied by.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, R, S) of `regional_gates`.
        """
        fc1, fc2 = self.fc1, self.fc2
        return regional_gates(
            x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, self.regions, max_pool=self.max_pool
        )


def make_attention(
    kind: str,
    channels: int,
    regions: tuple[int, int] = (2, 2),
    reduction: int = 16,
    identity_start: bool = False,
) -> nn.Module | None:
    """The attention module of a given kind, or None for `none`.

    Args:
        kind: `regional`, `channel` (one global region), `squeeze_excite` (one global region,
            average only) or `none`.
        channels: C of the map it will gate.
        regions: grid of `regional`; the others ignore it.
        reduction: of the MLP's hidden width.
        identity_start: start with gates of 0.9975.

    Raises:
        ConfigError: the kind is unknown.
    """
    if kind == "none":
        return None
    if kind not in {"regional", "channel", "squeeze_excite"}:
        raise ConfigError(
            f"Unknown attention {kind!r}: choose regional, channel, squeeze_excite or none "
            "(setting model.attention)."
        )
    return RegionalChannelAttention(
        channels,
        regions=regions if kind == "regional" else (1, 1),
        reduction=reduction,
        identity_start=identity_start,
        max_pool=kind != "squeeze_excite",
    )
