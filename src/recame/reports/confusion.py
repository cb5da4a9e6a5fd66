"""The confusion matrix as a picture, and an evaluation's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recame.contracts import Array
from recame.files import csv_text, write_together
from recame.label_space import LabelSpace
from recame.names import cell_of, cells_of
from recame.pages.drawing import figure_label, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recame.metrics.evaluation import Evaluation


#: Advice if a file cannot be written.
WRITABLE = "Free some space, or choose a folder that you may write to."
#: With more classes, the cells show only colours, no numbers.
MOST_NUMBERED = 30
#: With more classes, no confusion matrix is drawn, since nobody could read it.
MOST_DRAWN = 500
#: Largest length of a picture's longer side.
_MOST_PIXELS = 6000

_INK, _GREY, _LINE = "#1f2933", "#7b8794", "#e4e7eb"
_RIGHT = ("#f3f8fc", "#8fbfe0", "#3182bd", "#0b3c6f")
_WRONG = ("#ffffff", "#fdd9b5", "#f28e4c", "#b3370c")


def confusion_figure(
    evaluation: Evaluation, label_space: LabelSpace, normalised: bool = True
) -> Figure:
    """Draw the confusion matrix beside each class's recall with its interval.

    Rows run from the most to the least frequent training class. The colour of a cell always shows
    the share of its row, so that a class of ten images is as visible as one of ten thousand: blue
    for right, orange for wrong. If there is a normal class, the column of escapes is framed.

    Args:
        evaluation: what to draw.
        label_space: gives the order.
        normalised: whether cells show percent of the row; else they show numbers of images.

    Returns:
        A new figure; matplotlib's global state is not changed.
    """
    from matplotlib.figure import Figure

    order = np.argsort(-np.array(label_space.counts), kind="stable")
    counts = evaluation.confusion[np.ix_(order, order)]
    support = counts.sum(1, keepdims=True)
    share = np.divide(counts, support, out=np.full(counts.shape, np.nan), where=support > 0)
    size = len(order)

    cell = float(np.clip(11.0 / size, 0.14, 0.72))
    names = [figure_label(label_space.names[index], 24) for index in order]
    margin = 0.085 * max(map(len, names)) + 1.05
    side = cell * size
    width, height = max(margin + side + 3.0, margin + 5.2), side + margin * 0.5 + 1.35
    dpi = min(160.0, _MOST_PIXELS / max(width, height))
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    left, bottom = margin / width, (margin * 0.5 + 0.4) / height
    axes = figure.add_axes((left, bottom, side / width, side / height))
    _draw_cells(axes, share)
    if size <= MOST_NUMBERED:
        _write_cells(axes, counts, share, cell, normalised=normalised)
    _label(axes, names, [label_space.counts[index] for index in order], cell)
    if label_space.normal_index is not None:
        _frame_escapes(axes, int(np.flatnonzero(order == label_space.normal_index)[0]), size)

    beside = (left + side / width + 0.3 / width, bottom, 1.85 / width, side / height)
    _draw_recalls(figure.add_axes(beside), evaluation.per_class.iloc[order], cell)
    what = "share of each class's images, %" if normalised else "number of images"
    what += f"; {evaluation.num_images:,} images, rows by training images (in brackets)"
    top = 1 - 0.2 / height
    figure.text(left, top, "Confusion", fontsize=13, fontweight="bold", color=_INK, va="top")
    figure.text(left, top - 0.27 / height, what, fontsize=8, color=_GREY, va="top")
    return figure


def save_evaluation(evaluation: Evaluation, folder: Path, label_space: LabelSpace) -> None:
    """Write `confusion.csv`, `confusion.png` (of at most `MOST_DRAWN` classes) and `per_class.csv`.

    Args:
        evaluation: what to write.
        folder: made when missing.
        label_space: gives the order of the picture.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    names = pd.Index(map(cell_of, evaluation.names), name="is \\ called")
    confusion = pd.DataFrame(evaluation.confusion, index=names, columns=list(names))
    with write_together(folder, advice=WRITABLE) as partial:
        tables = {"confusion": csv_text(confusion)}
        tables["per_class"] = csv_text(cells_of(evaluation.per_class), index=False)
        for name, text in tables.items():
            (partial / f"{name}.csv").write_bytes(text.encode())
        if len(evaluation.names) <= MOST_DRAWN:
            save_figure(confusion_figure(evaluation, label_space), partial / "confusion.png")


