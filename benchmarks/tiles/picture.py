"""Write docs/images/tiles.png and sizes.png: what a run sees of a large image.

    python benchmarks/tiles/picture.py FOLDER [--image NAME]

`FOLDER` holds `ic_defect_synth_large`, as `benchmarks/tiles/run.py` generates it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from recame.contracts import Pixels, PreprocessSpec
from recame.data.resize import brought_to, scaled
from recame.data.tiles import places, unusualness
from recame.pages.render import ORANGE

OUT = Path(__file__).parents[2] / "docs" / "images"
TILES, SIDE = 4, 64
SIZES = (64, 128, 224)
DPI = 100


def spec() -> PreprocessSpec:
    """Five pieces of 64 x 64 grey pixels."""
    height = SIDE * (TILES + 1)
    return PreprocessSpec(height, SIDE, 1, 8, 255.0, (0.5,), (0.5,), tiles=TILES)


def show(axes: Any, pixels: Pixels, title: str) -> None:
    """Grey pixels, enlarged without smoothing."""
    axes.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def new_figure(height: float) -> Figure:
    """Empty, white on dark pages too."""
    figure = Figure(figsize=(9.4, height), facecolor="white")
    figure.set_layout_engine("constrained", h_pad=0.08)
    return figure


def frame(top: float, left: float, side: float) -> Rectangle:
    """A place; pixels are drawn around their centres."""
    place = (left - 0.5, top - 0.5)
    return Rectangle(place, side, side, fill=False, edgecolor=ORANGE, linewidth=2.2)


def tiles_figure(pixels: Pixels) -> Figure:
    """The image with its places, the map of unusualness, and the pieces below."""
    height, width = pixels.shape[:2]
    found = places(pixels, spec()).tolist()
    figure = new_figure(7.1)
    above, below = figure.subfigures(2, 1, height_ratios=[2.35, 1])
    whole, heat = above.subplots(1, 2)
    show(whole, pixels, f"the image, {height} x {width} pixels")
    for number, (top, left) in enumerate(found, 1):
        whole.add_patch(frame(top, left, SIDE))
        right = left + SIDE + 60 < width
        whole.text(
            left + SIDE + 10 if right else left - 10,
            top + SIDE / 2,
            str(number),
            color="white",
            fontsize=11,
            weight="bold",
            va="center",
            ha="left" if right else "right",
            bbox={"facecolor": ORANGE, "edgecolor": "none", "boxstyle": "round,pad=0.15"},
        )
    heat.imshow(unusualness(pixels, 255.0), cmap="magma", interpolation="nearest")
    heat.set_title("how unlike the rest of itself each place is", fontsize=10)
    heat.set_axis_off()
    pieces = np.split(brought_to(pixels, spec()), TILES + 1)
    titles = ["the whole image", *(f"place {number}" for number in range(1, TILES + 1))]
    for axes, piece, title in zip(below.subplots(1, TILES + 1), pieces, titles, strict=True):
        show(axes, piece, title)
    below.suptitle(f"what the network sees: {TILES + 1} pieces of {SIDE} x {SIDE}", fontsize=10)
    return figure


def sizes_figure(pixels: Pixels) -> Figure:
    """The whole image at three sizes, its most unusual place framed."""
    figure = new_figure(3.5)
    top, left = places(pixels, spec())[0].tolist()
    for axes, side in zip(figure.subplots(1, len(SIZES)), SIZES, strict=True):
        show(axes, scaled(pixels, side, side), f"{side} x {side}")
        ratio = side / pixels.shape[0]
        axes.add_patch(frame(top * ratio, left * ratio, SIDE * ratio))
    return figure


def save(figure: Figure, path: Path) -> None:
    """A PNG of 256 colours."""
    figure.savefig(path, dpi=DPI)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image", default="images/P01/000128.png")
    words = parser.parse_args()
    pixels = cv2.imread(str(words.folder / words.image), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise SystemExit(f"{words.folder / words.image} is no image: is the set generated there?")
    save(tiles_figure(pixels[..., None]), OUT / "tiles.png")
    save(sizes_figure(pixels[..., None]), OUT / "sizes.png")


if __name__ == "__main__":
    main()
