"""Draw the pictures of docs/concepts: docs/images/concepts/NAME-light.svg and NAME-dark.svg.

    python docs/making/figures.py [NAME ...]

Every number in them is computed here, by recame or by arithmetic that the page tells.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from recame.datasets.generated import SyntheticSpec, plan
from recame.decisions.exact import smallest_limit

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "images" / "concepts"
#: `ic_defect_synth_100` of `recame.datasets.public.ic_defect_synth`, seed 0.
SET = SyntheticSpec(
    num_images=2800, num_classes=10, imbalance=100, val_per_class=20, test_per_class=60
)


@dataclass(frozen=True)
class Look:
    """The colours of a page.

    Attributes:
        ink: text and axes.
        grey: what matters less.
        line: grids, quiet areas.
        blue: the first colour.
        orange: the second one.
        ground: what text on a colour stands against.
    """

    ink: str
    grey: str
    line: str
    blue: str
    orange: str
    ground: str


LOOKS = {
    "light": Look("#1f2933", "#66727f", "#d9dee3", "#2b6cb0", "#dd7b2f", "#ffffff"),
    "dark": Look("#e6e9ee", "#a0aab5", "#434b57", "#63a4e6", "#f0a15e", "#1e2129"),
}


def axes_of(axes: Any, look: Look) -> None:
    """Quiet axes in a page's colours."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(look.grey)
    axes.tick_params(colors=look.grey, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(look.ink)
        label.set_fontsize(10)
    axes.title.set_color(look.ink)


def headed(axes: Any, text: str, look: Look) -> None:
    """A title at the left."""
    axes.set_title(text, fontsize=11, fontweight="bold", color=look.ink, loc="left", pad=8)


def new_figure(height: float, columns: int = 1, **grid: Any) -> tuple[Figure, Any]:
    """An empty figure that lets the page shine through."""
    figure = Figure(figsize=(9.0, height), facecolor="none", layout="constrained")
    return figure, figure.subplots(1, columns, **grid)


def long_tail(look: Look) -> Figure:
    """Counts of the classes; where the images of two of them lie."""
    table = plan(SET)
    table = table[table["split"] == "train"]
    counts = table["label"].value_counts()
    figure, (left, middle, right) = new_figure(3.5, 3, width_ratios=[1.5, 1, 1])
    colours = [look.orange if count <= 100 else look.blue for count in counts]
    left.barh(range(len(counts)), counts, color=colours)
    left.set_yticks(range(len(counts)), counts.index, fontsize=9)
    left.invert_yaxis()
    for place, count in enumerate(counts):
        left.text(count + 12, place, f"{count:,}", va="center", fontsize=9, color=look.ink)
    left.set_xlim(0, counts.max() * 1.15)
    left.set_xlabel("training images")
    headed(left, "A long tail", look)
    axes_of(left, look)
    head, rare = counts.index[1], counts.index[-1]
    for axes, name, title in ((middle, head, "Many in few"), (right, rare, "Few in many")):
        _clusters(axes, table[table["label"] == name], look, f"{title}: {name}")
    return figure


def _clusters(axes: Any, rows: Any, look: Look, title: str) -> None:
    """A cell a product and region, with the number of images in it."""
    products = [f"P{number:02d}" for number in range(1, SET.num_products + 1)]
    counts = rows["cluster"].str.rpartition("/")[2].groupby(rows["product"]).value_counts()
    for y, product in enumerate(products):
        for x, region in enumerate("abc"):
            number = int(counts.get((product, region), 0))
            axes.scatter(x, y, s=14, color=look.line, linewidths=0)
            if number:
                few = number <= 4
                size = 26 if few else 120
                axes.scatter(x, y, s=size, color=look.orange if few else look.blue, linewidths=0)
                axes.text(x + 0.2, y, str(number), fontsize=9, va="center", color=look.ink)
    axes.set_xticks(range(3), list("abc"), fontsize=9)
    axes.set_yticks(range(len(products)), products, fontsize=8)
    axes.set_xlim(-0.4, 2.7)
    axes.set_ylim(len(products) - 0.4, -0.6)
    axes.set_xlabel("region of the product")
    headed(axes, title, look)
    axes_of(axes, look)


def box(
    axes: Any, place: tuple[float, float, float, float], text: str, look: Look, **how: Any
) -> None:
    """A rounded box (x, y, width, height) with text in its middle."""
    x, y, width, height = place
    colour = how.pop("colour", look.blue)
    filled = how.pop("filled", False)
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=colour if filled else "none", edgecolor=colour, linewidth=1.6, **how,
    )  # fmt: skip
    axes.add_patch(shape)
    axes.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5,
        color=look.ground if filled else look.ink, linespacing=1.35,
    )  # fmt: skip


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], look: Look) -> None:
    """From one place to another."""
    style = {"arrowstyle": "-|>", "color": look.grey, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def canvas(height: float, width: float = 9.0) -> tuple[Figure, Any]:
    """Axes in inches, without any frame."""
    figure = Figure(figsize=(width, height), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def training(look: Look) -> Figure:
    """The phases of a run."""
    figure, axes = canvas(2.9)
    steps = (
        ("images\nand labels", look.grey, False),
        ("probe\nnetwork frozen,\nheads learn", look.orange, False),
        ("fine-tuning\nall but two\nstages learn", look.blue, False),
        ("val chooses\none phase or both,\nhow many views", look.ink, False),
        ("run folder\nweights, reasons,\nhistory", look.grey, False),
    )
    width, gap = 1.5, 0.32
    for number, (text, colour, filled) in enumerate(steps):
        x = 0.1 + number * (width + gap)
        box(axes, (x, 1.25, width, 1.15), text, look, colour=colour, filled=filled)
        if number:
            arrow(axes, (x - gap + 0.03, 1.82), (x - 0.04, 1.82), look)
    notes = (
        "split: train, val, test",
        "seconds",
        "most of the time",
        "reads val only",
        "test is read\nby evaluate alone",
    )
    for number, text in enumerate(notes):
        x = 0.1 + number * (width + gap) + width / 2
        axes.text(x, 0.85, text, ha="center", va="center", fontsize=9, color=look.grey)
    axes.plot([1.92, 1.92, 7.3, 7.3], [0.62, 0.42, 0.42, 0.62], color=look.grey, linewidth=1.2)
    axes.text(
        4.6,
        0.2,
        "--time-budget is the time of all of it",
        ha="center",
        va="center",
        fontsize=9,
        color=look.grey,
    )
    return figure


def step(look: Look) -> Figure:
    """One step of fine-tuning, from the draw of a batch to the averaged weights."""
    figure, axes = canvas(3.6)
    chain = (
        ("a batch\nrare classes\nmore often", look.grey),
        ("flips, rotations,\nshifts,\nbrightness", look.grey),
        ("shared stages\nthe first two\nstand still", look.blue),
        ("branch of each\nexpert, with\nattention", look.orange),
        ("heads\nlogits of each\nexpert", look.orange),
    )
    width, gap, low = 1.42, 0.42, 2.2
    for number, (text, colour) in enumerate(chain):
        x = 0.1 + number * (width + gap)
        box(axes, (x, low, width, 1.05), text, look, colour=colour)
        if number:
            arrow(axes, (x - gap + 0.03, low + 0.52), (x - 0.04, low + 0.52), look)
    terms = (
        ("balanced softmax\nthe class", look.blue),
        ("hard categories\nthe likeliest mistakes", look.blue),
        ("metric terms\nthe features", look.grey),
        ("distillation\nthe other experts", look.grey),
    )
    wide, space, floor = 1.72, 0.14, 0.85
    for number, (text, colour) in enumerate(terms):
        x = 1.62 + number * (wide + space)
        box(axes, (x, floor, wide, 0.72), text, look, colour=colour)
    right = 0.1 + 4 * (width + gap) + width / 2
    axes.plot([right, right], [low - 0.03, floor + 0.95], color=look.grey, linewidth=1.4)
    axes.plot([1.62, right], [floor + 0.95] * 2, color=look.grey, linewidth=1.4)
    for number in range(len(terms)):
        x = 1.62 + number * (wide + space) + wide / 2
        arrow(axes, (x, floor + 0.95), (x, floor + 0.75), look)
    axes.text(
        0.1, floor + 0.36, "loss, each with\na weight", va="center", fontsize=9.5, color=look.ink
    )
    axes.text(
        4.5, 0.36,
        "one gradient for all; then AdamW moves the weights, and their moving average is kept",
        ha="center", va="center", fontsize=9.5, color=look.grey,
    )  # fmt: skip
    return figure


def experts(look: Look) -> Figure:
    """Shared stages and branches; the regions of a map with their gates."""
    figure, axes = canvas(3.5)
    box(axes, (0.1, 1.2, 0.85, 0.8), "image", look, colour=look.grey)
    box(axes, (1.3, 1.2, 1.3, 0.8), "shared\nstages", look)
    arrow(axes, (0.98, 1.6), (1.27, 1.6), look)
    for y, name, colour in (
        (2.15, "expert 0", look.blue),
        (0.25, "expert 1\nlarger tau", look.orange),
    ):
        box(axes, (3.05, y, 1.3, 0.8), name, look, colour=colour)
        arrow(axes, (2.63, 1.6), (3.02, y + 0.4), look)
        arrow(axes, (4.38, y + 0.4), (4.78, 1.6), look)
    box(axes, (4.8, 1.2, 1.05, 0.8), "mean of\nthe logits", look, colour=look.ink)
    axes.text(0.1, 3.25, "Experts", fontsize=11, fontweight="bold", color=look.ink)
    axes.text(6.35, 3.25, "Regional attention", fontsize=11, fontweight="bold", color=look.ink)
    side, left, low = 1.15, 6.35, 0.45
    gates = np.array([[0.9, 0.3, 0.7], [0.8, 0.9, 0.2], [0.2, 0.9, 0.6], [0.9, 0.7, 0.9]])
    for number, row in enumerate(gates):
        x, y = left + number % 2 * side, low + (1 - number // 2) * side
        axes.add_patch(
            FancyBboxPatch(
                (x + 0.03, y + 0.03),
                side - 0.06,
                side - 0.06,
                boxstyle="round,pad=0,rounding_size=0.05",
                facecolor="none",
                edgecolor=look.grey,
                linewidth=1.3,
            )
        )
        for channel, gate in enumerate(row):
            place = (x + 0.19 + channel * 0.28, y + 0.2)
            axes.add_patch(
                FancyBboxPatch(
                    place, 0.2, 0.75, boxstyle="square,pad=0", facecolor=look.line, edgecolor="none"
                )
            )
            axes.add_patch(
                FancyBboxPatch(
                    place,
                    0.2,
                    0.75 * gate,
                    boxstyle="square,pad=0",
                    facecolor=look.blue,
                    edgecolor="none",
                )
            )
    axes.text(
        left + side,
        0.2,
        "a gate for each channel and region",
        ha="center",
        va="center",
        fontsize=9,
        color=look.grey,
    )
    axes.text(left, 2.93, "a map of features, cut into 2 x 2", fontsize=9, color=look.grey)
    return figure


#: Parts of a line, and how many of each model A and model B call right.
PARTS = {"good": (980, 980, 910), "scratch": (15, 0, 13), "crack": (5, 0, 4)}


def accuracy(look: Look) -> Figure:
    """Two models by two measures."""
    totals, *right = np.array(list(PARTS.values())).T
    figure, pair = new_figure(2.7, 2, sharey=True)
    scores = {
        "Accuracy": [each.sum() / totals.sum() for each in right],
        "Balanced accuracy": [(each / totals).mean() for each in right],
    }
    for axes, (title, values) in zip(pair, scores.items(), strict=True):
        axes.barh([0, 1], values, color=[look.grey, look.blue], height=0.6)
        axes.set_yticks([0, 1], ["A: all is good", "B: finds defects"], fontsize=10)
        axes.set_ylim(1.5, -0.5)
        axes.set_xlim(0, 1.12)
        for place, value in enumerate(values):
            axes.text(
                value + 0.015, place, f"{value:.3f}", va="center", fontsize=10, color=look.ink
            )
        headed(axes, title, look)
        axes_of(axes, look)
    return figure


def promises(look: Look) -> Figure:
    """What can be promised of a class by n images, asked once."""
    images = np.unique(np.geomspace(15, 3000, 120).astype(int))
    figure, axes = new_figure(3.6)
    for allowed, colour, text in ((0, look.blue, "none released"), (3, look.orange, "3 released")):
        limits = [smallest_limit(int(n), allowed, 0.05) for n in images]
        axes.plot(images, limits, color=colour, linewidth=2.2)
        axes.text(images[-1] * 1.08, limits[-1], text, color=colour, va="center", fontsize=10)
    for n, dx in ((59, 1.1), (299, 1.1)):
        limit = smallest_limit(n, 0, 0.05)
        axes.scatter(n, limit, color=look.blue, zorder=3)
        axes.text(
            n / dx,
            limit * 0.8,
            f"{n} images: {limit:.0%}".replace("%", " %"),
            fontsize=9.5,
            color=look.ink,
            ha="right",
            va="top",
        )
    axes.set(xscale="log", yscale="log", xlim=(15, 7000), ylim=(0.0008, 0.5))
    axes.set_xticks([20, 50, 100, 300, 1000, 3000], ["20", "50", "100", "300", "1,000", "3,000"])
    axes.set_yticks(
        [0.001, 0.01, 0.02, 0.05, 0.1, 0.3], ["0.1 %", "1 %", "2 %", "5 %", "10 %", "30 %"]
    )
    axes.minorticks_off()
    axes.grid(color=look.line, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("images of the class that trained and chose nothing")
    headed(axes, "Escapes that can be promised at most (one class, 95 %, asked once)", look)
    axes_of(axes, look)
    return figure


#: Methods of `benchmarks/results/cpu`, as `docs/results.md` calls them.
METHODS = {
    "recame": "recame",
    "bare_tau_one_and_a_half": "bare, tau 1.5",
    "bare": "bare",
    "bare_tau_half": "bare, tau 0.5",
    "crt": "cRT",
    "ncl": "NCL, 2 experts",
    "recame_reference": "recame (published objective)",
    "balpoe_unmixed": "BalPoE, 3 experts",
    "ride_early": "RIDE, 3 experts",
    "posthoc_logit_adjustment": "post-hoc logit adjustment",
    "balanced_softmax": "balanced softmax",
    "ldam_drw_early": "LDAM-DRW",
}
SETS = {
    "generated": "generated IC defects",
    "deeppcb_lt": "DeepPCB-LT",
    "cifar10_lt": "CIFAR-10-LT (JPEG)",
}


def results(look: Look) -> Figure:
    """Balanced accuracy of the tuned methods at equal epochs, with intervals."""
    table = pd.read_csv(ROOT / "benchmarks" / "results" / "peers" / "summary.csv")
    table = table[(table["split"] == "test") & (table["metric"] == "balanced_accuracy")]
    figure, panels = new_figure(3.9, len(SETS), sharey=True)
    for axes, (name, title) in zip(panels, SETS.items(), strict=True):
        rows = table[table["data"] == name].set_index("method").loc[list(METHODS)]
        for place, (method, row) in enumerate(rows.iterrows()):
            colour = look.orange if str(method).startswith("recame") else look.blue
            low, high, mean = (100 * float(row[each]) for each in ("low", "high", "mean"))
            axes.plot([low, high], [place] * 2, color=colour, linewidth=2, alpha=0.55)
            axes.scatter(mean, place, color=colour, s=28, zorder=3)
        axes.set_yticks(range(len(METHODS)), METHODS.values())
        axes.set_ylim(len(METHODS) - 0.5, -0.5)
        axes.set_xlabel("balanced accuracy, %")
        axes.grid(axis="x", color=look.line, linewidth=0.7)
        axes.set_axisbelow(True)
        headed(axes, title, look)
        axes_of(axes, look)
    return figure


FIGURES: dict[str, Callable[[Look], Figure]] = {
    "long-tail": long_tail,
    "training": training,
    "step": step,
    "experts": experts,
    "accuracy": accuracy,
    "promises": promises,
    "results": results,
}


def main() -> None:
    """Draw all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(FIGURES))
    OUT.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().names or FIGURES:
        for style, look in LOOKS.items():
            how = {"svg.hashsalt": name, "text.color": look.ink, "font.family": "DejaVu Sans"}
            with mpl.rc_context(how):
                path = OUT / f"{name}-{style}.svg"
                FIGURES[name](look).savefig(path, transparent=True, metadata={"Date": None})
            print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
