"""The report's plots: calibration, training curves, recall over counts, embedding map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recame.contracts import Array
from recame.metrics.statistics import wilson_interval
from recame.pages.drawing import figure_label
from recame.pages.render import BLUE, GREY, GROUP_COLOURS, INK, LINE, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Colours that most people can distinguish; further groups share a grey.
PALETTE = (
    "#2b6cb0",
    "#dd7b2f",
    "#2f855a",
    "#c0342b",
    "#7c5cbf",
    "#8a6d3b",
    "#d8649b",
    "#3aa6b9",
    "#a3a32b",
    "#5a6b7b",
)
_OTHER = "#cfd5db"
#: Style of an axis label.
_AXIS: dict[str, Any] = {"fontsize": 9.5, "color": GREY}


def reliability_figure(bins: pd.DataFrame, ece: float) -> Figure:
    """Plot accuracy over confidence in bins, with Wilson intervals, and the images in each bin.

    Args:
        bins: of `reliability_bins`.
        ece: the expected calibration error.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 5.0), layout="constrained", facecolor="white")
    axes, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    for each in (axes, below):
        _plain(each)
    filled = bins.loc[bins["images"] > 0, ["confidence", "accuracy", "images"]]
    confidence, accuracy, images = filled.to_numpy(np.float64).T
    low, high = wilson_interval(accuracy * images, images)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    ends = np.minimum(confidence, accuracy), np.maximum(confidence, accuracy)
    # Bins with few images are drawn pale.
    weight = np.clip(images / 20, 0.25, 1.0)
    axes.vlines(confidence, *ends, color=ORANGE, linewidth=7, alpha=0.3 * weight)
    axes.vlines(confidence, low, high, color=BLUE, linewidth=1.3, alpha=0.7 * weight)
    axes.scatter(confidence, accuracy, s=26, color=BLUE, alpha=weight, linewidths=0, zorder=3)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("accuracy", **_AXIS)
    style = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
    style |= {"fontsize": 8.5, "color": GREY}
    axes.text(0.03, 0.07, "underconfident", **style)
    axes.text(0.07, 0.02, "overconfident", va="top", **style)
    _title(axes, f"Confidence against accuracy, ECE {ece:.3f}")
    width = bins["high"] - bins["low"]
    below.bar(bins["low"], bins["images"], width, align="edge", color=BLUE, alpha=0.55)
    below.set_xlim(0, 1)
    below.set_ylabel("images", **_AXIS)
    below.set_xlabel("confidence", **_AXIS)
    below.locator_params(axis="y", nbins=3)
    return figure


def loss_figure(history: pd.DataFrame) -> Figure | None:
    """Plot the loss and its named parts by epoch; None if the history has no loss.

    Args:
        history: one row per epoch, with `epoch`, `loss` and `loss/<part>`.
    """
    if "loss" not in history or history["loss"].isna().all():
        return None
    figure, axes = _new_axes(5.4, 3.7)
    epochs, loss, marker = history["epoch"], history["loss"], "o" if len(history) < 25 else ""
    parts = [name for name in map(str, history) if name.startswith("loss/")]
    largest = history[parts].abs().max().sort_values(ascending=False)
    # Parts below a hundredth of the loss could not be seen above the axis.
    shown = list(largest.index[largest > 0.01 * loss.max()])
    shown = shown[: len(PALETTE) - 1] if len(parts) > 1 else []
    axes.plot(epochs, loss, color=INK, linewidth=2, marker=marker, markersize=4)
    ends = [(float(loss.iloc[-1]), "all" if shown else "loss", INK)]
    for name, colour in zip(shown, PALETTE, strict=False):
        values = history[name]
        axes.plot(epochs, values, color=colour, linewidth=1.4, marker=marker, markersize=3)
        ends.append((float(values.iloc[-1]), name.removeprefix("loss/").replace("_", " "), colour))
    finite = loss[np.isfinite(loss)]
    axes.set_ylim(0, 1.04 * float(finite.max()) if len(finite) else 1)
    _write_at_ends(axes, float(epochs.iloc[-1]), ends)
    _epoch_axis(axes, epochs)
    left = len(parts) - len(shown) if shown else 0
    _title(axes, "Training loss" + (f" ({left} parts near 0 not drawn)" if left else ""))
    return figure


def validation_figure(history: pd.DataFrame, phases: dict[str, Any]) -> Figure | None:
    """Plot balanced accuracy on `val` by epoch, and that of frozen-feature probing.

    Args:
        history: one row per epoch, with `epoch` and `val/balanced_accuracy`.
        phases: `val_balanced_accuracy` by phase; may be empty.
    """
    name = "val/balanced_accuracy"
    if name not in history or history[name].isna().all():
        return None
    figure, axes = _new_axes(5.4, 3.7)
    rows = history[history[name].notna()]
    marker = "o" if len(rows) < 25 else ""
    axes.plot(rows["epoch"], rows[name], color=BLUE, linewidth=2, marker=marker, markersize=4)
    reached = {k: float(v) for k, v in (phases.get("val_balanced_accuracy") or {}).items()}
    values = [*rows[name], *reached.values()]
    axes.set_ylim(max(0.0, min(values) - 0.08), min(1.0, max(values) + 0.08))
    ends = [(float(rows[name].iloc[-1]), "fine-tuning", BLUE)]
    if "probe" in reached:
        span = rows["epoch"].iloc[[0, -1]]
        axes.plot(span, [reached["probe"]] * 2, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 3)))
        ends.append((reached["probe"], "probe", ORANGE))
    _write_at_ends(axes, float(rows["epoch"].iloc[-1]), ends)
    _epoch_axis(axes, rows["epoch"])
    _title(axes, "Balanced accuracy on val while training")
    return figure


