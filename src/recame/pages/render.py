"""Self-contained HTML pages: one style, pictures inside the file, nothing from the network.

A page is a template of its package that extends `page.html.j2` here; figures and images are
included as data URIs.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from recame.contracts import Array
from recame.names import printable, quoted
from recame.pages.drawing import save_figure

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure


#: The colours of pages and figures.
INK, GREY, LINE = "#1f2933", "#66727f", "#e4e7eb"
BLUE, ORANGE, RED, GREEN = "#2b6cb0", "#dd7b2f", "#c0342b", "#2f855a"
#: Training-count groups.
GROUP_COLOURS = {
    "head": "#1d4e89",
    "many": "#2b6cb0",
    "medium": "#2a9d8f",
    "few": "#dd7b2f",
}


@dataclass(frozen=True)
class Picture:
    """An image inside a page.

    Attributes:
        uri: the whole image as a data URI.
        alt: what it shows, for people who cannot see it.
        caption: printed below; may be empty.
        width: natural width in CSS pixels; 0: it fills its column.
        height: natural height, if it is known.
    """

    uri: str
    alt: str
    caption: str = ""
    width: int = 0
    height: int = 0

    @property
    def layout(self) -> str:
        """CSS class by shape: `wide`, `tall`, or empty if it is nearly square."""
        if self.width > 1.5 * self.height > 0:
            return "wide"
        return "tall" if self.height > 1.5 * self.width > 0 else ""


def figure_picture(
    figure: Figure, alt: str, caption: str = "", *, vector: bool = True, dpi: int = 150
) -> Picture:
    """Turn a matplotlib figure into a picture.

    Args:
        figure: not changed.
        alt: what it shows.
        caption: printed below.
        vector: true: SVG, sharp at any size; false: PNG, for thousands of points.
        dpi: of the PNG.
    """
    import matplotlib as mpl

    stream = io.BytesIO()
    # A fixed salt and no date: the same figure gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "recame", "svg.fonttype": "path"}):
        how = {"format": "svg", "metadata": {"Date": None}} if vector else {"format": "png"}
        save_figure(figure, stream, dpi=dpi, **how)
    if vector:  # its comments hold names, and XML allows no control characters
        stream = io.BytesIO(printable(stream.getvalue().decode()).encode())
    width = round(figure.get_figwidth() * 96)
    return Picture(_data_uri(stream, "svg+xml" if vector else "png"), alt, caption, width)


def image_picture(pixels: Array, alt: str, caption: str = "", *, scale: float = 255.0) -> Picture:
    """Turn an inspection image into a lossless picture.

    Args:
        pixels: (H, W), (H, W, 1) or (H, W, 3), stored pixel values.
        alt: what it shows.
        caption: printed below.
        scale: the pixel value that is shown as white; 65535 for 16 bit.
    """
    from PIL import Image

    shown = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    if shown.dtype != np.uint8:
        shown = np.clip(shown * (255.0 / scale) + 0.5, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(shown).save(stream, format="PNG", optimize=True)
    return Picture(_data_uri(stream, "png"), alt, caption, *shown.shape[1::-1])


def photo_picture(pixels: Array, alt: str, caption: str = "", quality: int = 82) -> Picture:
    """Turn colours without sharp edges, for example an overlay, into a small JPEG picture.

    Args:
        pixels: (H, W, 3) uint8.
        alt: what it shows.
        caption: printed below.
        quality: of the JPEG, 1 to 95.
    """
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=quality, optimize=True)
    return Picture(_data_uri(stream, "jpeg"), alt, caption, *pixels.shape[1::-1])


def render_page(room: str, template: str, **content: Any) -> str:
    """Fill a template.

    Args:
        room: the package whose `templates/` hold it, for example `recame.reports`.
        template: its name, for example `report.html.j2`.
        content: values for the names in the template.

    Returns:
        A whole HTML document. All text is escaped, also characters that reverse the writing
        direction.
    """
    return printable(_environment(room).get_template(template).render(**content))


@cache
def _environment(room: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(room), PackageLoader("recame.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share_text, "count": count_text, "interval": interval_text}
    environment.filters["code"] = code_text
    environment.globals["group_colours"] = GROUP_COLOURS
    return environment


def code_text(text: str) -> Markup:
    """Format what stands between backticks as code.

    Examples:
        >>> code_text("chosen on `val` <alone>")
        Markup('chosen on <code>val</code> &lt;alone&gt;')
    """
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # one of the backticks stands alone
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part
        for place, part in enumerate(parts)
    )


def share_text(value: float | None, digits: int = 3) -> str:
    """Format a number in [0, 1], or a dash if there is none.

    Examples:
        >>> share_text(0.9314), share_text(None)
        ('0.931', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def count_text(value: float | None) -> str:
    """Format a whole number with separators for thousands.

    Examples:
        >>> count_text(12345)
        '12,345'
    """
    return "-" if value is None or math.isnan(value) else f"{value:,.0f}"


def interval_text(low: float | None, high: float | None, digits: int = 2) -> str:
    """Format an interval; empty if there is none.

    Examples:
        >>> interval_text(0.551, 0.953)
        '0.55-0.95'
    """
    if low is None or high is None or math.isnan(low):
        return ""
    return f"{low:.{digits}f}-{high:.{digits}f}"


def listed_text(names: Sequence[str], most: int = 6) -> str:
    """List names with commas, in quotes if needed; names beyond `most` are only counted.

    Examples:
        >>> listed_text(["open", "short", "spur"], 2)
        'open, short and 1 more'
    """
    return joined_text([quoted(name) for name in names], most)


def joined_text(texts: Sequence[str], most: int = 6) -> str:
    """Like `listed_text`, for texts that are already formatted, such as names with figures."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Format a table as Markdown.

    Args:
        heads: of the columns.
        rows: with one cell for each column; their text is escaped.
        left: number of first columns that are aligned left; the others are aligned right.
    """
    rule = ["---" if i < left else "---:" for i in range(len(heads))]
    lines = (heads, rule, *rows)
    return "\n".join("| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines)


def markdown_cell(value: object) -> str:
    """Escape text for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _data_uri(stream: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
