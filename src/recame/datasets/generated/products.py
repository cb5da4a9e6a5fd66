"""What a product looks like under the camera: dimensions, tones, light, focus and noise.

A product is a design with its own dimensions and tones; it looks the same whatever the seed of a
set. A product has three regions (the variants a, b, c of a cluster): as drawn, turned by a quarter
and denser, and coarser on a lower layer. Lots and images vary a little around that.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from recame.contracts import BoolArray
from recame.datasets.generated import array_designs, line_designs
from recame.datasets.generated.geometry import Plane
from recame.datasets.generated.hashing import F32, I64, U64, low_word, make_keys, uniform

VARIANTS = ("a", "b", "c")
#: Units a side of an image, whatever its pixels.
FIELD = 44.0


#: In the order of the products P01, P02, ...; P13 is the next generation of P01, and so on.
DESIGNS = (
    line_designs.LINES,
    array_designs.VIAS,
    array_designs.BUMPS,
    line_designs.LOGIC,
    array_designs.MEMORY,
    line_designs.FINGERS,
    line_designs.MESH,
    line_designs.COMB,
    array_designs.CONTACTS,
    line_designs.RINGS,
    line_designs.SERPENTINE,
    array_designs.STATIC,
)


@dataclass(frozen=True)
class Shots:
    """What N images of one design show.

    Attributes:
        product: (N,) product numbers, from 0.
        variant: (N,) numbers of `VARIANTS`.
        label: (N,) class numbers, ascending.
        content: (N,) keys of what is in the image.
        capture: (N,) keys of how it was taken; they differ between near-duplicates.
        lot: (N,) keys of the lots.
        moved: (N,) whether the camera stands up to a pixel beside the original's place.
    """

    product: I64
    variant: I64
    label: I64
    content: U64
    capture: U64
    lot: U64
    moved: BoolArray


#: Of each design's first product: pitch and width (units), turn, and the grey tones of substrate,
#: metal and via. The turn is the tangent of half the pattern's angle: no trigonometry is needed.
_STYLES = (
    (13.0, 6.8, 0.0, 0.26, 0.68, 0.92),
    (15.0, 10.0, 0.0, 0.40, 0.80, 0.16),
    (19.0, 11.6, 0.0, 0.16, 0.54, 0.92),
    (12.0, 5.8, 0.0, 0.28, 0.64, 0.90),
    (12.0, 6.8, 0.21, 0.70, 0.32, 0.86),
    (15.5, 8.6, 1.0, 0.22, 0.72, 0.95),
    (17.0, 6.8, 0.0, 0.30, 0.66, 0.94),
    (12.5, 6.4, 1.0, 0.72, 0.30, 0.58),
    (18.0, 11.0, 0.0, 0.22, 0.54, 0.90),
    (13.0, 6.8, 0.12, 0.40, 0.80, 0.22),
    (11.5, 5.8, 0.0, 0.16, 0.54, 0.84),
    (13.0, 4.8, 0.0, 0.28, 0.64, 0.92),
)
_RINGS = DESIGNS.index(line_designs.RINGS)
#: Colour of a surface relative to its grey tone, red, green and blue: solder mask, oxides, silicon.
_SUBSTRATE_TINTS = ((0.62, 1.12, 0.78), (0.68, 0.86, 1.30), (1.05, 0.82, 1.12), (1.0, 1.0, 1.02))
#: Copper, gold, aluminium, tin.
_METAL_TINTS = ((1.22, 0.92, 0.72), (1.20, 1.04, 0.64), (0.98, 1.0, 1.03), (1.0, 0.99, 0.95))
_VIA_TINTS = ((1.08, 1.0, 0.86), (0.96, 1.0, 1.06), (1.0, 1.0, 1.0))

Tints = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Look:
    """How N images of one design are taken; every field is (N, 1, 1) unless it says otherwise.

    Attributes:
        plane: dimensions and place on the design.
        cos: of the pattern's angle.
        sin: of the pattern's angle.
        substrate: (channels, N, 1, 1) reflectance of the surface, in [0, 1].
        metal: the same.
        via: the same.
        rim: darkening of edges.
        blur: width of an edge, units.
        bias: how much wider features are than drawn, units to each side.
        roughness: amplitude of the edges' waviness, units.
        mottle: relative amplitude of the substrate's cloudiness.
        gain: of the light.
        light_x: relative change of the light from the centre to the right border.
        light_y: the same, to the lower border.
        noise: deviation of the sensor's noise, in units of [0, 1].
    """

    plane: Plane
    cos: F32
    sin: F32
    substrate: F32
    metal: F32
    via: F32
    rim: F32
    blur: F32
    bias: F32
    roughness: F32
    mottle: F32
    gain: F32
    light_x: F32
    light_y: F32
    noise: F32


def pick(value: Any, rows: slice | I64) -> Any:
    """The same shots, looks, sites or arrays for some of the images only."""
    if isinstance(value, np.ndarray):
        return value[rows] if value.ndim == 1 else value[..., rows, :, :]
    if isinstance(value, tuple):
        return type(value)(*(pick(item, rows) for item in value))
    return replace(value, **{f.name: pick(getattr(value, f.name), rows) for f in fields(value)})


def make_look(shots: Shots, *, colour: bool) -> Look:
    """The looks of N images, in three channels or in one."""
    product, variant, content = shots.product, shots.variant, shots.content
    own = make_keys(20_190_917, product)
    region = make_keys(own, variant)
    later = (product >= len(DESIGNS)).astype(np.float32)[:, None, None]
    style = np.asarray(_STYLES, np.float32)[product % len(DESIGNS)]
    pitch, width, turn, substrate, metal, via = (c[:, None, None] for c in style.T)
    scale = 1 + later * uniform(own, "scale", -0.12, 0.2)
    scale = scale * np.asarray((1.0, 0.86, 1.16), np.float32)[variant][:, None, None]
    scale = np.maximum(scale, 9.5 / pitch)
    duty = (width / pitch) * (1 + later * uniform(own, "duty", -0.1, 0.1))
    duty *= uniform(region, "duty", 0.94, 1.06)
    turn = turn + later * uniform(own, "turn", 0, 0.4) + uniform(content, "turn", -0.012, 0.012)
    cos, sin = _rotation(turn, variant)
    # Rings bend around the plane's origin; other designs may lie anywhere on theirs.
    ring = (product % len(DESIGNS) == _RINGS)[:, None, None]
    plane = Plane(
        pitch=pitch * scale,
        width=pitch * scale * duty,
        plane=low_word(region),
        u=np.where(ring, uniform(content, "radius", 62, 105), uniform(content, "u", 0, 4096)),
        v=np.where(ring, uniform(content, "arc", -22, 22), uniform(content, "v", 0, 4096)),
    )

    def tone(grey: F32, name: str, tints: Tints) -> F32:
        grey = grey + later * uniform(own, name, -0.1, 0.1) + uniform(region, name, -0.05, 0.05)
        # Region c lies on a lower layer: seen through oxide, with less contrast.
        grey = np.where((variant == 2)[:, None, None], 0.14 + 0.74 * grey, grey)
        return _tinted(grey, own, name, tints) if colour else grey[None]

    return Look(
        plane,
        cos,
        sin,
        tone(substrate, "substrate", _SUBSTRATE_TINTS),
        tone(metal, "metal", _METAL_TINTS),
        tone(via, "via", _VIA_TINTS),
        rim=uniform(own, "rim", 0.02, 0.16),
        blur=uniform(own, "blur", 0.9, 1.4) * uniform(content, "focus", 0.9, 1.35),
        bias=uniform(shots.lot, "bias", -0.12, 0.12) + uniform(content, "bias", -0.1, 0.1),
        roughness=uniform(own, "roughness", 0.1, 0.3),
        mottle=uniform(own, "mottle", 0.03, 0.12),
        gain=uniform(shots.lot, "gain", 0.94, 1.06) * uniform(shots.capture, "gain", 0.97, 1.03),
        light_x=uniform(own, "light x", -0.16, 0.16) + uniform(content, "light x", -0.05, 0.05),
        light_y=uniform(own, "light y", -0.16, 0.16) + uniform(content, "light y", -0.05, 0.05),
        noise=uniform(own, "noise", 0.010, 0.026),
    )


def _rotation(turn: F32, variant: I64) -> tuple[F32, F32]:
    """Cosine and sine of the pattern's angle, which is a quarter more in region b."""
    square = turn * turn
    cos, sin = (1 - square) / (1 + square), 2 * turn / (1 + square)
    quarter = (variant == 1)[:, None, None]
    return np.where(quarter, -sin, cos), np.where(quarter, cos, sin)


def _tinted(grey: F32, own: U64, name: str, tints: Tints) -> F32:
    """A surface's colour: (3, N, 1, 1)."""
    index = np.floor(uniform(own, name + " tint", 0, len(tints)))[:, 0, 0].astype(np.int64)
    tint = np.asarray(tints, np.float32)[np.minimum(index, len(tints) - 1)]
    return np.minimum(grey[None] * tint.T[:, :, None, None], np.float32(1.0))
