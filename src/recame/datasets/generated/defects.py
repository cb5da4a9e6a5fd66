"""The thirteen defects, each placed on the design that it spoils.

A defect changes the signed distances of metal and vias (what the process did wrong), or leaves a
mark on the surface (what fell on it or ran over it). Lengths are in units, 44 of which span an
image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recame.datasets.generated.geometry import Sites, length
from recame.datasets.generated.hashing import (
    F32,
    U64,
    cell_hash,
    low_word,
    named,
    smooth_field,
    uniform,
)
from recame.datasets.generated.products import FIELD, Look


@dataclass
class Scene:
    """N images of one class on one design, before they are lit.

    Attributes:
        keys: (N,) of the content.
        look: of the product.
        style: (N, 1, 1) in [0, 1): the look of the defect; a cluster's variant has its own range.
        x: (N, 1, W) units from the centre, to the right.
        y: (N, H, 1) units from the centre, downward.
        u: (N, H, W) position on the design.
        v: (N, H, W).
        sites: where the design offers a place.
        metal: (N, H, W) signed distance; changed in place.
        via: (N, H, W) signed distance; changed in place.
    """

    keys: U64
    look: Look
    style: F32
    x: F32
    y: F32
    u: F32
    v: F32
    sites: Sites
    metal: F32
    via: F32

    def random(self, name: str, low: float | F32 = 0.0, high: float | F32 = 1.0) -> F32:
        """(N, 1, 1) numbers of the defect."""
        return uniform(self.keys, "defect " + name, low, high)

    def field(self, name: str, cells: int) -> F32:
        """(N, H, W) hills in [-1, 1]."""
        return smooth_field(self.keys, "defect " + name, cells, self.metal.shape[-1])

    def jagged(self, name: str, a: F32, step: float) -> F32:
        """(N, H, W) a random polyline over `a` in [-1, 1], with a corner every `step` units."""
        k = np.floor(a * (1 / step))
        plane = low_word(named(self.keys, "defect " + name))
        left, right = (cell_hash(plane, corner, np.zeros_like(k)) for corner in (k, k + 1))
        return np.asarray(2 * (left + (right - left) * (a * (1 / step) - k)) - 1)

    def along(self, site: int) -> tuple[F32, F32]:
        """Coordinates from a site: along its direction, and across it."""
        s = self.sites[site]
        u, v = self.u - s.u, self.v - s.v
        return u * s.du + v * s.dv, v * s.du - u * s.dv

    def placed(self, reach: float) -> tuple[F32, F32]:
        """Coordinates from a random point within `reach` of the centre."""
        return self.x - self.random("x", -reach, reach), self.y - self.random("y", -reach, reach)

    def turned(self, reach: float) -> tuple[F32, F32]:
        """Like `placed`, in a random direction: along it, and across it."""
        x, y = self.placed(reach)
        t = self.random("direction", -1, 1)
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        return x * cos + y * sin, y * cos - x * sin

    def cover(self, distance: F32, width: float) -> F32:
        """Coverage of a signed distance; no edge is sharper than the pixels."""
        return ramp(distance, max(width, FIELD / self.metal.shape[-1]))

    def choose(self, bright: F32, dark: F32) -> F32:
        """One or the other kind, by the style."""
        return np.where(self.style >= 0.5, bright, dark)


@dataclass(frozen=True)
class Mark:
    """Something on the surface: `image = (image * shade) * (1 - alpha) + tone * alpha`.

    Attributes:
        alpha: (N, H, W) opacity.
        tone: (3, N, 1, 1) or (1, N, 1, 1), reflectance in [0, 1].
        shade: (N, H, W) factor, or 1.
    """

    alpha: F32
    tone: F32
    shade: F32 | float = 1.0


LINE, GAP, BODY, VIA = range(4)
_NOWHERE = np.float32(90.0)


def ramp(distance: F32, width: F32 | float) -> F32:
    """Smooth coverage in [0, 1] of a signed distance, over an edge of `width` units."""
    t = distance * (1 / width)
    t += 0.5
    np.clip(t, 0, 1, out=t)
    smooth = 3 - 2 * t
    smooth *= t
    smooth *= t
    return smooth


def _patch(s: Scene, local: float) -> F32:
    """(N, H, W) weight: 1 around a random point in the share `local` of images, else everywhere."""
    x, y = s.placed(6)
    radius = np.where(s.random("patch") < local, s.random("radius", 12, 17), _NOWHERE)
    return ramp(radius - length(x, y), 9.0)


def _bridge(s: Scene) -> None:
    a, b = s.along(GAP)
    half = 0.5 * s.sites.gap.extent + 1.2
    neck = s.random("neck", 0.0, 0.5)
    waist = (1.8 + 1.0 * s.style) * s.random("waist", 0.8, 1.3)
    t = a / half
    side = waist * (1 + neck * (t * t - 0.5)) + 0.6 * s.field("edge", 20) - np.abs(b)
    np.maximum(s.metal, np.minimum(half - np.abs(a), side), out=s.metal)


def _open(s: Scene) -> None:
    a, b = s.along(LINE)
    half = (2.0 + 0.8 * s.style) * s.random("half", 0.85, 1.4)
    a = a + s.random("slant", -0.5, 0.5) * b
    cut = np.minimum(
        half + 0.6 * s.field("edge", 20) - np.abs(a),
        0.5 * s.sites.line.extent + 1.0 - np.abs(b),
    )
    np.minimum(s.metal, -cut, out=s.metal)
    np.minimum(s.via, -cut, out=s.via)


def _void(s: Scene) -> None:
    a, b = s.along(BODY)
    radius = np.maximum(s.sites.body.extent * s.random("radius", 0.65, 0.88), np.float32(1.8))
    hole = radius + 0.25 * s.field("edge", 20) - length(a * (1 / (1 + 0.6 * s.style)), b)
    np.minimum(s.metal, -hole, out=s.metal)
    np.minimum(s.via, -hole, out=s.via)


def _extra_pattern(s: Scene) -> None:
    a, b = s.along(GAP)
    gap = s.sites.gap.extent
    across = np.clip(gap * s.random("across", 0.27, 0.36), np.float32(1.4), np.float32(3.6))
    along = s.random("along", 2.2, 4.0) + 1.4 * s.style
    spur = s.choose(0.5 * gap - across + 0.5, np.zeros_like(gap))
    a = a + np.where(s.random("side") < 0.5, spur, -spur)
    island = np.minimum(across - np.abs(a), along - np.abs(b)) + 0.25 * s.field("edge", 20)
    np.maximum(s.metal, island, out=s.metal)


def _wavy(s: Scene) -> None:
    wave = s.random("amplitude", 0.8, 1.4) * s.choose(s.field("coarse", 16), s.field("fine", 28))
    s.metal += wave
    s.via += 0.4 * wave


def over_etch(s: Scene, local: float = 0.5) -> None:
    """The share `local` of them in one place, the others everywhere."""
    extent = np.clip(s.sites.line.extent, np.float32(5.0), np.float32(8.0))
    s.metal -= extent * s.random("depth", 0.15, 0.23) * _patch(s, local)
    s.via -= 0.05 * extent * s.style


def under_etch(s: Scene, local: float = 0.5) -> None:
    """The share `local` of them in one place, the others everywhere."""
    extent = np.minimum(s.sites.gap.extent, np.float32(8.0))
    s.metal += extent * s.random("depth", 0.2, 0.32) * _patch(s, local)
    s.via += 0.04 * extent * s.style


def missing(s: Scene, remnants: float = 0.125, radius: tuple[float, float] = (0.3, 0.5)) -> None:
    """A share of them left something in its place, of a radius relative to the feature's."""
    far = length(*s.along(VIA))
    left = np.where(s.random("remnant") < remnants, s.random("left", *radius), -_NOWHERE)
    extent = s.sites.via.extent
    np.minimum(s.via, np.maximum(far - (extent + 2.0), left * extent - far), out=s.via)


