"""The figures of the classes' clusters, and what all checks' figures share: a calm plot."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recame.contracts import FloatArray
from recame.inspection.check import MOST_ROWS
from recame.pages.drawing import figure_label
from recame.pages.render import BLUE, GREY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (
    "#2b6cb0", "#dd7b2f", "#2f855a", "#c0342b", "#7b5ea7", "#8c6d31", "#d16ba5", "#2a9d8f",
    "#b5a300", "#5b8def", "#7f4f24", "#1b4965",
)  # fmt: skip
_OTHER = "#cbd2d9"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white figure, its sides in inches, and its only axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_facecolor("white")
    axes = figure.add_subplot()
    calm(axes)
    return figure, axes


def calm(axes: Axes) -> None:
    """No frame, no ticks, small labels."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.set_axisbelow(True)


def clusters_figure(classes: pd.DataFrame) -> Figure:
    """Each class as a bar of its clusters, largest first: wide pieces are dense clusters.

    Args:
        classes: what `class_structure` returned.
    """
    shown = classes[classes["images"] > 0].head(MOST_ROWS)
    figure, axes = canvas(7.4, 0.7 + 0.27 * max(len(shown), 1))
    for row, record in enumerate(shown.to_dict("records")):
        tone, end = ORANGE if record["kind"] == "few in many" else BLUE, 0.0
        bar = partial(axes.barh, row, height=0.72, linewidth=0)
        for size, alpha in zip(record["sizes"], cycle((0.95, 0.55)), strict=False):
            bar(size / record["images"], left=end, color=tone, alpha=alpha)
            end += size / record["images"]
        if end < 1 - 1e-6:
            bar(1 - end, left=end, color=_OTHER)
        text = (
            f"{record['effective']:.1f} clusters, {record['images_per_cluster']:,.1f} images each"
        )
        axes.text(1.015, row, text, va="center", fontsize=8, color=GREY)
    axes.set_xlim(0, 1.42)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xticks([0, 0.5, 1], ["0", "half", "all its images"])
    axes.tick_params(axis="x", labelcolor=GREY)
    axes.set_yticks(np.arange(len(shown)), [figure_label(name, 22) for name in shown["class"]])
    return figure


def mixing_figure(names: list[str], shares: FloatArray) -> Figure:
    """Which classes an image's nearest neighbours belong to: rows sum to 1.

    Args:
        names: C names.
        shares: (C, C).
    """
    labels = [figure_label(name, 22) for name in names[:MOST_ROWS]]
    size, shown = len(labels), shares[:MOST_ROWS, :MOST_ROWS]
    cell = float(np.clip(6.4 / size, 0.16, 0.5))
    figure, axes = canvas(cell * size + 2.6, cell * size + 1.6)
    axes.imshow(np.sqrt(shown), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    ticks = np.arange(size)
    axes.set_yticks(ticks, labels)
    axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xticks(ticks - 0.5, minor=True)
    axes.set_yticks(ticks - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(labelsize=float(np.clip(cell * 20, 5.5, 9)))
    if size <= 20:
        fontsize = float(np.clip(cell * 18, 5, 8))
        for (row, column), share in np.ndenumerate(shown):
            if share >= 0.005:
                tone, text = "white" if share > 0.4 else INK, f"{100 * share:.0f}"
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=fontsize, color=tone
                )
    return figure


def map_figure(points: FloatArray, values: pd.Series[Any]) -> Figure:
    """The embedding map, coloured by a column's most frequent values.

    Args:
        points: (M, 2).
        values: one a mapped point.
    """
    figure, axes = canvas(8.0, 6.3)
    named = values.fillna("(none)").astype(str).reset_index(drop=True)
    top = named.value_counts().index
    size = float(np.clip(9000 / max(len(points), 1), 4, 40))
    if len(rare := top[len(_COLOURS) :]):
        other, label = points[named.isin(rare)], f"{len(rare)} others"
        axes.scatter(other[:, 0], other[:, 1], s=size, c=_OTHER, label=label, linewidths=0)
    for value, colour in zip(top, _COLOURS, strict=False):
        own, label = points[named == value], figure_label(value, 22)
        # Rare values are drawn later and larger, or nobody would find them.
        grown = size * (2.2 if len(own) < 0.03 * len(points) else 1.0)
        axes.scatter(own[:, 0], own[:, 1], s=grown, c=colour, label=label, linewidths=0, alpha=0.8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.02)
    legend = figure.legend(
        loc="outside lower center", ncols=5, fontsize=8.5, frameon=False, markerscale=2,
        handletextpad=0.2, columnspacing=1.2, labelcolor=INK,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
            getattr(handle, "set_sizes", lambda _: None)([36])
    return figure