def recall_figure(per_class: pd.DataFrame) -> Figure:
    """Plot the recall of many classes over their training images, one dot per class.

    Args:
        per_class: table of an `Evaluation`.
    """
    figure, axes = _new_axes(9.2, 4.4)
    generator = np.random.default_rng(0)
    rows = per_class[per_class["images"] > 0]
    # A little noise separates classes with equal recalls and counts.
    recall = rows["recall"] + generator.normal(0, 0.006, len(rows))
    spread = np.exp(generator.normal(0, 0.012, len(rows)))
    train = rows["train_images"].clip(0.5) * spread
    size = float(np.clip(4000 / len(rows), 5, 30))
    for group, colour in GROUP_COLOURS.items():
        member = rows["group"] == group
        if member.any():
            label = f"{group} ({member.sum():,})"
            x, y = train[member], recall[member]
            axes.scatter(x, y, s=size, color=colour, alpha=0.6, linewidths=0, label=label)
    axes.set_xscale("log")
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel("training images", **_AXIS)
    axes.set_ylabel("recall", **_AXIS)
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 4}
    axes.legend(frameon=False, fontsize=9, markerscale=1.4, **place)
    _title(axes, f"Recall of {len(rows):,} classes")
    return figure


def embedding_figure(
    points: Array, labels: Sequence[str], title: str, order: Sequence[str], most: int = 10
) -> Figure:
    """Plot the embedding map, coloured by a column.

    Args:
        points: (n, 2).
        labels: n group names; an empty one is drawn in grey.
        title: what the colours mean.
        order: the groups that get a colour, most important first; others share a grey.
        most: largest number of colours.
    """
    names = np.asarray(labels, dtype=object)
    coloured = [name for name in order if (names == name).any()][:most]
    rest = ~np.isin(names, coloured)
    others = len(set(names[rest].tolist()) - {""})
    layers = [(rest, _OTHER, f"{others} more" if others else "unknown", 0.8, 1.0)]
    for name, colour in zip(coloured, PALETTE, strict=False):
        layers.append((names == name, colour, figure_label(name, 18), 1.0, 0.75))
    return _map(points, layers, title)


def mistakes_figure(points: Array, right: Array, escapes: Array) -> Figure:
    """Plot the embedding map with the mistakes on top.

    Args:
        points: (n, 2).
        right: (n,) 1 correct, 0 wrong, -1 without a label.
        escapes: (n,) whether the image is a defect that was called normal.
    """
    layers = (
        (right == -1, "#e8ebee", "no label", 0.8),
        (right == 1, _OTHER, "right", 0.8),
        ((right == 0) & ~escapes, ORANGE, "wrong", 1.6),
        (escapes, RED, "escape", 1.9),
    )
    counted = [(m, colour, f"{name} ({m.sum():,})", size, 0.85) for m, colour, name, size in layers]
    return _map(points, counted, "Correct and wrong predictions")


def heat_colour(value: float, colour: str = ORANGE) -> str:
    """Return a cell's background between white (0) and a colour (1).

    Examples:
        >>> heat_colour(0.0), heat_colour(1.0, "#dd7b2f")
        ('#ffffff', '#dd7b2f')
    """
    share = min(max(value, 0.0), 1.0)
    ends = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + share * (end - 255)):02x}" for end in ends)


def _new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(labelsize=9, labelcolor=GREY, color=LINE)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=11, fontweight="bold", color=INK, loc="left", pad=8)


def _epoch_axis(axes: Axes, epochs: pd.Series[Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = float(epochs.iloc[0]), float(epochs.iloc[-1])
    axes.set_xlim(first - 0.15, last + max(0.34 * (last - first), 0.5))
    ticks = MaxNLocator(6, integer=True).tick_values(first, last)
    axes.set_xticks([tick for tick in ticks if first <= tick <= last])
    axes.set_xlabel("epoch", **_AXIS)


def _write_at_ends(axes: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names at the lines' right ends, moved apart if they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.065 * (high - low)
    before = -np.inf
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "va": "center"}
    for value, text, colour in sorted(ends):
        before = max(value, before + gap)
        axes.annotate(text, (x, before), xytext=(6, 0), color=colour, **style)


def _map(
    points: Array, layers: Iterable[tuple[Array, str, str, float, float]], title: str
) -> Figure:
    """Plot points in layers; each layer has a colour, a label, a relative size and an opacity."""
    figure, axes = _new_axes(4.2, 4.4)
    size = float(np.clip(6000 / max(len(points), 1), 4, 30))
    for mask, colour, label, factor, alpha in layers:
        if mask.any():
            x, y = points[mask].T
            axes.scatter(
                x, y, s=size * factor, color=colour, alpha=alpha, linewidths=0, label=label
            )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.margins(0.03)
    _title(axes, title)
    axes.legend(
        frameon=False,
        fontsize=8.5,
        ncols=3,
        loc="upper left",
        bbox_to_anchor=(-0.02, 0.0),
        handletextpad=0.2,
        columnspacing=1.2,
        markerscale=1.5,
    )
    return figure
