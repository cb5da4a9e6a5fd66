"""Learning curves: what methods gain from longer training on one data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from recame.bench.tables.behaviour_figures import line_legend, line_styles
from recame.bench.tables.bench_figures import plain_axes
from recame.bench.tables.contest import Contest
from recame.bench.tables.results import summarise
from recame.metrics.registry import BY_NAME
from recame.pages.render import GREY, LINE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALL = 9.5


def learning_curves(contest: Contest, root: str) -> pd.DataFrame:
    """Means over the seeds, for a data set and the sets that repeat it at other lengths (`of`).

    Args:
        contest: the results; the first split of each set counts.
        root: a data set without `of`.

    Returns:
        `data, method, metric, n, mean, low, high, images_seen`, the least `images_seen` first.
        Empty if there is only one length.
    """
    frame, plan = contest.shown, contest.plan
    parts = []
    for name in contest.again(root):
        own = frame[(frame["data"] == name) & (frame["split"] == plan.data[name].splits[0])]
        if len(own):
            seen = own.groupby("method")["images_seen"].mean()
            means = summarise(own)
            parts.append(means.assign(images_seen=means["method"].map(seen)))
    columns = ["data", "method", "metric", "n", "mean", "low", "high", "images_seen"]
    if not parts:
        return pd.DataFrame(columns=columns)
    table = pd.concat(parts, ignore_index=True)[columns]
    if table.groupby("method")["images_seen"].nunique().max() < 2:
        return table.iloc[:0]
    return table.sort_values("images_seen", kind="stable", ignore_index=True)


def curves_figure(contest: Contest, root: str) -> Figure | None:
    """Draw balanced accuracy, tail and unseen clusters over images seen, one line per method.

    Args:
        contest: the results.
        root: a data set without `of`.

    Returns:
        None if the plan has it at one length only.
    """
    from matplotlib.figure import Figure

    table = learning_curves(contest, root)
    if table.empty:
        return None
    metrics = [
        name
        for name in ("balanced_accuracy", "tail_recall", "tail_unseen")
        if name in set(table["metric"])
    ]
    names = [name for name in contest.methods if name in set(table["method"])]
    styles = line_styles(names, contest)
    size = (1.2 + 3.5 * len(metrics), 3.6 + 0.12 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_facecolor("white")
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        for name in names:
            own = table[(table["metric"] == metric) & (table["method"] == name)]
            colour, dash = styles[name]
            seen = own["images_seen"]
            axes.plot(seen, 100 * own["mean"], color=colour, linestyle=dash, marker="o", ms=3.5)
            axes.vlines(seen, 100 * own["low"], 100 * own["high"], colors=colour, alpha=0.4)
        plain_axes(axes)
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("images seen in training", fontsize=_SMALL, color=GREY)
        axes.set_ylabel(f"{BY_NAME[metric].title}, %", fontsize=_SMALL, color=GREY)
    line_legend(figure, names, styles, contest)
    return figure
