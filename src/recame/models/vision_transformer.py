"""Vision transformers as stages that pass maps on, as in a convolutional network.

Stages pass on one tensor (B, C + P * C, h, w): the patch tokens as a map of C channels, then the P
prefix tokens (class, registers), each as C channels with the same value at every place. The mean of
these channels over the map is the token itself, so pooling, caches and attribution need not know
about tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recame.errors import ConfigError

_NUM_STAGES = 4


class PatchEmbedding(nn.Module):
    """Embed images of any size as patch and prefix tokens with positions.

    For another image size than that of the network, positions are resampled. An image whose size is
    not a multiple of the patch size is padded at the right and the bottom.

    Args:
        model: a timm vision transformer, made with `dynamic_img_size`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.patch_embed = model.patch_embed
        self.cls_token, self.reg_token = model.cls_token, model.reg_token
        self.pos_embed, self.norm_pre = model.pos_embed, model.norm_pre
        self.positions_of_prefix = 0 if model.no_embed_class else model.num_prefix_tokens

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) normalised images to maps (B, C + P * C, h, w)."""
        patches = self.patch_embed(images)
        grid = (int(patches.shape[1]), int(patches.shape[2]))
        tokens = patches.flatten(1, 2)
        parts = [token for token in (self.cls_token, self.reg_token) if token is not None]
        prefix = [part.expand(tokens.shape[0], -1, -1) for part in parts]
        positions = self.positions(grid)
        if positions is not None and not self.positions_of_prefix:
            tokens, positions = tokens + positions, None
        tokens = torch.cat([*prefix, tokens], 1)
        tokens = tokens if positions is None else tokens + positions
        num_prefix = sum(int(part.shape[1]) for part in parts)
        return tokens_to_maps(self.norm_pre(tokens), num_prefix, grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that the positions are for."""
        return self.patch_embed.grid_size  # type: ignore[no-any-return]

    def positions(self, grid: tuple[int, int]) -> Tensor | None:
        """The position embeddings, resampled if they are for another grid."""
        from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]

        # timm's own early return is switched off while a graph is exported, so it is repeated here.
        if self.pos_embed is None or grid == self.grid:
            return self.pos_embed  # type: ignore[no-any-return]
        return resample_abs_pos_embed(  # type: ignore[no-any-return]
            self.pos_embed,
            new_size=list(grid),
            old_size=list(self.grid),
            num_prefix_tokens=self.positions_of_prefix,
        )


