"""Regional channel attention: each region of a feature map gets its own channel gate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.errors import ConfigError

#: Input of the sigmoid at an identity start: gates of 0.9975.
_OPEN_GATE = 6.0


def region_bounds(size: int, regions: int) -> list[int]:
    """Borders of the regions along an axis: `floor(i * size / regions)`; later ones are larger.

    An axis shorter than the grid is cut into single pixels, so that no region is empty.

    Args:
        size: number of pixels along the axis.
        regions: requested number of regions.

    Returns:
        The regions' borders, from 0 to `size`.

    Examples:
        >>> region_bounds(7, 2), region_bounds(1, 2)
        ([0, 3, 7], [0, 1])
    """
    count = min(size, regions)
    return [i * size // count for i in range(count + 1)]


def _regular_grid(size: int, regions: int) -> tuple[int, int] | None:
    """Kernel and padding of a strided pooling with the regions of `region_bounds`, if possible.

    `size = regions * kernel - padding`, where a padding of 0 or 1 shortens the first region only.
    """
    kernel = -(-size // regions)
    padding = regions * kernel - size
    return (kernel, padding) if padding <= min(1, kernel // 2) else None


def pool_regions(x: Tensor, rows: Sequence[int], cols: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Average and maximum of each region.

    Args:
        x: (B, C, H, W).
        rows: borders of the R rows, from `region_bounds`.
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
    start: float | None = None,
) -> Tensor:
    """Gates of each region, `sigmoid(mlp(avgpool) + mlp(maxpool)) / start`, with one shared MLP.

    Args:
        x: (B, C, H, W) feature map.
        fc1_weight: (C / reduction, C).
        fc1_bias: (C / reduction,).
        fc2_weight: (C, C / reduction).
        fc2_bias: (C,).
        regions: rows and columns of the grid, R and S.
        max_pool: whether the maximum is used; without it, gates come from the average alone.
        start: divisor of the gates; None: none, as published.

    Returns:
        (B, C, min(R, H), min(S, W)) in (0, 1), or (0, 1 / start).
    """
    rows, cols = region_bounds(x.shape[2], regions[0]), region_bounds(x.shape[3], regions[1])
    average, maximum = pool_regions(x, rows, cols)
    hidden = _squeeze(average, fc1_weight, fc1_bias)
    if max_pool:
        hidden = hidden + _squeeze(maximum, fc1_weight, fc1_bias)
        # The second layer is linear: one pass over the sum equals the sum of two passes. (The bias
        # is added twice, because torch 2.11 cannot export a parameter times a number.)
        fc2_bias = fc2_bias + fc2_bias
    gates = torch.sigmoid(functional.linear(hidden, fc2_weight, fc2_bias)).permute(0, 3, 1, 2)
    return gates if start is None else gates / start


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
        identity_start: whether gates start at 0.9975 for any map, so that the features of
            pretrained weights hardly change.
        max_pool: whether the MLP sees each region's maximum besides its average.
        gate_start: start value of the gates for any map, in (0, 1). Gates are divided by it, so the
            features do not change at all at first. At 0.9975 the sigmoid is flat (slope 0.0025),
            and the attention hardly learns in a short run; at 0.5 it is steepest. None: gates are
            not divided, as published, and `identity_start` decides their start.

    Raises:
        ConfigError: a grid without regions, a reduction below 1, or a start outside (0, 1).

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
        gate_start: float | None = None,
    ) -> None:
        super().__init__()
        if min(regions) < 1 or reduction < 1:
            raise ConfigError(
                f"Regional attention got regions={regions} and reduction={reduction}: a grid needs "
                "at least one row and column, and a reduction of 1 or more."
            )
        if gate_start is not None and not 0 < gate_start < 1:
            raise ConfigError(
                f"model.gate_start={gate_start}: gates are a sigmoid's values and are divided by "
                "their start, so it lies in (0, 1). Give 0.5, or null to leave them undivided."
            )
        self.regions, self.max_pool, self.gate_start = regions, max_pool, gate_start
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        if identity_start or gate_start is not None:
            opened = _OPEN_GATE if gate_start is None else math.log(gate_start / (1 - gate_start))
            nn.init.zeros_(self.fc2.weight)
            nn.init.constant_(self.fc2.bias, opened / (2 if max_pool else 1))

    @property
    def identity(self) -> float:
        """Factor of a map under attention that starts as the identity: 0.9975, or 1."""
        return 1.0 if self.gate_start is not None else 1 / (1 + math.exp(-_OPEN_GATE))

    def forward(self, x: Tensor) -> Tensor:
        """Gate a map.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        return apply_gates(x, self.gates(x))

    def gates(self, x: Tensor) -> Tensor:
        """The gates of a map.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, R, S) of `regional_gates`.
        """
        return regional_gates(
            x,
            self.fc1.weight,
            self.fc1.bias,
            self.fc2.weight,
            self.fc2.bias,
            self.regions,
            max_pool=self.max_pool,
            start=self.gate_start,
        )


def make_attention(
    kind: str,
    channels: int,
    regions: tuple[int, int] = (2, 2),
    reduction: int = 16,
    identity_start: bool = False,
    gate_start: float | None = None,
) -> nn.Module | None:
    """The attention module of a given kind, or None for `none`.

    Args:
        kind: `regional`, `channel` (one global region), `squeeze_excite` (one global region,
            average only) or `none`.
        channels: C of the map.
        regions: grid of `regional`; the other kinds ignore it.
        reduction: factor that reduces the MLP's hidden width.
        identity_start: whether gates start at 0.9975.
        gate_start: start value of the gates, which are divided by it.

    Raises:
        ConfigError: the kind is unknown, or `gate_start` is out of range.
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
        gate_start=gate_start,
    )
