"""Designs of repeated cells: vias, bumps, contacts, dynamic and static memory."""

from __future__ import annotations

import numpy as np

from recame.datasets.generated.geometry import (
    Design,
    Plane,
    Sites,
    centre,
    length,
    line_sites,
    odd,
    site,
    to_line,
    to_multiple,
)
from recame.datasets.generated.hashing import F32

# --- via array: ring pads in staggered rows, drilled in the middle


def _place_vias(p: Plane) -> Sites:
    k = np.floor(p.u / p.pitch)
    shift = odd(k) * (p.pitch * 0.5)
    u = (k + 0.5) * p.pitch
    v = centre(p.v + shift, p.pitch) - shift
    radius = 0.5 * p.width
    return Sites(
        line=site(u, v, 1, 0, p.width),
        gap=site(u, v + 0.5 * p.pitch, 0, 1, p.pitch - p.width),
        body=site(u + 0.72 * radius, v, 0, 1, 0.3 * radius),
        via=site(u, v, 1, 0, 0.5 * radius),
    )


def _draw_vias(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    shift = odd(np.floor(u / p.pitch)) * (p.pitch * 0.5)
    far = length(to_line(u, p.pitch), to_line(v + shift, p.pitch))
    return 0.5 * p.width - far, 0.25 * p.width - far


VIAS = Design("via array", _place_vias, _draw_vias)


# --- bumps: round pads on a grid, each with a dome, chained by thin traces


def _place_bumps(p: Plane) -> Sites:
    u, v = centre(p.u, p.pitch), centre(p.v, p.pitch)
    radius = 0.5 * p.width
    return Sites(
        line=site(u, v + 0.5 * p.pitch, 0, 1, 0.26 * p.width),
        gap=site(u + 0.5 * p.pitch, v, 1, 0, p.pitch - p.width),
        body=site(u + 0.55 * radius, v + 0.35 * radius, 0, 1, 0.34 * radius),
        via=site(u, v, 0, 1, 0.52 * radius),
    )


def _draw_bumps(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    across = to_line(u, p.pitch)
    far = length(across, to_line(v, p.pitch))
    return np.maximum(0.5 * p.width - far, 0.13 * p.width - across), 0.26 * p.width - far


BUMPS = Design("bumps", _place_bumps, _draw_bumps)


# --- memory cells: short active areas in a brick pattern, a contact in the middle of each


def _brick(u: F32, v: F32, p: Plane) -> tuple[F32, F32]:
    """Position of the cell's centre along its row, and the cells' spacing."""
    q = 2.7 * p.pitch
    shift = np.floor(u / p.pitch) * (q / 3)
    return centre(v - shift, q) + shift, q


def _place_memory(p: Plane) -> Sites:
    v, q = _brick(p.u, p.v, p)
    return line_sites(p, centre(p.u, p.pitch), (v - 0.22 * q, v + q / 6, v + 0.22 * q, v))


def _draw_memory(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    middle, q = _brick(u, v, p)
    across, along = to_line(u, p.pitch), np.abs(v - middle)
    half = 0.5 * q - 0.22 * p.pitch - 0.5 * p.width
    metal = 0.5 * p.width - length(across, np.maximum(along - half, 0))
    return metal, 0.42 * p.width - length(across, along)


MEMORY = Design("memory cells", _place_memory, _draw_memory)


# --- contact array: wide active strips, two columns of square contacts on each


def _place_contacts(p: Plane) -> Sites:
    k, q = np.floor(p.u / p.pitch), 0.46 * p.pitch
    u = (k + 0.5) * p.pitch
    v = centre(p.v, q)
    side = np.where(p.u < u, np.float32(-1), np.float32(1))
    return Sites(
        line=site(u, v + 0.5 * q, 0, 1, p.width),
        gap=site((k + 1) * p.pitch, v, 1, 0, p.pitch - p.width),
        body=site(u, v + 0.5 * q, 0, 1, 0.34 * p.width),
        via=site(u + side * 0.25 * p.width, v, 0, 1, 0.17 * p.width),
    )


def _draw_contacts(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    across = to_line(u, p.pitch)
    square = np.maximum(np.abs(across - 0.25 * p.width), to_line(v, 0.46 * p.pitch))
    return 0.5 * p.width - across, 0.14 * p.width - square


CONTACTS = Design("contact array", _place_contacts, _draw_contacts)


# --- static memory: mirrored cells of a bit line, an L and a bar, each with contacts


def _place_static(p: Plane) -> Sites:
    a, b = 3.0 * p.pitch, 2.0 * p.pitch
    u, v = np.floor(p.u / a + 0.5) * a, np.floor(p.v / b + 0.5) * b
    side = np.where(p.u < u, np.float32(-1), np.float32(1))
    bar = 0.46 * p.width
    return Sites(
        line=site(u, v + 0.2 * p.pitch, 0, 1, p.width),
        gap=site(
            u + side * (0.3 * p.pitch), v + 0.72 * p.pitch, 1, 0, 0.6 * p.pitch - 0.96 * p.width
        ),
        body=site(u, v + 0.8 * p.pitch, 0, 1, 0.5 * p.width),
        via=site(u + side * (1.1 * p.pitch), v + 0.22 * p.pitch, 0, 1, bar),
    )


def _draw_static(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    x, y = to_multiple(u, 3.0 * p.pitch), to_multiple(v, 2.0 * p.pitch)
    bar = 0.46 * p.width
    upright = np.minimum(bar - np.abs(x - 0.6 * p.pitch), y - 0.3 * p.pitch)
    foot = np.minimum(bar - np.abs(y - 0.66 * p.pitch), 0.5 * p.pitch - np.abs(x - 1.1 * p.pitch))
    pad = bar + 0.4 - np.maximum(np.abs(x - 1.1 * p.pitch), np.abs(y - 0.22 * p.pitch))
    metal = np.maximum(np.maximum(0.5 * p.width - x, upright), np.maximum(foot, pad))
    dots = np.minimum(
        np.maximum(np.abs(x - 1.1 * p.pitch), np.abs(y - 0.22 * p.pitch)),
        np.maximum(x, np.abs(y - 0.5 * p.pitch)),
    )
    return metal, 0.32 * p.width - dots


STATIC = Design("static memory", _place_static, _draw_static)
