"""Drawing for pages: tiled images, maps over images, names in a font that has their characters."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np

from recame.contracts import Array
from recame.names import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: White columns between the tiles of an image.
GAP = 4
#: Explains a tiled image.
PIECES_NOTE = (
    "Each row shows the whole image, then tiles of its most unusual places, the most unusual first."
)
#: Fonts that are tried in this order for characters that Matplotlib's own font lacks, for example
#: Chinese, Japanese and Korean.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "WenQuanYi Zen Hei",
    "SimHei",
    "Arial Unicode MS",
)

logger = logging.getLogger(__name__)


def figure_label(name: object, most: int) -> str:
    """Prepare a name for Matplotlib.

    Args:
        name: any text. Dollar signs start no formula, a leading underscore hides no legend entry,
            and invisible characters are shown as escapes.
        most: longer names are cut to this many characters.
    """
    text = one_line(str(name))
    text = text if len(text) <= most else text[: most - 1] + "…"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save_figure(figure: Figure, target: Path | BinaryIO, **how: Any) -> None:
    """Save a figure with all characters for which this machine has a font.

    Args:
        figure: finished.
        target: file or stream.
        how: arguments of `Figure.savefig`.
    """
    _use_fonts_that_have(figure)
    with warnings.catch_warnings():  # one warning instead of one for each character
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(target, **how)


def _use_fonts_that_have(figure: Figure) -> None:
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager, get_font
    from matplotlib.text import Text

    own = get_font(fontManager.findfont("DejaVu Sans")).get_charmap()
    texts = [found for found in figure.findobj(Text) if isinstance(found, Text)]
    foreign = [t for t in texts if any(ord(c) not in own and c.isprintable() for c in t.get_text())]
    if not foreign:
        return
    present = {font.name for font in fontManager.ttflist}
    families = [name for name in FALLBACK_FONTS if name in present]
    if not families:
        _tell_missing(foreign[0].get_text())
    for text in foreign:
        text.set_fontfamily([*rcParams["font.family"], *families])


@cache
def _tell_missing(example: str) -> None:
    logger.warning(
        "No font on this machine has the characters of %r: figures show boxes for them. Install a "
        "font that has them, for example Noto Sans CJK.",
        example,
    )


def side_by_side(pixels: Array, pieces: int, white: float) -> Array:
    """Put the tiles of an image side by side instead of below each other.

    Args:
        pixels: (..., T * h, w, C).
        pieces: T tiles; 1 changes nothing.
        white: the value of the gaps.

    Returns:
        (..., h, T * w + (T - 1) * GAP, C), of the same dtype.
    """
    if pieces == 1:
        return pixels
    *lead, height, width, channels = pixels.shape
    rows = height // pieces
    apart = pixels.reshape(*lead, pieces, rows, width, channels)
    row = np.full((*lead, rows, pieces, width + GAP, channels), white, pixels.dtype)
    row[..., :width, :] = np.moveaxis(apart, -4, -3)
    return row.reshape(*lead, rows, pieces * (width + GAP), channels)[..., :-GAP, :]


def overlay(pixels: Array, heat: Array, colour: str, side: int = 160, pieces: int = 1) -> Array:
    """Draw a map in one colour over a pale image.

    Args:
        pixels: (H, W, C) in [0, 1], 1 or 3 channels.
        heat: (H, W) in [0, 1]; 0 shows only the image.
        colour: for example `#dd7b2f`.
        side: the result has about side x side pixels.
        pieces: number of tiles in the image, one below the other; the result shows them in a row.

    Returns:
        (h, w, 3) uint8.
    """
    if pieces > 1:
        parts = zip(np.split(pixels, pieces), np.split(heat, pieces), strict=True)
        each = round(side / pieces**0.5)
        drawn = [overlay(part, over, colour, each) for part, over in parts]
        return side_by_side(np.concatenate(drawn), pieces, white=255)
    scale = side / (pixels.shape[0] * pixels.shape[1]) ** 0.5
    height, width = (max(1, round(edge * scale)) for edge in pixels.shape[:2])
    base, alpha = (
        cv2.resize(np.asarray(part, np.float32), (width, height), interpolation=mode)
        for part, mode in ((pixels.mean(2), cv2.INTER_NEAREST), (heat, cv2.INTER_LINEAR))
    )
    tint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    pale = (0.25 + 0.6 * base)[..., None]
    strength = np.clip(alpha, 0, 1)[..., None] * 0.85
    mixed: Array = np.clip((pale * (1 - strength) + tint * strength) * 255 + 0.5, 0, 255)
    return mixed.astype(np.uint8)