def _residue(s: Scene) -> Mark:
    substrate = s.look.substrate
    a, b = s.along(GAP)
    a, b = a + s.random("a", -2, 2), b + s.random("b", -3, 3)
    radius = s.random("radius", 3.8, 6.0) * (0.8 + 0.5 * s.style)
    blob = radius + 2.2 * s.field("edge", 11) - length(a, b * s.random("flat", 0.5, 0.9))
    free = 1 - 0.8 * s.cover(s.metal, 1.5)
    mix = s.choose(s.random("mix", 0.65, 1.0), s.random("mix", -0.8, -0.5))
    contrast = np.maximum(np.abs(s.look.metal - substrate), np.float32(0.42))
    tone = np.clip(substrate + mix * contrast, np.float32(0.04), np.float32(0.96))
    return Mark(s.cover(blob, 2.2) * free * s.random("opacity", 0.6, 0.95), tone)


def _particle(s: Scene) -> Mark:
    x, y = s.placed(7)
    radius = s.random("radius", 1.9, 3.2) * (1 + 0.7 * s.style)
    stretch, lean = s.random("stretch", 0.65, 1.0), s.random("lean", -0.3, 0.3)
    edge = radius + (0.45 * radius) * s.field("edge", 16)
    shadow = edge - length((x - 1.3) + lean * (y - 1.3), (y - 1.3) * stretch)
    body = edge - length(x + lean * y, y * stretch)
    glint = 0.35 * radius - length(x + 0.35 * radius, y + 0.35 * radius)
    tone = s.choose(s.random("tone", 0.85, 1.0), s.random("tone", 0.04, 0.16))
    shade = (1 - 0.4 * s.cover(shadow, 2.4)) * (1 + 0.5 * s.cover(glint, 1.2))
    return Mark(s.cover(body, 1.3) * s.random("opacity", 0.8, 1.0), tone[None], shade)


