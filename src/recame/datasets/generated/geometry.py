"""What a design is: signed distances to metal and vias, and the sites where defects can sit.

Lengths are in units, of which 44 span an image whatever its pixels. A signed distance is positive
inside. Each design is periodic, or random by a hash of its cells, over an endless plane (u, v), of
which an image shows a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recame.datasets.generated.hashing import F32, U32


class Site(NamedTuple):
    """A place of a design, one an image; every field is (N, 1, 1).

    Attributes:
        u: position.
        v: position.
        du: unit direction.
        dv: unit direction.
        extent: length, units; what it measures is said in `Sites`.
    """

    u: F32
    v: F32
    du: F32
    dv: F32
    extent: F32


class Sites(NamedTuple):
    """Where defects can sit.

    Attributes:
        line: on the centre of a narrow metal feature; direction along it; extent its width.
        gap: in the middle between two metal features; direction across; extent the gap's width.
        body: deep inside metal; extent the distance to its edge.
        via: a via, contact, bump or pad; extent the radius that holds it.
    """

    line: Site
    gap: Site
    body: Site
    via: Site


@dataclass(frozen=True)
class Plane:
    """The dimensions of each image's design; every field is (N, 1, 1).

    Attributes:
        pitch: period across, units.
        width: metal width, units.
        plane: key of the random layout, where the design has one.
        u: a point of the plane near which the image is taken.
        v: the same.
    """

    pitch: F32
    width: F32
    plane: U32
    u: F32
    v: F32


class Design(NamedTuple):
    """A kind of layout.

    Attributes:
        name: in words.
        place: dimensions -> sites next to the wanted point.
        draw: (u, v, dimensions, sites) -> signed distances (N, H, W) of metal and of vias.
    """

    name: str
    place: Callable[[Plane], Sites]
    draw: Callable[[F32, F32, Plane, Sites], tuple[F32, F32]]


def centre(x: F32, pitch: F32) -> F32:
    """The nearest of the lines at (k + 1/2) pitch."""
    return np.asarray((np.floor(x / pitch) + 0.5) * pitch)


def to_line(x: F32, pitch: F32) -> F32:
    """Distance to the nearest of these lines."""
    return np.asarray(np.abs(x - centre(x, pitch)))


def to_multiple(x: F32, pitch: F32) -> F32:
    """Distance to the nearest multiple of the pitch."""
    return np.asarray(np.abs(x - np.floor(x / pitch + 0.5) * pitch))


def odd(k: F32) -> F32:
    """1 for odd whole numbers, 0 for even ones."""
    return np.asarray(k - 2 * np.floor(k * 0.5))


def length(x: F32, y: F32) -> F32:
    """Euclidean, by a square root: `hypot` is not rounded alike everywhere."""
    return np.asarray(np.sqrt(x * x + y * y))


def site(u: F32, v: F32, du: float, dv: float, extent: F32) -> Site:
    """A site with the same direction in each image."""
    like = np.zeros_like(extent)
    return Site(u + like, v + like, like + np.float32(du), like + np.float32(dv), extent)


def line_sites(
    p: Plane, u: F32, v: tuple[F32, F32, F32, F32], *, depth: float = 0.5, radius: float = 0.42
) -> Sites:
    """Sites on a line of metal that runs along v, and in the space to its right.

    Args:
        p: dimensions.
        u: the line's centre.
        v: where along it the sites line, gap, body and via are.
        depth: of the body's site below the edge, in widths of the line.
        radius: of the via, in widths of the line.
    """
    return Sites(
        line=site(u, v[0], 0, 1, p.width),
        gap=site(u + 0.5 * p.pitch, v[1], 1, 0, p.pitch - p.width),
        body=site(u, v[2], 0, 1, depth * p.width),
        via=site(u, v[3], 0, 1, radius * p.width),
    )