class TransformerStage(nn.Module):
    """Some blocks of a vision transformer, then attention over the grid of patches, then a norm.

    Args:
        blocks: of timm.
        width: C.
        gate: maps patches (B, C, h, w) to the same shape; prefix tokens bypass it.
        norm: of the last stage, over all tokens.
        rope: makes the rotary positions of the blocks, if they use any.
    """

    def __init__(
        self,
        blocks: list[nn.Module],
        width: int,
        *,
        gate: nn.Module | None = None,
        norm: nn.Module | None = None,
        rope: Any = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.blocks = nn.ModuleList(blocks)
        self.gate, self.norm, self.rope = gate, norm, rope

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C + P * C, h, w) to the same shape."""
        grid = (int(maps.shape[2]), int(maps.shape[3]))
        tokens, num_prefix = maps_to_tokens(maps, self.width)
        inputs = {} if self.rope is None else {"rope": self.rope.get_embed(shape=grid)}
        for block in self.blocks:
            tokens = block(tokens, **inputs)
        if self.gate is not None:
            maps = tokens_to_maps(tokens, num_prefix, grid)
            patches = self.gate(maps[:, : self.width]).flatten(2).transpose(1, 2)
            tokens = torch.cat([tokens[:, :num_prefix], patches], 1)
        if self.norm is not None:
            tokens = self.norm(tokens)
        return tokens_to_maps(tokens, num_prefix, grid)


def tokens_to_maps(tokens: Tensor, num_prefix: int, grid: tuple[int, int]) -> Tensor:
    """Lay tokens out as maps.

    Args:
        tokens: (B, P + h * w, C), prefix tokens first.
        num_prefix: P.
        grid: h and w.

    Returns:
        (B, C + P * C, h, w).

    Examples:
        >>> maps = tokens_to_maps(torch.randn(2, 1 + 6, 8), 1, (2, 3))
        >>> maps.shape, bool((maps[:, 8:] == maps[:, 8:, :1, :1]).all())
        (torch.Size([2, 16, 2, 3]), True)
    """
    patches = tokens[:, num_prefix:].transpose(1, 2).reshape(-1, tokens.shape[2], *grid)
    if not num_prefix:
        return patches
    prefix = tokens[:, :num_prefix].flatten(1)[:, :, None, None].expand(-1, -1, *grid)
    return torch.cat([patches, prefix], 1)


def maps_to_tokens(maps: Tensor, width: int) -> tuple[Tensor, int]:
    """Undo `tokens_to_maps`.

    Args:
        maps: (B, C + P * C, h, w).
        width: C.

    Returns:
        Tokens (B, P + h * w, C), and P.
    """
    patches = maps[:, :width].flatten(2).transpose(1, 2)
    num_prefix = maps.shape[1] // width - 1
    if not num_prefix:
        return patches, 0
    # The mean, and not the value at one place, where attribution would then point.
    prefix = maps[:, width:].mean((2, 3)).reshape(-1, num_prefix, width)
    return torch.cat([prefix, patches], 1), num_prefix


def is_cuttable(model: nn.Module) -> bool:
    """Whether a timm network is a plain vision transformer: one width, one grid, one class token.

    Networks with different rotary positions at each depth (timm's `rope_mixed`) are excluded.
    """
    parts = ("patch_embed", "blocks", "cls_token", "reg_token", "pos_embed", "norm_pre")
    return all(hasattr(model, part) for part in parts) and not getattr(model, "rope_mixed", False)


def cut_transformer(
    model: Any,
    gate: Callable[[int], nn.Module | None],
    num_stages: int,
    *,
    gate_last: bool = True,
) -> list[nn.Sequential]:
    """Cut a transformer into four stages with the same number of blocks, if it divides.

    Args:
        model: for which `is_cuttable` holds.
        gate: makes a stage's attention for a width.
        num_stages: number of first stages to keep; 0: all. The final norm belongs to the last.
        gate_last: whether the last stage has attention too; it has no effect if only the class
            token is pooled.
    """
    blocks = list(model.blocks)
    count = num_stages_of(model)
    bounds = [i * len(blocks) // count for i in range(count + 1)]
    # Networks with average pooling may have a norm after it; here it acts on the tokens.
    norm = nn.Sequential(model.norm, model.fc_norm)
    stages, num_stages = [], num_stages or count
    for number in range(num_stages):
        stage = TransformerStage(
            blocks[bounds[number] : bounds[number + 1]],
            model.embed_dim,
            gate=gate(model.embed_dim) if gate_last or number < num_stages - 1 else None,
            norm=norm if number == count - 1 else None,
            # Copy, because stages that share tensors cannot be saved.
            rope=copy.deepcopy(getattr(model, "rope", None)),
        )
        first = [PatchEmbedding(model)] if number == 0 else []
        stages.append(nn.Sequential(*first, stage))
    return stages


@torch.no_grad()
def cut_is_exact(model: Any, in_channels: int) -> bool:
    """Whether the stages compute the same as the whole network, on a small image."""
    model.eval()
    images = torch.linspace(-1, 1, in_channels * 64 * 64).view(1, in_channels, 64, 64)
    try:
        expected = model.fc_norm(model.forward_features(images))
        found = nn.Sequential(*cut_transformer(model, lambda _: None, 0))(images)
        tokens = maps_to_tokens(found, model.embed_dim)[0]
        return tokens.shape == expected.shape and torch.allclose(tokens, expected, atol=1e-4)
    except (RuntimeError, TypeError, AttributeError):
        return False
    finally:
        model.train()


def num_stages_of(model: Any) -> int:
    """Number of stages that `cut_transformer` makes."""
    return min(_NUM_STAGES, len(model.blocks))


def pooled_channels(model: Any, pooling: str, name: str) -> slice:
    """The channels of a stage's maps that feed the head.

    Args:
        model: for which `is_cuttable` holds.
        pooling: `average` of the patches, class `token`, or `both`.
        name: of the network, for the error.

    Raises:
        ConfigError: a class token is requested and the network has none.
    """
    width = int(model.embed_dim)
    if pooling == "average":
        return slice(0, width)
    if model.cls_token is None:
        raise ConfigError(
            f"model.pooling={pooling}, but {name} has no class token: set model.pooling=average."
        )
    return slice(0, 2 * width) if pooling == "both" else slice(width, 2 * width)
