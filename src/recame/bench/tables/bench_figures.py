"""The bench page's drawn figures: scores and effects with intervals, and accuracy against cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recame.bench.plan.factorial import Factorial
from recame.bench.tables.board import Board
from recame.bench.tables.contest import Contest
from recame.bench.tables.effects import ALPHA
from recame.bench.tables.effects_board import EffectsSection, effect_title
from recame.bench.tables.ranks import Ranks
from recame.metrics.registry import BY_NAME
from recame.pages.drawing import figure_label
from recame.pages.render import BLUE, GREEN, GREY, INK, LINE, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of the kinds of methods.
KIND_COLOURS = {
    "single network": GREY,
    "several experts": BLUE,
    "recame": ORANGE,
    "ablation": GREEN,
}

_SMALL = 9.5

#: Characters of a method's title, and of a line below a panel.
_MOST, _WIDEST = 60, 34


def score_figure(board: Board, contest: Contest) -> Figure:
    """Draw methods from best to worst: means with intervals, each seed, and the difference.

    Args:
        board: of one data set and split.
        contest: the results that the board is a part of.
    """
    from matplotlib.figure import Figure

    table, names = board.standings, list(board.methods)
    methods, reference, frame = contest.methods, contest.reference, contest.shown
    runs = frame[
        (frame["data"] == board.data)
        & (frame["split"] == board.split)
        & frame["method"].isin(names)
    ]
    panels = [name for name in ("balanced_accuracy", "tail_recall") if name in table]
    figure = Figure(figsize=(11.6, 1.15 + 0.31 * len(names)), layout="constrained")
    figure.patch.set_facecolor("white")
    grid = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
    places = pd.Series(range(len(names))[::-1], names)
    colours = [KIND_COLOURS[methods[name].group] for name in names]
    for axes, name in zip(grid, panels, strict=False):
        at = runs["method"].map(places) - 0.24
        axes.scatter(100 * runs[name], at, s=11, color="white", edgecolors=GREY, linewidths=0.7)
        bars = table[[name, f"{name}_low", f"{name}_high"]]
        bars = bars.assign(**bars.iloc[:, 1:].clip(0, 1))
        _intervals(axes, bars, table[name].get(reference), colours)
        axes.set_xlabel(f"{BY_NAME[name].title}, %", fontsize=_SMALL, color=GREY)
    bars = table[["difference", "difference_low", "difference_high"]]
    _intervals(grid[-1], bars, 0, colours)
    titles = {name: figure_label(methods[name].title, _MOST) for name in (*names, reference)}
    head = textwrap.fill(f"to {titles[reference]}, points", _WIDEST)
    head = f"difference of balanced accuracy\n{head}"
    grid[-1].set_xlabel(head, fontsize=_SMALL, color=GREY)
    grid[0].set_yticks(places, [titles[name] for name in names], fontsize=10, color=INK)
    grid[0].set_ylim(-0.7, len(names) - 0.3)
    return figure


def _intervals(axes: Axes, bars: pd.DataFrame, line: float | None, colours: Sequence[str]) -> None:
    """Draw rows of a value and its bounds as dots with bars, the first on top, and a line."""
    value, low, high = (100 * bars[name] for name in bars)
    places = range(len(bars))[::-1]
    axes.hlines(places, low, high, colors=colours, linewidth=2.2, alpha=0.55)
    axes.scatter(value, places, s=40, color=colours, zorder=3, linewidths=0)
    if line is not None:
        axes.axvline(100 * line, color=INK, linewidth=0.8, alpha=0.45)
    plain_axes(axes)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def cost_figure(board: Board, contest: Contest) -> Figure:
    """Draw balanced accuracy over minutes of training and over operations of one decision.

    A line connects the methods that are better than every cheaper one (the Pareto front); these
    and the best are named. Without measured costs only the minutes are drawn; at equal time, only
    the operations.

    Args:
        board: of one data set and split.
        contest: the results that the board is a part of.
    """
    from matplotlib.figure import Figure

    table, methods = board.standings, contest.methods
    drawn: list[tuple[str, pd.Series[Any]]] = []
    if table["macs"].notna().all():
        drawn.append(("one decision, million multiply-accumulates", table["macs"] / 1e6))
    if contest.plan.equal != "time" or not drawn:  # equal minutes show nothing
        drawn.insert(0, ("training, minutes a run", table["train_s"] / 60))
    figure = Figure(figsize=(11.6 if len(drawn) == 2 else 6.4, 4.4), layout="constrained")
    figure.patch.set_facecolor("white")
    grid = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    score = 100 * table["balanced_accuracy"]
    colours = [KIND_COLOURS[methods[name].group] for name in board.methods]
    for axes, (head, cost) in zip(grid, drawn, strict=True):
        plain_axes(axes)
        axes.grid(color=LINE, linewidth=0.8)
        front = _front(cost, score)
        axes.plot(cost[front], score[front], color=GREY, linewidth=1)
        axes.scatter(cost, score, s=48, color=colours, zorder=3, linewidths=0)
        axes.margins(y=0.1)
        if cost.max() > 8 * cost.min() > 0:
            axes.set_xscale("log")
        ours = [name for name in board.methods if methods[name].group == "recame"]
        named = dict.fromkeys([*front[::-1], *ours])
        _name_dots(
            axes, cost, score, {name: figure_label(methods[name].title, _MOST) for name in named}
        )
        axes.set_xlabel(head, fontsize=_SMALL, color=GREY)
    grid[0].set_ylabel("balanced accuracy, %", fontsize=_SMALL, color=GREY)
    return figure


def _front(cost: pd.Series[Any], score: pd.Series[Any]) -> list[str]:
    """The Pareto front: methods better than every one that costs no more, cheapest first.

    Costs up to 5 % apart count as equal: minutes of runs differ by that much from day to day.
    """
    no_dearer = cost.to_numpy()[None, :] <= 1.05 * cost.to_numpy()[:, None]
    better = score.to_numpy()[None, :] > score.to_numpy()[:, None]
    best = cost.iloc[np.flatnonzero(~(no_dearer & better).any(axis=1))]
    return [str(name) for name in best.sort_values(kind="stable").index]


def _name_dots(axes: Axes, x: pd.Series[Any], y: pd.Series[Any], titles: Mapping[str, str]) -> None:
    """Write names to the right of dots; a name that would cover another is left out."""
    scale = axes.transScale
    low, high = scale.transform([(x.min(), 1.0), (x.max(), 1.0)])[:, 0]
    width = high - low or 1.0
    ends = [(low - 0.1 * width, 1.0), (high + 0.5 * width, 1.0)]
    axes.set_xlim(*scale.inverted().transform(ends)[:, 0])
    places = scale.transform(np.column_stack([x, np.ones(len(x))]))[:, 0] / (1.6 * width)
    at = dict(zip(map(str, x.index), places.tolist(), strict=True))
    apart = 0.06 * float(y.max() - y.min() or 1.0)
    written: list[str] = []
    for name, title in titles.items():
        if any(abs(y[name] - y[o]) < apart and abs(at[name] - at[o]) < 0.33 for o in written):
            continue
        written.append(name)
        axes.annotate(
            title,
            (x[name], y[name]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=_SMALL,
            color=INK,
        )


def plain_axes(axes: Axes) -> None:
    """Show the left and bottom axis only, in grey."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=9)