def _scratch(s: Scene) -> Mark:
    a, b = s.turned(6)
    half = s.random("length", 10, 24)
    b = b + s.random("bend", -0.008, 0.008) * a * a
    width = s.random("width", 0.4, 0.8)
    line = np.minimum(width - np.abs(b), (half - np.abs(a)) * 0.15)
    apart = np.where(s.random("double") < 0.35, s.random("apart", 1.8, 3.2), _NOWHERE)
    second = np.minimum(width - 0.1 - np.abs(b - apart), (0.7 * half - np.abs(a)) * 0.15)
    tone = s.choose(s.random("tone", 0.85, 1.0), s.random("tone", 0.05, 0.2))
    return Mark(s.cover(np.maximum(line, second), 1.3) * s.random("opacity", 0.55, 0.9), tone[None])


def crack(s: Scene, forked: float = 1.0) -> Mark:
    """The share `forked` of them with a branch."""
    a, b = s.turned(6)
    half = s.random("length", 9, 20)
    b = b + 2.6 * s.jagged("bend", a, 5.5) + 0.9 * s.jagged("jag", a, 1.9)
    taper = s.random("width", 0.45, 0.8) * (1.2 - np.abs(a) * (0.5 / half))
    line = np.minimum(taper - np.abs(b), (half - np.abs(a)) * 0.3)
    fork = s.random("fork", 0.35, 0.8)
    fork = s.choose(fork, -fork)
    branch = np.minimum(0.8 * taper - np.abs(b - fork * a), np.minimum(a, 0.8 * half - a) * 0.3)
    branch = np.where(s.random("forked") < forked, branch, -_NOWHERE)
    alpha = s.cover(np.maximum(line, branch), 1.2) * s.random("opacity", 0.7, 1.0)
    return Mark(alpha * (1 - 0.45 * s.cover(s.metal, 1.5)), s.random("tone", 0.0, 0.1)[None])


def _discoloration(s: Scene) -> Mark:
    a, b = s.turned(7)
    radius = s.random("radius", 8, 13)
    blot = radius + 5.0 * s.field("edge", 6) - length(a, b * s.random("flat", 0.6, 1.0))
    stain = s.cover(blot, 6.0)
    # A dried drop is darkest at its border.
    dried = stain * (1.35 - 0.8 * s.cover(blot - 4.0, 6.0))
    stain = np.where(s.random("dried") < 0.35, dried, stain)
    depth = s.random("depth", 0.22, 0.36)
    warm = np.asarray((0.8, 0.5, 0.2), np.float32)[:, None, None, None] + np.zeros_like(depth)
    return Mark(0.25 * depth * stain, warm, 1 + s.choose(depth, -depth) * stain)


class DefectClass(NamedTuple):
    """A class of the set.

    Attributes:
        name: as in the label column.
        meaning: in one line.
        spoil: changes a scene's geometry in place, or gives what lies on the surface.
        critical: whether an escape kills the device.
        styles: of its looks; a cluster's variant has a third of them.
    """

    name: str
    meaning: str
    spoil: Callable[[Scene], Mark | None]
    critical: bool = False
    styles: tuple[float, float] = (0.0, 1.0)


#: Normal first, then the defects, most frequent first.
CLASSES = (
    DefectClass(
        "normal",
        "nothing wrong: dust below the limit, faint stains, process variation",
        lambda _: None,
    ),
    DefectClass("particle", "a grain on top of the pattern, with its shadow", _particle),
    DefectClass("residue", "a thin film of resist or flux left between the features", _residue),
    DefectClass(
        "extra_pattern",
        "metal where none was drawn, touching one neighbour or none",
        _extra_pattern,
    ),
    DefectClass("scratch", "a thin straight or bent line, ploughed over all layers", _scratch),
    DefectClass("void", "a hole inside metal that leaves its edges whole", _void),
    DefectClass("bridge", "metal that joins two neighbouring features", _bridge, critical=True),
    DefectClass("discoloration", "a stain of low contrast over many features", _discoloration),
    DefectClass("open", "a feature cut in two", _open, critical=True),
    DefectClass("over_etch", "features narrower than drawn", over_etch),
    DefectClass(
        "missing_feature", "a via, contact, bump or ball that is not there", missing, critical=True
    ),
    DefectClass("line_edge_roughness", "wavy edges of the features over the whole view", _wavy),
    DefectClass("under_etch", "features wider than drawn, spaces that nearly close", under_etch),
    DefectClass("crack", "a jagged dark line through the substrate", crack, critical=True),
)
