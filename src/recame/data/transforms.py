"""Changes of whole batches, on the device of the batch: to [0, 1], random ones, views.

Every random number is drawn on the CPU from the generator that is passed in, so that a run on any
device sees the same changes and equal generator states give equal batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms.v2 import functional as vision

from recame.errors import ConfigError
from recame.pieces import apart, together

_BLUR_SIGMA = (0.3, 1.5)  # pixels
_MAX_MAGNITUDE = 30  # of RandAugment


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random flips, turns, shifts, scale, rotation, intensity, blur and RandAugment.

    Every image gets its own values, but for the width of the blur, which a batch shares. What
    leaves the picture at one border is replaced by its mirror image. Flips, quarter turns and
    shifts move whole pixels and resample nothing; images that are not square get half turns only.

    Attributes:
        horizontal_flip: with probability 1/2.
        vertical_flip: with probability 1/2.
        quarter_turns: 0 to 3, equally likely.
        shift: largest shift, as a share of the side.
        scale: largest relative change of size, up or down.
        rotate_deg: largest rotation, degrees.
        brightness: largest offset, as a share of the full scale.
        contrast: largest relative change of the differences from the image's mean.
        blur: probability of a Gaussian blur of 0.3 to 1.5 pixels.
        rand_augment: operations of RandAugment.
        rand_augment_magnitude: their strength, 0 to 30.
        pieces: that each image is made of, one below the other; each is changed by itself.
        extra: further changes, in order; they follow the others.
    """

    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: bool = False
    shift: float = 0.0
    scale: float = 0.0
    rotate_deg: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    blur: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    pieces: int = 1
    extra: Sequence[Callable[[Tensor, torch.Generator], Tensor]] = ()

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch.

        Args:
            images: (B, C, H, W) float in [0, 1]; left as they are.
            generator: on the CPU.

        Returns:
            (B, C, H, W) in [0, 1].
        """
        warps = self.scale > 0 or self.rotate_deg > 0
        images = apart(images, self.pieces)
        if self.horizontal_flip or self.vertical_flip or self.quarter_turns or (self.shift > 0):
            images = self._move(images, generator, shifts=not warps)
        if warps:
            images = self._warp(images, generator)
        if self.brightness > 0 or self.contrast > 0:
            images = self._relight(images, generator)
        if self.blur > 0:
            images = self._blur(images, generator)
        if self.rand_augment > 0:
            images = rand_augment(images, self.rand_augment, self.rand_augment_magnitude, generator)
        for change in self.extra:
            images = change(images, generator)
        return together(images, self.pieces)

    def _move(self, images: Tensor, generator: torch.Generator, *, shifts: bool) -> Tensor:
        """Flips, turns and whole-pixel shifts, in one gather."""
        num, _, height, width = images.shape
        # One draw for each kind, used or not: switching one off leaves the others as they were.
        flip_x, flip_y, turn = (torch.rand(3, num, generator=generator)).unbind()
        quarter = (turn * 4).long() if self.quarter_turns else torch.zeros(num, dtype=torch.long)
        if height != width:
            quarter = quarter // 2 * 2
        mirror_x = (flip_x < 0.5) & self.horizontal_flip
        mirror_y = (flip_y < 0.5) & self.vertical_flip
        # A quarter turn is a transposition and one mirror, a half turn is both mirrors.
        transpose = quarter % 2 == 1
        mirror_x ^= quarter >= 2
        mirror_y ^= (quarter == 1) | (quarter == 2)
        offset = torch.zeros(2, num, 1, dtype=torch.long)
        if shifts and self.shift > 0:
            sides = torch.tensor([height, width]).view(2, 1, 1)
            offset = (_uniform((2, num, 1), self.shift, generator) * sides).round().long()
        rows = _mirrored(torch.arange(height) + offset[0], height)
        columns = _mirrored(torch.arange(width) + offset[1], width)
        rows = torch.where(mirror_y[:, None], height - 1 - rows, rows)
        columns = torch.where(mirror_x[:, None], width - 1 - columns, columns)
        # Source of pixel (y, x): row y and column x, or with a transposition the other way round.
        along_y = torch.where(transpose, 1, width)[:, None]
        along_x = torch.where(transpose, width, 1)[:, None]
        start = (torch.arange(num) * height * width)[:, None]
        y_part = onto(rows * along_y + start, images.device)[:, :, None]
        x_part = onto(columns * along_x, images.device)[:, None, :]
        pixels = images.permute(0, 2, 3, 1).reshape(num * height * width, -1)
        moved = pixels.index_select(0, (y_part + x_part).reshape(-1))
        return moved.view(num, height, width, -1).permute(0, 3, 1, 2)

    def _warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        num = len(images)
        angle = _uniform((num,), math.radians(self.rotate_deg), generator)
        factor = torch.exp(_uniform((num,), math.log1p(self.scale), generator))
        shift = 2.0 * _uniform((num, 2), self.shift, generator)
        cos, sin = factor * torch.cos(angle), factor * torch.sin(angle)
        return _affine(images, torch.stack([cos, -sin, sin, cos], 1).view(num, 2, 2), shift)

    def _relight(self, images: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(images), 1, 1, 1)
        offset = onto(_uniform(shape, self.brightness, generator), images.device)
        gain = 1.0 + onto(_uniform(shape, self.contrast, generator), images.device)
        mean = images.mean((1, 2, 3), keepdim=True)
        return torch.addcmul(mean * (1.0 - gain) + offset, images, gain).clamp_(0.0, 1.0)

    def _blur(self, images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), generator=generator) < self.blur
        low, high = _BLUR_SIGMA
        sigma = low + (high - low) * float(torch.rand((), generator=generator))
        rows = onto(chosen.nonzero().squeeze(1), images.device)
        if not len(rows):
            return images
        width = 2 * math.ceil(2 * sigma) + 1
        blurred = vision.gaussian_blur(images[rows], [width, width], [sigma, sigma])
        return images.index_copy(0, rows, blurred)


def onto(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what the device is doing."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _uniform(shape: tuple[int, ...], largest: float, generator: torch.Generator) -> Tensor:
    return (2.0 * torch.rand(shape, generator=generator) - 1.0) * largest


def _mirrored(position: Tensor, side: int) -> Tensor:
    """Fold positions outside 0 ... side - 1 back in, the border pixel repeated."""
    position = position % (2 * side)
    return torch.minimum(position, 2 * side - 1 - position)


def _affine(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Sample at `matrix @ (x, y) + shift`, mirrored beyond the borders.

    Args:
        images: (B, C, H, W).
        matrix: (B, 2, 2), in pixels, about the centre.
        shift: (B, 2) of x and y, in half sides.
    """
    height, width = images.shape[-2:]
    # `affine_grid` counts in half sides, in which a rotation of a rectangle is none.
    aspect = torch.tensor([[1.0, height / width], [width / height, 1.0]])
    theta = onto(torch.cat([matrix * aspect, shift[:, :, None]], 2), images.device).to(images.dtype)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _tilt(images: Tensor, xx: Tensor, xy: Tensor, yx: Tensor) -> Tensor:
    """`_affine` by [[xx, xy], [yx, xx]] without a shift."""
    matrix = torch.stack([xx, xy, yx, xx], 1).view(-1, 2, 2)
    return _affine(images, matrix, torch.zeros(len(images), 2))


