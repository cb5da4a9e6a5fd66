"""Thirty finer classes: most defects in two kinds that look alike, and three more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from recame.datasets.generated import defects
from recame.datasets.generated.defects import CLASSES, DefectClass, Mark, Scene, ramp
from recame.datasets.generated.geometry import length, to_multiple


def fibre(s: Scene) -> Mark:
    """A hair on the surface: curved, of one width, with its shadow."""
    a, b = s.turned(6)
    half = s.random("length", 9, 18)
    bend = s.choose(s.random("bend", 0.02, 0.045), s.random("bend", -0.045, -0.02))
    b = b + bend * a * a + s.random("twist", -0.0012, 0.0012) * a * a * a
    width = s.random("width", 0.6, 0.95)
    ends = (half - np.abs(a)) * 0.4
    shadow = s.cover(np.minimum(width - np.abs(b - 1.2), ends), 2.2)
    body = s.cover(np.minimum(width - np.abs(b), ends), 1.3)
    tone = s.choose(s.random("tone", 0.8, 1.0), s.random("tone", 0.05, 0.2))
    return Mark(body * s.random("opacity", 0.75, 0.95), tone[None], 1 - 0.3 * shadow)


def pitting(s: Scene) -> Mark:
    """Small dark holes in the metal of a region: corrosion."""
    x, y = s.placed(6)
    region = ramp(s.random("radius", 10, 15) + 3 * s.field("region", 8) - length(x, y), 6.0)
    pits = s.choose(s.field("coarse", 20), s.field("fine", 30)) - s.random("rare", 0.18, 0.32)
    alpha = s.cover(2.4 * pits, 1.2) * region * s.cover(s.metal, 1.5)
    return Mark(alpha * s.random("opacity", 0.75, 0.95), s.random("tone", 0.02, 0.12)[None])


def smear(s: Scene) -> Mark:
    """The ridges of a finger's print, in low contrast."""
    a, b = s.turned(7)
    print_of = ramp(s.random("radius", 9, 14) + 3 * s.field("edge", 7) - length(a * 0.75, b), 5.0)
    pitch = s.random("pitch", 3.2, 4.4)
    ridge = pitch * 0.22 - to_multiple(b + s.random("arch", 0.015, 0.03) * a * a, pitch)
    depth = s.random("depth", 0.24, 0.36) * ramp(ridge, 1.4) * print_of
    warm = np.zeros_like(s.style)[None] + np.float32(0.55)
    return Mark(0.2 * depth, warm, 1 + s.choose(depth, -depth))


_DARK, _BRIGHT = (0.0, 0.5), (0.5, 1.0)
_Spoil = Callable[[Scene], Mark | None]
#: Name of the coarse class -> its two kinds: name, meaning, styles, and what spoils it if not
#: what spoils the coarse one.
_KINDS: dict[str, tuple[tuple[str, str, tuple[float, float], _Spoil | None], ...]] = {
    "particle": (
        ("particle_dark", "a dark grain on top of the pattern", _DARK, None),
        ("particle_bright", "a bright grain on top of the pattern", _BRIGHT, None),
    ),
    "residue": (
        ("residue_dark", "a film that darkens what lies between the features", _DARK, None),
        ("residue_bright", "a film that looks like the features", _BRIGHT, None),
    ),
    "extra_pattern": (
        ("island", "metal that touches nothing", _DARK, None),
        ("spur", "metal that grows out of a feature and ends", _BRIGHT, None),
    ),
    "scratch": (
        ("scratch_dark", "a thin dark line over all layers", _DARK, None),
        ("scratch_bright", "a thin bright line over all layers", _BRIGHT, None),
    ),
    "void": (
        ("void_round", "a round hole inside metal", (0.0, 0.3), None),
        ("void_long", "a hole inside metal, twice as long as wide", (1.4, 2.6), None),
    ),
    "bridge": (
        ("bridge_thin", "a thread between two neighbours", (-0.7, 0.0), None),
        ("bridge_wide", "a broad joint of two neighbours", (1.2, 2.4), None),
    ),
    "discoloration": (
        ("stain_dark", "a darker stain over many features", _DARK, None),
        ("stain_bright", "a brighter stain over many features", _BRIGHT, None),
    ),
    "open": (
        ("open_thin", "a hairline cut through a feature", (-1.0, -0.4), None),
        ("open_wide", "a feature that lacks a piece", (1.5, 3.0), None),
    ),
    "over_etch": (
        (
            "over_etch_local",
            "features narrower than drawn in one place",
            (0.0, 1.0),
            partial(defects.over_etch, local=1.0),
        ),
        (
            "over_etch_everywhere",
            "features narrower than drawn in the whole view",
            (0.0, 1.0),
            partial(defects.over_etch, local=0.0),
        ),
    ),
    "missing_feature": (
        (
            "absent_feature",
            "a via, contact, bump or ball that is not there",
            (0.0, 1.0),
            partial(defects.missing, remnants=0.0),
        ),
        (
            "small_feature",
            "a via, contact, bump or ball of half its size",
            (0.0, 1.0),
            partial(defects.missing, remnants=1.0, radius=(0.45, 0.65)),
        ),
    ),
    "line_edge_roughness": (
        ("edge_waves", "edges that swing slowly", _BRIGHT, None),
        ("edge_ripples", "edges that swing fast", _DARK, None),
    ),
    "under_etch": (
        (
            "under_etch_local",
            "spaces that nearly close in one place",
            (0.0, 1.0),
            partial(defects.under_etch, local=1.0),
        ),
        (
            "under_etch_everywhere",
            "spaces that nearly close in the whole view",
            (0.0, 1.0),
            partial(defects.under_etch, local=0.0),
        ),
    ),
    "crack": (
        (
            "crack_forked",
            "a jagged dark line with a branch",
            (0.0, 1.0),
            partial(defects.crack, forked=1.0),
        ),
        (
            "crack_single",
            "a jagged dark line without a branch",
            (0.0, 1.0),
            partial(defects.crack, forked=0.0),
        ),
    ),
}
_MORE = (
    DefectClass("fibre", "a hair on the surface, bent, with its shadow", fibre),
    DefectClass("pitting", "many small dark holes in the metal of a region", pitting),
    DefectClass("smear", "the ridges of a fingerprint, in low contrast", smear),
)


def _kinds(number: int) -> tuple[DefectClass, ...]:
    """The first or the second kind of each defect."""
    return tuple(
        DefectClass(name, meaning, spoil or coarse.spoil, coarse.critical, styles)
        for coarse in CLASSES[1:]
        for name, meaning, styles, spoil in (_KINDS[coarse.name][number],)
    )


#: Normal first, then one kind of each defect, three more defects, and the other kinds.
FINE_CLASSES = (CLASSES[0], *_kinds(0), *_MORE, *_kinds(1))
#: Every class that can be drawn, once.
DRAWN = (*CLASSES, *FINE_CLASSES[1:])
