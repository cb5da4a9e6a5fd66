"""Pictures of what means hide: recall by count, cluster and product, trade-offs, class shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from recame.bench.tables.behaviour import SHIFTS, by_count, shifted
from recame.bench.tables.bench_figures import plain_axes
from recame.bench.tables.board import Board
from recame.bench.tables.by_cluster import BINS
from recame.bench.tables.contest import Contest
from recame.pages.drawing import figure_label
from recame.pages.render import BLUE, GREEN, GREY, INK, LINE, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALL = 9.5
_MOST_LINES = 14
_DASHES = ("-", "--", ":", "-.")
_COLOURS = (BLUE, GREEN, RED, GREY, INK)


def behaviour_figure(board: Board, contest: Contest) -> Figure | None:
    """Draw recall by training count, accuracy by class shares, and the trade-off curves.

    Args:
        board: of one data set and split; its first methods are drawn.
        contest: the results that the board is a part of.

    Returns:
        None if the runs left nothing to draw.
    """
    from matplotlib.figure import Figure

    found = contest.behaviour
    recalls, frontier = (_own(table, board) for table in (found.recalls, found.frontier))
    if recalls.empty:
        return None
    names = [name for name in board.methods if name in set(recalls["method"])][:_MOST_LINES]
    figure = Figure(figsize=(11.6, 4.3 + 0.17 * len(names)), layout="constrained")
    figure.patch.set_facecolor("white")
    figure.get_layout_engine().set(w_pad=0.14)  # type: ignore[union-attr,call-arg]
    grid = figure.subplots(1, 3 if len(frontier) else 2, squeeze=False)[0]
    styles = line_styles(names, contest)
    _recall_panel(grid[0], recalls, names, styles)
    _shift_panel(grid[1], recalls, names, styles)
    if len(frontier):
        _frontier_panel(grid[2], frontier, names, styles)
    line_legend(figure, names, styles, contest)
    return figure


def cluster_figure(board: Board, contest: Contest) -> Figure | None:
    """Draw recall by the number of training images of a class and cluster, and by product.

    Args:
        board: of one data set and split; its first methods are drawn.
        contest: the results that the board is a part of.

    Returns:
        None if neither clusters nor products are known.
    """
    from matplotlib.figure import Figure

    found = _own(contest.behaviour.clusters, board)
    if found.empty:
        return None
    names = [name for name in board.methods if name in set(found["method"])][:_MOST_LINES]
    kinds = [kind for kind in ("cluster", "product") if kind in set(found["kind"])]
    width = 11.6 if len(kinds) > 1 else 6.4
    figure = Figure(figsize=(width, 3.8 + 0.17 * len(names)), layout="constrained")
    figure.patch.set_facecolor("white")
    styles = line_styles(names, contest)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        own = found[found["kind"] == kind]
        means = own.groupby(["method", "place"])["recall"].mean().mul(100).reset_index()
        shown = sorted(set(means["place"]))
        means["place"] = means["place"].map({place: at for at, place in enumerate(shown)})
        _lines(axes, means, "place", "recall", names, styles)
        axes.set_ylabel("recall, %", fontsize=_SMALL, color=GREY)
        if kind == "cluster":
            axes.set_xticks(range(len(shown)), [_bin(int(place)) for place in shown])
            axes.set_xlabel("training images of the class and cluster", fontsize=_SMALL, color=GREY)
        else:
            axes.set_xticks([0, len(shown) - 1], ["worst", "best"])
            axes.set_xlabel("product", fontsize=_SMALL, color=GREY)
    line_legend(figure, names, styles, contest)
    return figure


def _bin(least: int) -> str:
    """Label of a group of cells, given its least number of training images.

    Examples:
        >>> [_bin(0), _bin(2), _bin(32)]
        ['0', '2-3', '32+']
    """
    at = BINS.index(least)
    if at == len(BINS) - 1:
        return f"{least}+"
    most = BINS[at + 1] - 1
    return f"{least}" if most == least else f"{least}-{most}"


def line_legend(
    figure: Figure, names: Sequence[str], styles: dict[str, tuple[str, str]], contest: Contest
) -> None:
    """Name the methods of all panels below them."""
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], color=styles[name][0], linestyle=styles[name][1], linewidth=1.6)[0]
        for name in names
    ]
    titles = [figure_label(contest.methods[name].title, 46) for name in names]
    figure.legend(handles, titles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _own(table: pd.DataFrame, board: Board) -> pd.DataFrame:
    if table.empty:
        return table
    return table[(table["data"] == board.data) & (table["split"] == board.split)]


def line_styles(names: Sequence[str], contest: Contest) -> dict[str, tuple[str, str]]:
    """Colour and dash of each method: ours orange, the others in turn; dashes change per turn."""
    ours = [name for name in names if contest.methods[name].group == "recame"]
    others = [name for name in names if name not in ours]
    styles = {name: (ORANGE, _DASHES[at % len(_DASHES)]) for at, name in enumerate(ours)}
    for at, name in enumerate(others):
        dash = _DASHES[at // len(_COLOURS) % len(_DASHES)]
        styles[name] = (_COLOURS[at % len(_COLOURS)], dash)
    return styles


def _lines(
    axes: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    names: Sequence[str],
    styles: dict[str, tuple[str, str]],
) -> None:
    for name in names:
        own = table[table["method"] == name]
        colour, dash = styles[name]
        axes.plot(own[x], own[y], color=colour, linestyle=dash, linewidth=1.6)
    plain_axes(axes)
    axes.grid(color=LINE, linewidth=0.8)


def _recall_panel(
    axes: Axes, recalls: pd.DataFrame, names: Sequence[str], styles: dict[str, tuple[str, str]]
) -> None:
    table = by_count(recalls)
    _lines(
        axes, table.assign(recall=100 * table["recall"]), "train_images", "recall", names, styles
    )
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("training images of the class", fontsize=_SMALL, color=GREY)
    axes.set_ylabel("recall, %", fontsize=_SMALL, color=GREY)


def _shift_panel(
    axes: Axes, recalls: pd.DataFrame, names: Sequence[str], styles: dict[str, tuple[str, str]]
) -> None:
    table = shifted(recalls)
    place = {shift: at for at, shift in enumerate(SHIFTS)}
    table = table.assign(place=table["shift"].map(place), accuracy=100 * table["accuracy"])
    _lines(axes, table, "place", "accuracy", names, styles)
    told = [f"{s:g} to 1" if s >= 1 else f"1 to {1 / s:g}" for s in SHIFTS]
    axes.set_xticks(range(len(SHIFTS)), told, rotation=40, ha="right")
    axes.set_xlabel("test images, frequent to rare", fontsize=_SMALL, color=GREY)
    axes.set_ylabel("accuracy, %", fontsize=_SMALL, color=GREY)


def _frontier_panel(
    axes: Axes, frontier: pd.DataFrame, names: Sequence[str], styles: dict[str, tuple[str, str]]
) -> None:
    means = frontier.groupby(["method", "tau"])[["tail", "others"]].mean().mul(100).reset_index()
    _lines(axes, means, "others", "tail", names, styles)
    for name in names:
        own = means[(means["method"] == name) & (means["tau"] == 0)]
        axes.scatter(own["others"], own["tail"], s=26, color=[styles[name][0]], zorder=3)
    near = means[means["method"].isin(names)]
    axes.set_xlim(float(near["others"].quantile(0.25)), None)
    axes.set_xlabel("mean recall of the other classes, %", fontsize=_SMALL, color=GREY)
    axes.set_ylabel("tail recall, %", fontsize=_SMALL, color=GREY)
