"""Make what docs/default.md shows of the contest of the default with plain recipes.

    python docs/making/default_contest.py

Draws docs/images/contest-light.svg and -dark.svg, and fills in the page's tables, from the JSON
files that `benchmarks/defaults/contest.py` leaves: those committed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from figures import LOOKS, ROOT, Look, axes_of, headed

BENCHMARK = ROOT / "benchmarks" / "defaults"
RESULTS = BENCHMARK / "results-contest"
OUT = ROOT / "docs" / "images"
PAGE = ROOT / "docs" / "default.md"
#: A table of the page, between two comments that name it.
TABLE = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
DEFAULT = "default"
#: Recipe -> its mark, and its name in the legend.
MARKS = {
    "timm, cross-entropy, 128 px": ("x", "plain fine-tuning, cross-entropy"),
    "timm, balanced softmax, 128 px": ("+", "plain fine-tuning, balanced softmax"),
    "square-root sampling, 128 px": ("s", "square-root sampling, 128 px"),
    "square-root sampling, 224 px": ("D", "square-root sampling, 224 px"),
    "bare": ("^", "square-root sampling, balanced softmax"),
    "frozen features, MLP, balanced softmax": ("v", "frozen features and an MLP"),
    "fastai, vision_learner and fine_tune": ("o", "fastai"),
}
MEAN = "mean of the sets"


def scores_of(folder: Path) -> pd.DataFrame:
    """Columns `set`, `time`, `recipe`, `seed`, `balanced_accuracy`; a row a run."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise SystemExit(f"{folder} holds no results: run benchmarks/defaults/contest.py first.")
    return pd.DataFrame(found)[["set", "time", "recipe", "seed", "balanced_accuracy"]]


def drawn(scores: pd.DataFrame, look: Look) -> Figure:
    """A panel a time, a line a set: the default over its seeds' range, the recipes as marks."""
    times = sorted(scores["time"].unique(), key=lambda name: int(name.removesuffix("m")))
    means = scores.groupby(["time", "set", "recipe"])["balanced_accuracy"].mean()
    order = means.xs(DEFAULT, level="recipe").groupby("set").mean().sort_values().index
    height = 1.9 + 0.36 * (len(order) + 1)
    figure = Figure(figsize=(9.0, height), facecolor="none", layout="constrained")
    panels = figure.subplots(1, len(times), sharey=True, sharex=True, squeeze=False)[0]
    for axes, name in zip(panels, times, strict=True):
        own = scores[scores["time"] == name]
        _panel(axes, own, list(order), look)
        headed(axes, f"{name.removesuffix('m')} min", look)
    panels[0].set_yticks(range(-1, len(order)), [MEAN, *order], fontsize=9)
    marks, names = panels[0].get_legend_handles_labels()
    figure.legend(
        marks, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5,
        labelcolor=look.ink,
    )  # fmt: skip
    return figure


def _panel(axes: Any, own: pd.DataFrame, order: list[str], look: Look) -> None:
    table = own.pivot_table("balanced_accuracy", "set", "recipe").reindex(order)
    table = pd.concat([table.dropna().mean().to_frame(MEAN).T, table])  # of sets that all have
    places = range(-1, len(order))
    axes.axhline(-0.5, color=look.line, linewidth=1)
    for place in places:
        axes.axhline(place, color=look.line, linewidth=0.6, zorder=0)
    for recipe, (mark, name) in MARKS.items():
        if recipe in table:
            face = look.grey if mark in "x+" else "none"
            axes.scatter(
                100 * table[recipe], places, marker=mark, s=30, linewidths=1.1, facecolors=face,
                edgecolors=None if mark in "x+" else look.grey, label=name,
            )  # fmt: skip
    spans = 100 * own[own["recipe"] == DEFAULT].groupby("set")["balanced_accuracy"].agg(
        ["min", "max"]
    ).reindex(order)
    axes.hlines(range(len(order)), spans["min"], spans["max"], color=look.blue, linewidth=3)
    axes.scatter(
        100 * table[DEFAULT], places, s=48, color=look.blue, label="recame train", zorder=3
    )
    axes.set_xlabel("balanced accuracy, %")
    axes.set_ylim(-1.6, len(order) - 0.4)
    axes_of(axes, look)


def filled(page: str, tables: Mapping[str, str]) -> str:
    """The page with its tables.

    Args:
        page: its Markdown; comments name the tables.
        tables: title -> Markdown, of `contest_table.named_tables`.
    """
    return TABLE.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[3]}", page)


def main() -> None:
    """Draw it in both looks, and fill in the tables."""
    scores = scores_of(RESULTS)
    mpl.rcParams |= {"font.family": "sans-serif", "svg.hashsalt": "recame", "svg.fonttype": "path"}
    for name, look in LOOKS.items():
        path = OUT / f"contest-{name}.svg"
        drawn(scores, look).savefig(path, metadata={"Date": None})
        print(path)
    sys.path.insert(0, str(BENCHMARK))
    from contest_table import named_tables, read_results

    tables = named_tables(read_results(RESULTS))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
