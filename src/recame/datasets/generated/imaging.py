"""Geometry -> pixels: coverage of the layers, light, focus, dust, sensor noise, bit depth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from recame.contracts import Pixels
from recame.datasets.generated.defects import CLASSES, Mark, Scene, ramp
from recame.datasets.generated.geometry import length
from recame.datasets.generated.hashing import F32, pixel_noise, smooth_field, uniform
from recame.datasets.generated.products import DESIGNS, FIELD, VARIANTS, Shots, make_look, pick


def take(shots: Shots, *, size: int, bit_depth: int, colour: bool) -> Pixels:
    """Take the images.

    Args:
        shots: N images of one design.
        size: pixels a side.
        bit_depth: 8 or 16.
        colour: three channels instead of one.

    Returns:
        (N, size, size, 1 or 3), uint8 or uint16.
    """
    look = make_look(shots, colour=colour)
    design = DESIGNS[int(shots.product[0]) % len(DESIGNS)]
    sites = design.place(look.plane)
    x, y = _camera(shots, size)
    # The crop is centred, but for a few units, where a defect of any class would be.
    near_x = x - uniform(shots.content, "near x", -5, 5)
    near_y = y - uniform(shots.content, "near y", -5, 5)
    u = _middle(*(s.u for s in sites)) + near_x * look.cos - near_y * look.sin
    v = _middle(*(s.v for s in sites)) + near_x * look.sin + near_y * look.cos
    metal, via = design.draw(u, v, look.plane, sites)
    metal = metal + (look.bias + look.roughness * smooth_field(shots.content, "waves", 22, size))
    via = via + look.bias
    style = uniform(shots.content, "style") + shots.variant[:, None, None].astype(np.float32)
    style *= np.float32(1 / len(VARIANTS))
    scene = Scene(shots.content, look, style, x, y, u, v, sites, metal, via)
    marks: list[tuple[slice, Mark]] = []
    ends = np.flatnonzero(np.diff(shots.label, prepend=-1, append=len(CLASSES)))
    for start, stop in pairwise(ends.tolist()):
        rows = slice(start, stop)
        mark = CLASSES[int(shots.label[start])].spoil(pick(scene, rows))
        if mark is not None:
            marks.append((rows, mark))
    return _expose(shots, scene, marks, bit_depth)


def _middle(a: F32, b: F32, c: F32, d: F32) -> F32:
    return np.asarray(0.25 * ((a + b) + (c + d)))


def _camera(shots: Shots, size: int) -> tuple[F32, F32]:
    """Positions of the pixels in units from the centre, to the right and downward."""
    step = np.float32(FIELD / size)
    grid = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * step - np.float32(FIELD / 2)
    moved = shots.moved[:, None, None].astype(np.float32) * step
    x = grid[None, None, :] + moved * uniform(shots.capture, "move x", -1, 1)
    y = grid[None, :, None] + moved * uniform(shots.capture, "move y", -1, 1)
    return x, y


def _expose(shots: Shots, scene: Scene, marks: list[tuple[slice, Mark]], bit_depth: int) -> Pixels:
    """Reflectance -> light -> sensor -> numbers."""
    look, x, y = scene.look, scene.x, scene.y
    size = scene.metal.shape[-1]
    blur = np.maximum(look.blur, np.float32(FIELD / size))
    metal, via = ramp(scene.metal, blur), ramp(scene.via, blur)
    rim = metal * (1 - metal)
    rim += via * (1 - via)
    rim *= look.rim * -4
    light = look.gain * ((1 + x * (look.light_x * (2 / FIELD))) + y * (look.light_y * (2 / FIELD)))
    cloud = smooth_field(shots.content, "cloud", 7, size) * look.mottle + 1
    dust, dust_tone = _dust(shots, x, y)
    top = 2**bit_depth - 1
    pixels = np.empty((*metal.shape, len(look.metal)), f"uint{bit_depth}")
    for c in range(len(look.metal)):
        tone = look.substrate[c] * cloud
        tone += (look.metal[c] - tone) * metal
        tone += (look.via[c] - tone) * via
        tone += rim
        tone += (dust_tone - tone) * dust
        for rows, mark in marks:
            part = tone[rows]
            part *= mark.shade
            part += (mark.tone[min(c, len(mark.tone) - 1)] - part) * mark.alpha
        tone *= light
        tone += pixel_noise(shots.capture, f"noise {c}", size) * look.noise
        tone *= top
        tone += 0.5
        np.clip(tone, 0, top, out=tone)
        pixels[..., c] = tone
    return pixels


def _dust(shots: Shots, x: F32, y: F32) -> tuple[F32, F32]:
    """Opacity and tone of a speck that is too small to matter, on every third image."""
    content = shots.content
    dx = x - uniform(content, "dust x", -21, 21)
    dy = y - uniform(content, "dust y", -21, 21)
    radius = uniform(content, "dust size", 0.3, 0.8)
    radius = np.where(uniform(content, "dust") < 0.34, radius, np.float32(-9))
    opacity = ramp(radius - length(dx, dy), 1.2) * np.float32(0.55)
    dark = uniform(content, "dust tone") < 0.5
    return opacity, np.where(dark, np.float32(0.1), np.float32(0.9))
