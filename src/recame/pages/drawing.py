"""What pages draw: images in pieces, maps over images, names in a font that has them."""

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

#: Columns between the pieces of an image, white as the page.
GAP = 4
#: What an image in pieces shows, in words.
PIECES_NOTE = (
    "Each row of pieces: the whole image, then its most unusual places, first the most unusual."
)
#: Tried in this order for what Matplotlib's own font lacks, as Chinese, Japanese and Korean.
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
    """A name as Matplotlib shall show it.

    Args:
        name: any text; dollar signs are no formula, a leading underscore hides no legend entry,
            and what cannot be seen is shown as an escape.
        most: characters, beyond which it is cut.
    """
    text = one_line(str(name))
    text = text if len(text) <= most else text[: most - 1] + "…"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save_figure(figure: Figure, target: Path | BinaryIO, **how: Any) -> None:
    """Save a figure with every character that a font of this machine has.

    Args:
        figure: finished.
        target: file or stream.
        how: as `Figure.savefig` takes it.
    """
    _use_fonts_that_have(figure)
    with warnings.catch_warnings():  # told once, and not for each character
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
        "No font here has the characters of %r: figures show boxes for them. Install a font that "
        "does (Noto Sans CJK, say).",
        example,
    )


def side_by_side(pixels: Array, pieces: int, white: float) -> Array:
    """An image whose pieces lie below each other with them in a row, so that a page has room.

    Args:
        pixels: (..., T * h, w, C).
        pieces: T; 1 changes nothing.
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
    """An image, paled, with a map laid over it in one colour.

    Args:
        pixels: (H, W, C) in [0, 1], 1 or 3 channels.
        heat: (H, W) in [0, 1]; 0 shows the image alone.
        colour: as `#dd7b2f`.
        side: in pixels, of the square that the result has as many pixels as.
        pieces: that the image consists of, one below the other; the result shows them in a row.

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