def effects_figure(section: EffectsSection, factorial: Factorial) -> Figure:
    """Draw each part's effect with its interval: one panel for each metric, in the plan's order.

    Green is a significant improvement, red a significant worsening, grey is not significant.

    Args:
        section: of one data set and split; endpoints without a complete block are left out.
        factorial: of the plan.
    """
    from matplotlib.figure import Figure

    shown = [board.effects for board in section.boards if board.effects.blocks]
    rows = shown[0].parts.to_dict("records")
    size = (5.0 + 3.3 * (len(shown) - 1), 1.15 + 0.36 * len(rows))
    figure = Figure(figsize=(min(11.6, size[0]), size[1]), layout="constrained")
    figure.patch.set_facecolor("white")
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, found in zip(grid, shown, strict=True):
        metric, parts = BY_NAME[found.metric], found.parts
        better = (parts["estimate"] < 0) if metric.lower_is_better else (parts["estimate"] > 0)
        told = parts["p_holm"] < ALPHA
        colours = np.where(~told, GREY, np.where(better, GREEN, RED)).tolist()
        _intervals(axes, parts[["estimate", "low", "high"]], 0, colours)
        less = ", less is better" if metric.lower_is_better else ""
        head = f"effect on {metric.title},\npoints{less}"
        axes.set_xlabel(head, fontsize=_SMALL, color=GREY)
    titles = [figure_label(effect_title(row, factorial), _MOST) for row in rows]
    grid[0].set_yticks(range(len(rows))[::-1], titles, fontsize=10, color=INK)
    grid[0].set_ylim(-0.7, len(rows) - 0.3)
    return figure


def rank_figure(ranks: Ranks, contest: Contest) -> Figure:
    """Draw mean ranks, the best on top; vertical bars join methods without significant difference.

    Args:
        ranks: of all methods.
        contest: the results that the ranks are a part of.
    """
    from matplotlib.figure import Figure

    names, methods = [str(name) for name in ranks.mean.index], contest.methods
    places = np.arange(len(names))[::-1]
    figure = Figure(figsize=(8.4, 1.15 + 0.31 * len(names)), layout="constrained")
    figure.patch.set_facecolor("white")
    axes = figure.subplots()
    colours = [KIND_COLOURS[methods[name].group] for name in names]
    axes.scatter(ranks.mean, places, s=40, color=colours, zorder=3, linewidths=0)
    for at, (first, last) in enumerate(ranks.cliques()):
        x = len(names) + 0.35 + 0.3 * at
        axes.vlines(x, places[last] - 0.18, places[first] + 0.18, colors=INK, linewidth=3)
    plain_axes(axes)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xticks(range(1, len(names) + 1))
    axes.set_xlabel(f"mean rank by {BY_NAME[ranks.metric].title}", fontsize=_SMALL, color=GREY)
    titles = [figure_label(methods[name].title, _MOST) for name in names]
    axes.set_yticks(places, titles, fontsize=10, color=INK)
    axes.set_ylim(-0.7, len(names) - 0.3)
    return figure