def _rotate(images: Tensor, level: float, sign: Tensor) -> Tensor:
    angle = math.radians(30.0) * level * sign
    return _tilt(images, torch.cos(angle), -torch.sin(angle), torch.sin(angle))


def _translate(images: Tensor, level: float, sign: Tensor, *, axis: int) -> Tensor:
    shift = torch.zeros(len(images), 2)
    shift[:, axis] = 2.0 * 0.45 * level * sign
    return _affine(images, torch.eye(2).repeat(len(images), 1, 1), shift)


def _sharpen(images: Tensor, level: float, sign: Tensor) -> Tensor:
    factor = onto(1.0 + 0.9 * level * sign, images.device).view(-1, 1, 1, 1)
    if min(images.shape[-2:]) < 3:
        return images
    return torch.lerp(vision.adjust_sharpness(images, 0.0), images, factor).clamp(0.0, 1.0)


def _gain(images: Tensor, level: float, sign: Tensor, *, about_mean: bool) -> Tensor:
    factor = onto(1.0 + 0.9 * level * sign, images.device).view(-1, 1, 1, 1)
    pivot = images.mean((1, 2, 3), keepdim=True) if about_mean else torch.zeros_like(factor)
    return torch.lerp(pivot, images, factor).clamp(0.0, 1.0)


#: Operations of RandAugment: (images, level in [0, 1], (B,) sign) -> images.
_OPERATIONS: tuple[Callable[[Tensor, float, Tensor], Tensor], ...] = (
    lambda images, _, __: images,
    lambda images, _, __: vision.autocontrast(images),
    lambda images, _, __: vision.equalize(images),
    lambda images, level, _: vision.posterize(images, 8 - round(4 * level)),
    lambda images, level, _: vision.solarize(images, 1.0 - level),
    _rotate,
    lambda images, level, sign: _tilt(
        images, torch.ones(len(sign)), 0.3 * level * sign, torch.zeros(len(sign))
    ),
    lambda images, level, sign: _tilt(
        images, torch.ones(len(sign)), torch.zeros(len(sign)), 0.3 * level * sign
    ),
    lambda images, level, sign: _translate(images, level, sign, axis=0),
    lambda images, level, sign: _translate(images, level, sign, axis=1),
    _sharpen,
    lambda images, level, sign: _gain(images, level, sign, about_mean=False),
    lambda images, level, sign: _gain(images, level, sign, about_mean=True),
)


