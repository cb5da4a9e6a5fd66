"""Geometry -> pixels: coverage of the layers, light, focus, dust, sensor noise, bit depth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from recame.contracts import Pixels
from recame.datasets.generated.defects import Mark, Scene, ramp
from recame.datasets.generated.fine_classes import DRAWN
from recame.datasets.generated.geometry import length
from recame.datasets.generated.hashing import (
    F32,
    I64,
    U64,
    below,
    pixel_noise,
    smooth_field,
    uniform,
)
from recame.datasets.generated.products import (
    DESIGNS,
    FIELD,
    VARIANTS,
    Look,
    Shots,
    make_look,
    pick,
)


def take(
    shots: Shots,
    *,
    size: int,
    bit_depth: int,
    colour: bool,
    canvas: tuple[int, int] | None = None,
) -> Pixels:
    """Take the images.

    Args:
        shots: N images of one design; one alone where there is a canvas.
        size: pixels a side of the window, which `FIELD` units span and a defect lies in.
        bit_depth: 8 or 16.
        colour: three channels instead of one.
        canvas: height and width of images that are larger than their window; None: the window.

    Returns:
        (N, height, width, 1 or 3), uint8 or uint16.
    """
    look = make_look(shots, colour=colour)
    design = DESIGNS[int(shots.product[0]) % len(DESIGNS)]
    sites = design.place(look.plane)
    shape = canvas or (size, size)
    top, left = window(shots.content, size, shape)
    x, y = _camera(shots, size, shape, top, left)
    # The window is centred, but for a few units, where a defect of any class would be.
    near_x = x - uniform(shots.content, "near x", -5, 5)
    near_y = y - uniform(shots.content, "near y", -5, 5)
    u = _middle(*(s.u for s in sites)) + near_x * look.cos - near_y * look.sin
    v = _middle(*(s.v for s in sites)) + near_x * look.sin + near_y * look.cos
    metal, via = design.draw(u, v, look.plane, sites)
    waves = smooth_field(shots.content, "waves", 22, size, shape)
    metal = metal + (look.bias + look.roughness * waves)
    via = via + look.bias
    style = uniform(shots.content, "style") + shots.variant[:, None, None].astype(np.float32)
    style *= np.float32(1 / len(VARIANTS))
    down = slice(int(top[0]), int(top[0]) + size)
    along = slice(int(left[0]), int(left[0]) + size)
    # Views: what a defect changes in its window, it changes in the image.
    u, v, inner_metal, inner_via = (plane[:, down, along] for plane in (u, v, metal, via))
    x_in, y_in = x[..., along], y[:, down]
    scene = Scene(shots.content, look, style, x_in, y_in, u, v, sites, inner_metal, inner_via)
    marks: list[tuple[tuple[slice, slice, slice], Mark]] = []
    ends = np.flatnonzero(np.diff(shots.label, prepend=-1, append=len(DRAWN)))
    for start, stop in pairwise(ends.tolist()):
        rows = slice(start, stop)
        shown = DRAWN[int(shots.label[start])]
        of_class = pick(scene, rows)
        low, high = (np.float32(end) for end in shown.styles)
        of_class.style = low + of_class.style * (high - low)
        mark = shown.spoil(of_class)
        if mark is not None:
            marks.append(((rows, down, along), mark))
    return _expose(shots, look, (x, y, metal, via), (top, left), marks, size, bit_depth)


def window(content: U64, size: int, shape: tuple[int, int]) -> tuple[I64, I64]:
    """The first row and the first column of each image's window: (N,) each."""
    top, left = (
        below(content, f"window {name}", side - size + 1)
        for name, side in zip(("y", "x"), shape, strict=True)
    )
    return top, left


def _middle(a: F32, b: F32, c: F32, d: F32) -> F32:
    return np.asarray(0.25 * ((a + b) + (c + d)))


def _camera(
    shots: Shots, size: int, shape: tuple[int, int], top: I64, left: I64
) -> tuple[F32, F32]:
    """Positions of the pixels in units from the window's centre, to the right and downward."""
    step = np.float32(FIELD / size)
    y, x = (
        (np.arange(side, dtype=np.float32) - first[:, None].astype(np.float32) + np.float32(0.5))
        * step
        - np.float32(FIELD / 2)
        for side, first in zip(shape, (top, left), strict=True)
    )
    moved = shots.moved[:, None, None].astype(np.float32) * step
    return (
        x[:, None, :] + moved * uniform(shots.capture, "move x", -1, 1),
        y[:, :, None] + moved * uniform(shots.capture, "move y", -1, 1),
    )


def _expose(
    shots: Shots,
    look: Look,
    planes: tuple[F32, F32, F32, F32],
    corner: tuple[I64, I64],
    marks: list[tuple[tuple[slice, slice, slice], Mark]],
    size: int,
    bit_depth: int,
) -> Pixels:
    """Reflectance -> light -> sensor -> numbers."""
    x, y, metal, via = planes
    shape = (metal.shape[1], metal.shape[2])
    step = FIELD / size
    blur = np.maximum(look.blur, np.float32(step))
    metal, via = ramp(metal, blur), ramp(via, blur)
    rim = metal * (1 - metal)
    rim += via * (1 - via)
    rim *= look.rim * -4
    # From the centre of the image, which may be another than the window's, to its borders.
    far_y, far_x = (
        plane + np.float32(step) * (first[:, None, None] - (side - size) / 2).astype(np.float32)
        for plane, first, side in zip((y, x), corner, shape, strict=True)
    )
    across, down = (2 / (step * side) for side in (shape[1], shape[0]))
    light = look.gain * ((1 + far_x * (look.light_x * across)) + far_y * (look.light_y * down))
    cloud = smooth_field(shots.content, "cloud", 7, size, shape) * look.mottle + 1
    dust, dust_tone = _dust(shots, x, y)
    top = 2**bit_depth - 1
    pixels = np.empty((*metal.shape, len(look.metal)), f"uint{bit_depth}")
    for c in range(len(look.metal)):
        tone = look.substrate[c] * cloud
        tone += (look.metal[c] - tone) * metal
        tone += (look.via[c] - tone) * via
        tone += rim
        tone += (dust_tone - tone) * dust
        for part_of, mark in marks:
            part = tone[part_of]
            part *= mark.shade
            part += (mark.tone[min(c, len(mark.tone) - 1)] - part) * mark.alpha
        tone *= light
        tone += pixel_noise(shots.capture, f"noise {c}", shape) * look.noise
        tone *= top
        tone += 0.5
        np.clip(tone, 0, top, out=tone)
        pixels[..., c] = tone
    return pixels


def _dust(shots: Shots, x: F32, y: F32) -> tuple[F32, F32]:
    """Opacity and tone of specks that are too small to matter: one on every third window."""
    content = shots.content
    dx = x - uniform(content, "dust x", -21, 21)
    dy = y - uniform(content, "dust y", -21, 21)
    radius = uniform(content, "dust size", 0.3, 0.8)
    radius = np.where(uniform(content, "dust") < 0.34, radius, np.float32(-9))
    opacity = ramp(radius - length(dx, dy), 1.2) * np.float32(0.55)
    dark = uniform(content, "dust tone") < 0.5
    return opacity, np.where(dark, np.float32(0.1), np.float32(0.9))
