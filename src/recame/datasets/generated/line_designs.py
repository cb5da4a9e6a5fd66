"""Designs of lines: line and space, logic, bond fingers, comb, serpentine, mesh, rings."""

from __future__ import annotations

import numpy as np

from recame.datasets.generated.geometry import (
    Design,
    Plane,
    Site,
    Sites,
    centre,
    length,
    line_sites,
    odd,
    site,
    to_line,
)
from recame.datasets.generated.hashing import F32, cell_hash

_FAR = np.float32(99.0)


# --- line and space: parallel lines, a staggered row of vias on each


def _place_lines(p: Plane) -> Sites:
    k, q = np.floor(p.u / p.pitch), 2.4 * p.pitch
    shift = odd(k) * (q * 0.5)
    u, v = (k + 0.5) * p.pitch, np.floor((p.v + shift) / q) * q - shift
    return line_sites(p, u, (v + 0.1 * q, v + 0.05 * q, v, v + 0.5 * q))


def _draw_lines(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    across, q = to_line(u, p.pitch), 2.4 * p.pitch
    along = to_line(v + odd(np.floor(u / p.pitch)) * (q * 0.5), q)
    return 0.5 * p.width - across, 0.42 * p.width - length(across, along)


LINES = Design("line and space", _place_lines, _draw_lines)


# --- logic: tracks with random ends, jogs between neighbours, vias


def _track(p: Plane, s: Sites, k: F32, j: F32) -> F32:
    """Whether the track k has metal in row j; next to the sites it always has."""
    q = 2.2 * p.pitch
    here = (np.abs((k + 0.5) * p.pitch - s.gap.u) < p.pitch) & (
        np.abs((j + 0.5) * q - s.via.v) < 0.5 * q
    )
    return (cell_hash(p.plane, k, j) < 0.74) | here


def _place_logic(p: Plane) -> Sites:
    q = 2.2 * p.pitch
    j = np.floor(p.v / q)
    v = ((j + 0.25) * q, (j + 0.27) * q, (j + 0.78) * q, (j + 0.5) * q)
    return line_sites(p, centre(p.u, p.pitch), v, radius=0.4)


def _draw_logic(u: F32, v: F32, p: Plane, s: Sites) -> tuple[F32, F32]:
    q = 2.2 * p.pitch
    k, j, border = np.floor(u / p.pitch), np.floor(v / q), np.floor(v / q + 0.5)
    across, along = to_line(u, p.pitch), to_line(v, q)
    here = _track(p, s, k, j)
    joined = here & _track(p, s, k, border + border - 1 - j)
    joined &= cell_hash(p.plane, k + 7919, border) < 0.7
    end = np.where(joined, _FAR, np.abs(v - border * q) - 0.22 * p.pitch)
    metal = np.where(here, np.minimum(0.5 * p.width - across, end), -_FAR)
    left = np.floor(u / p.pitch - 0.5)
    jog = _track(p, s, left, j) & _track(p, s, left + 1, j)
    jog &= cell_hash(p.plane, left, j + 104729) < 0.2
    jog &= np.abs((left + 1) * p.pitch - s.gap.u) + np.abs((j + 0.5) * q - s.via.v) > 1
    metal = np.maximum(metal, np.where(jog, 0.5 * p.width - along, -_FAR))
    via = (cell_hash(p.plane, k + 15485863, j) < 0.3) & here
    via |= np.abs((k + 0.5) * p.pitch - s.via.u) + np.abs((j + 0.5) * q - s.via.v) < 1
    return metal, np.where(via, 0.4 * p.width - np.maximum(across, along), -_FAR)


LOGIC = Design("logic", _place_logic, _draw_logic)


# --- bond fingers: staggered rounded fingers, a ball and a wire on each


def _finger(u: F32, v: F32, p: Plane) -> tuple[F32, F32]:
    """Column, and position of the finger's centre along it."""
    k, q = np.floor(u / p.pitch), 3.4 * p.pitch
    shift = odd(k) * (0.12 * q)
    return k, centre(v - shift, q) + shift


def _place_fingers(p: Plane) -> Sites:
    k, v = _finger(p.u, p.v, p)
    half = 1.35 * p.pitch - 0.5 * p.width
    toward = 0.408 * p.pitch * (0.5 - odd(k))
    places = (v - 0.25 * half, v + toward, v - 0.55 * half, v + 0.62 * half)
    return line_sites(p, (k + 0.5) * p.pitch, places, depth=0.4)


def _draw_fingers(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    middle = _finger(u, v, p)[1]
    half = 1.35 * p.pitch - 0.5 * p.width
    across, along = to_line(u, p.pitch), v - middle
    metal = 0.5 * p.width - length(across, np.maximum(np.abs(along) - half, 0))
    ball = 0.4 * p.width - length(across, along - 0.62 * half)
    wire = np.minimum(0.09 * p.width - across, along - 0.62 * half)
    return metal, np.maximum(ball, wire)


FINGERS = Design("bond fingers", _place_fingers, _draw_fingers)


# --- comb: two interdigitated combs between buses


def _place_comb(p: Plane) -> Sites:
    q = 4.2 * p.pitch
    middle, bus = centre(p.v, q), np.floor(p.v / q + 0.5) * q
    return line_sites(p, centre(p.u, p.pitch), (middle + 0.08 * q, middle, middle - 0.1 * q, bus))


def _draw_comb(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    q, gap = 4.2 * p.pitch, p.pitch - p.width
    across, along = to_line(u, p.pitch), v - np.floor(v / q) * q
    from_bus = np.where(odd(np.floor(u / p.pitch)) > 0, along, q - along)
    finger = np.minimum(0.5 * p.width - across, from_bus - (0.6 * p.width + gap))
    to_bus = np.minimum(along, q - along)
    metal = np.maximum(finger, 0.6 * p.width - to_bus)
    return metal, 0.4 * p.width - length(across, to_bus)


COMB = Design("comb", _place_comb, _draw_comb)


# --- serpentine: one line, turned back and forth, with a probe square at every middle


def _place_serpentine(p: Plane) -> Sites:
    q = 4.6 * p.pitch
    j = np.floor(p.v / q)
    v = ((j + 0.34) * q, (j + 0.38) * q, (j + 0.66) * q, (j + 0.5) * q)
    return line_sites(p, centre(p.u, p.pitch), v)


def _draw_serpentine(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    q, rest = 4.6 * p.pitch, 0.5 * (p.pitch - p.width)
    along = v - np.floor(v / q) * q
    across = to_line(u, p.pitch)
    metal = np.minimum(0.5 * p.width - across, np.minimum(along, q - along) - rest)
    top = np.where(odd(np.floor(u / p.pitch - 0.5)) > 0, along, q - along)
    metal = np.maximum(metal, 0.5 * p.width - np.abs(top - rest - 0.5 * p.width))
    return metal, 0.3 * p.width - np.maximum(across, np.abs(along - 0.5 * q))


SERPENTINE = Design("serpentine", _place_serpentine, _draw_serpentine)


# --- mesh: a power grid with a via at each crossing


def _place_mesh(p: Plane) -> Sites:
    u, v = centre(p.u, p.pitch), centre(p.v, p.pitch)
    return Sites(
        line=site(u, v + 0.5 * p.pitch, 0, 1, p.width),
        gap=site(u + 0.5 * p.pitch, v + 0.5 * p.pitch, 1, 0, p.pitch - p.width),
        body=site(u + 0.5 * p.pitch, v, 1, 0, 0.5 * p.width),
        via=site(u, v, 0, 1, 0.42 * p.width),
    )


def _draw_mesh(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    across, along = to_line(u, p.pitch), to_line(v, p.pitch)
    metal = 0.5 * p.width - np.minimum(across, along)
    return metal, 0.3 * p.width - np.maximum(across, along)


MESH = Design("mesh", _place_mesh, _draw_mesh)


# --- rings: concentric lines around the plane's origin, vias along them


def _on_ring(ring: F32, v: F32) -> F32:
    return np.asarray(np.sqrt(np.maximum(ring * ring - v * v, 1)))


def _place_rings(p: Plane) -> Sites:
    ring, q = centre(length(p.u, p.v), p.pitch), 1.7 * p.pitch
    v = np.floor(p.v / q) * q
    outer = ring + 0.5 * p.pitch
    u, gap_u, via_u = _on_ring(ring, v), _on_ring(outer, v), _on_ring(ring, v + 0.5 * q)
    return Sites(
        line=Site(u, v, -v / ring, u / ring, p.width),
        gap=Site(gap_u, v, gap_u / outer, v / outer, p.pitch - p.width),
        body=Site(u, v, -v / ring, u / ring, 0.5 * p.width),
        via=site(via_u, v + 0.5 * q, 1, 0, 0.42 * p.width),
    )


def _draw_rings(u: F32, v: F32, p: Plane, _: Sites) -> tuple[F32, F32]:
    radius, middle = length(u, v), centre(v, 1.7 * p.pitch)
    ring = centre(radius, p.pitch)
    via = 0.42 * p.width - length(u - _on_ring(ring, middle), v - middle)
    return 0.5 * p.width - np.abs(radius - ring), via


RINGS = Design("rings", _place_rings, _draw_rings)