def rand_augment(
    images: Tensor, num_operations: int, magnitude: int, generator: torch.Generator
) -> Tensor:
    """RandAugment (Cubuk et al., CVPR Workshops 2020), each image with its own operations.

    Differs from the paper: borders are mirrored where it fills them black, and colour saturation
    is left out, since many inspection cameras see none.

    Args:
        images: (B, C, H, W) in [0, 1].
        num_operations: how many follow each other.
        magnitude: 0 to 30.
        generator: on the CPU.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    num = len(images)
    for _ in range(num_operations):
        chosen = torch.randint(len(_OPERATIONS), (num,), generator=generator)
        sign = torch.randint(2, (num,), generator=generator) * 2.0 - 1.0
        for number, operation in enumerate(_OPERATIONS):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                there = onto(rows, images.device)
                changed = operation(images[there], magnitude / _MAX_MAGNITUDE, sign[rows])
                images = images.index_copy(0, there, changed.to(images.dtype))
    return images


def dihedral_view(images: Tensor, view: int, pieces: int = 1) -> Tensor:
    """One of the eight symmetries of a square.

    Args:
        images: (..., H, W); (B, C, H, W) where they are made of pieces.
        view: 0 as is, 1 mirrored left-right, 2 mirrored up-down, 3 both (a half turn); 4 to 7 the
            same of the transposed image.
        pieces: that each image is made of, one below the other; each is turned by itself.

    Raises:
        ConfigError: the view does not exist, or needs square images.
    """
    if pieces > 1:
        return together(dihedral_view(apart(images, pieces), view), pieces)
    if not 0 <= view < 8:
        raise ConfigError(f"There is no view {view}: a square has the views 0 to 7.")
    if view >= 4:
        height, width = images.shape[-2:]
        if height != width:
            raise ConfigError(
                f"Images of {height} x {width} pixels cannot be rotated by 90 degrees, so only 4 "
                "views exist. Ask for at most 4, or choose a square data.size."
            )
        images = images.transpose(-1, -2)
    mirrored = [axis for axis, bit in ((-1, 1), (-2, 2)) if view & bit]
    return images.flip(mirrored) if mirrored else images


def dihedral_views(images: Tensor, num_views: int) -> Tensor:
    """The first `num_views` of `dihedral_view`: (B, C, H, W) -> (V, B, C, H, W)."""
    return torch.stack([dihedral_view(images, view) for view in range(num_views)])


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019).

    With both, each batch gets one of them, equally likely. The loss of a mixed batch is
    `lam * loss(target) + (1 - lam) * loss(target[permutation])`.

    Attributes:
        mixup: alpha of the Beta distribution; 0 leaves it out.
        cutmix: alpha of the Beta distribution; 0 leaves it out.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        """Mix a batch with a permutation of itself.

        Args:
            images: (B, C, H, W) float; left as they are.
            generator: on the CPU.

        Returns:
            The mixed images, the permutation (B,) on their device, and `lam`, the share of each
            image's own pixels in [0, 1] (for CutMix that of the patch that was really pasted).
        """
        num, _, height, width = images.shape
        if self.mixup <= 0 and self.cutmix <= 0:
            return images, torch.arange(num, device=images.device), 1.0
        permutation = onto(torch.randperm(num, generator=generator), images.device)
        # PyTorch draws no Beta from a generator of one's own.
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        cuts = self.mixup <= 0 or (self.cutmix > 0 and rng.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        lam = float(rng.beta(alpha, alpha))
        if not cuts:
            return torch.lerp(images[permutation], images, lam), permutation, lam
        share = math.sqrt(1.0 - lam)
        top, bottom = _span(rng.random() * height, share * height, height)
        left, right = _span(rng.random() * width, share * width, width)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[permutation, :, top:bottom, left:right]
        lam = 1.0 - (bottom - top) * (right - left) / (height * width)
        return mixed, permutation, lam


def _span(centre: float, length: float, side: int) -> tuple[int, int]:
    return max(0, round(centre - length / 2)), min(side, round(centre + length / 2))


def to_unit(images: Tensor, scale: float) -> Tensor:
    """Stored pixels -> float32 in [0, 1], channels last, on the same device.

    Args:
        images: (B, C, H, W) integers.
        scale: the pixel value that becomes 1; larger ones become 1 too.
    """
    unit = images.to(torch.float32, memory_format=torch.channels_last)
    return unit.div_(scale).clamp_(max=1.0)