def _draw_cells(axes: Axes, share: Array) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    right = LinearSegmentedColormap.from_list("right", _RIGHT)
    wrong = LinearSegmentedColormap.from_list("wrong", _WRONG)
    # The square root makes the few errors of a good classifier visible.
    colours = wrong(np.sqrt(np.nan_to_num(share)))
    diagonal = np.arange(len(share))
    colours[diagonal, diagonal] = right(np.nan_to_num(share[diagonal, diagonal]))
    colours[np.isnan(share[:, 0])] = (0.95, 0.95, 0.95, 1.0)
    axes.imshow(colours, interpolation="nearest", aspect="auto")
    edges = np.arange(len(share) + 1) - 0.5
    span = (-0.5, len(share) - 0.5)
    axes.hlines(edges, *span, color=_LINE, linewidth=0.6, clip_on=False)
    axes.vlines(edges, *span, color=_LINE, linewidth=0.6, clip_on=False)


def _write_cells(axes: Axes, counts: Array, share: Array, cell: float, *, normalised: bool) -> None:
    size = float(np.clip(cell * 17, 4.5, 10.0))
    rows, columns = np.nonzero(counts)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        value = float(share[row, column])
        dark = value > 0.55 if row == column else value > 0.42
        text = _percent(value) if normalised else f"{counts[row, column]:,}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=size if len(text) < 4 else size * 0.82,
            fontweight="bold" if row == column else "normal",
            color="white" if dark else _INK,
        )
    for row in np.flatnonzero(np.isnan(share[:, 0])).tolist():
        axes.text(
            len(counts) / 2 - 0.5,
            row,
            "no image in this split",
            ha="center",
            va="center",
            fontsize=min(size, 7.5),
            color=_GREY,
        )


def _percent(share: float) -> str:
    # 100 is shown only if it is every image.
    return "<1" if 100 * share < 1 else str(min(round(100 * share), 99 if share < 1 else 100))


def _label(axes: Axes, names: list[str], train: list[int], cell: float) -> None:
    size = float(np.clip(cell * 17, 4.5, 9.0))
    ticks = np.arange(len(names))
    axes.set_yticks(ticks, [f"{n}  ({c:,})" for n, c in zip(names, train, strict=True)])
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(labelsize=size, length=0, labelcolor=_INK, pad=3)
    axes.set_xlabel("called", fontsize=10, color=_GREY)
    axes.set_ylabel("true class", fontsize=10, color=_GREY)
    axes.spines[:].set_visible(False)


def _frame_escapes(axes: Axes, column: int, size: int) -> None:
    """Frame the cells of the normal column that are defects: the escapes."""
    from matplotlib.patches import Rectangle

    style: dict[str, Any] = {"fill": False, "edgecolor": "#c81e1e", "linewidth": 1.4}
    for start, stop in ((0, column), (column + 1, size)):
        if stop > start:
            corner = (column - 0.5, start - 0.5)
            axes.add_patch(Rectangle(corner, 1, stop - start, clip_on=False, zorder=3, **style))
    axes.text(column, -0.62, "escapes", ha="center", va="bottom", fontsize=6.5, color="#c81e1e")


def _draw_recalls(axes: Axes, per_class: pd.DataFrame, cell: float) -> None:
    """Draw one dot per class with its interval, on the class's row of the matrix."""
    rows = np.arange(len(per_class))
    recall, low, high = per_class[["recall", "recall_low", "recall_high"]].to_numpy(np.float64).T
    few = per_class["note"] != ""
    colours = np.where(few, "#f28e4c", "#3182bd")
    axes.hlines(rows, 0, 1, color=_LINE, linewidth=0.6)
    axes.hlines(rows, low, high, color=colours, linewidth=min(2.2, cell * 5), alpha=0.75)
    dot = float(np.clip(cell * 60, 6, 30))
    axes.scatter(recall, rows, s=dot, c=colours, zorder=3, edgecolors="white", linewidths=0.5)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(len(per_class) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(labelsize=7, length=0, labelcolor=_GREY)
    axes.grid(axis="x", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_title("recall with interval", fontsize=8, color=_GREY, loc="left", pad=4)
    if len(rows) <= MOST_NUMBERED:
        images, size = per_class["images"].to_numpy(), float(np.clip(cell * 15, 4.5, 7.5))
        for row in np.flatnonzero(~np.isnan(recall)).tolist():
            text = f"{(recall[row] * images[row]).round():,.0f} of {images[row]:,}"
            axes.text(1.09, row, text, va="center", fontsize=size, color=_GREY)
    if few.any():
        axes.set_xlabel("orange: too few images to tell", fontsize=6.5, color="#b3370c")
