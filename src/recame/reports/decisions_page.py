"""`decisions.html`: the promises, what they cost, other limits, and what more data would allow."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from recame.contracts import FloatArray
from recame.decisions.exact import images_needed
from recame.decisions.expected import risk_coverage
from recame.decisions.limits import Limits
from recame.decisions.scored import Scored
from recame.decisions.tuned import Tuned
from recame.metrics.statistics import wilson_interval
from recame.names import counted, quoted
from recame.pages.drawing import figure_label
from recame.pages.render import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LINE,
    ORANGE,
    figure_picture,
    render_page,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Escape limits for which the page says how many labelled images they need.
_WISHES = (0.05, 0.02, 0.01)
#: Most classes that the figure shows.
_MOST_ROWS = 40
_KINDS = ("released", "automatic", "to a person", "unknown")
_COLOURS = (GREEN, BLUE, ORANGE, "#7c5cbf")


def decisions_page(tuned: Tuned, scored: Scored, limits: Limits, *, name: str, told: str) -> str:
    """Return the whole page as HTML.

    Args:
        tuned: the result of the tuning.
        scored: the calibration images.
        limits: the limits.
        name: of the run or bundle.
        told: the calibration images, in words.
    """
    expected, facts = tuned.expected, tuned.facts
    chosen = "which chose nothing"
    if facts["comparisons"] > 1:
        chosen = f"which chose among at most {facts['comparisons']:,} models"
    pictures = {
        "classes": figure_picture(
            _classes_figure(tuned), "Actions for each class", _CAPTIONS["classes"]
        ),
        "errors": figure_picture(
            _coverage_figure(scored.counted(), expected.mix),
            "Error rate by the share of images that need no person",
            _CAPTIONS["errors"],
        ),
    }
    if tuned.frontier:
        pictures["frontier"] = figure_picture(
            _frontier_figure(tuned), "Released normal images by escape limit", _CAPTIONS["frontier"]
        )
    return render_page(
        "recame.reports",
        "decisions.html.j2",
        version=version("recame"),
        title=name,
        eyebrow="Decisions, and what they promise",
        subtitle=f"Fitted to {tuned.calibrated_on()} of {told}, {chosen}; tuning number "
        f"{facts['tuning']} on these images",
        footer=f"recame {version('recame')}. Limits: {_asked(limits)}.",
        contents=[
            ("promises", "Promises"),
            *([("frontier", "Other limits")] if tuned.frontier else []),
            ("classes", "Classes"),
            ("errors", "Errors and people"),
            ("data", "What more data would allow"),
        ],
        lead=_lead(tuned),
        tiles=_tiles(tuned),
        findings=_findings(tuned),
        signed=limits.signed_by,
        pictures=pictures,
        frontier=_frontier_rows(tuned),
        data=_data_rows(tuned),
        unit=facts["unit"],
    )


_CAPTIONS = {
    "frontier": "Share of the normal calibration images that would be released. Full dots: the "
    "limit is promised for all defect classes; empty dots: some classes have too few images.",
    "classes": "Share of the calibration images of each class that is released, classified "
    "automatically, or sent to a person.",
    "errors": "Error rate of the images that are decided automatically, if the least certain ones "
    "go to people first. The dashed line is an oracle that knows which are wrong.",
}


def _lead(tuned: Tuned) -> str:
    expected = tuned.expected.to_dict(tuned.policy.names)
    text = (
        f"{expected['release']:.1%} of the line's images pass unseen, {expected['automatic']:.1%} "
        f"are classified automatically, {expected['review'] + expected['unknown']:.1%} go to a "
        "person."
    )
    held = [promise for promise in tuned.promises if promise.holds]
    if not held:
        return f"{text} Nothing is promised."
    return (
        f"{text} {counted(len(held), 'limit')} hold together with "
        f"{tuned.facts['confidence']:.0%} confidence."
    )


def _tiles(tuned: Tuned) -> list[dict[str, str]]:
    expected = tuned.expected.to_dict(tuned.policy.names)
    tiles = []
    if tuned.expected.overkill is not None:
        number = tuned.expected.num_normal
        low, high = wilson_interval(round(tuned.expected.overkill * number), number)
        tiles.append(
            {
                "name": "Normal, not released",
                "value": f"{tuned.expected.overkill:.1%}",
                "meaning": f"{low:.0%} to {high:.0%}, of {counted(number)}",
            }
        )
    escapes = [p for p in tuned.promises if p.kind == "escape" and p.limit is not None]
    if escapes:
        worst = max(escapes, key=lambda promise: promise.limit or 0.0)
        tiles.append(
            {
                "name": "Escapes, at most",
                "value": f"{worst.limit:.1%}",
                "meaning": f"the widest limit, that of {quoted(worst.of)}",
            }
        )
    tiles.append(
        {
            "name": "To a person",
            "value": f"{expected['review'] + expected['unknown']:.1%}",
            "meaning": f"of the line's images; {expected['unknown']:.1%} as unknown",
        }
    )
    if expected["automatic_right"] is not None:
        tiles.append(
            {
                "name": "Automatic, right",
                "value": f"{expected['automatic_right']:.1%}",
                "meaning": "of the images classified automatically",
            }
        )
    return tiles


def _findings(tuned: Tuned) -> list[tuple[str, str]]:
    found = [("good" if p.holds else "warn", words) for p, words in tuned.promised()]
    found += [("bad", text) for text in tuned.unpromised()]
    found += [("bad", text) for text in tuned.unmet]
    return found + [("note", text) for text in tuned.notes]


def _frontier_rows(tuned: Tuned) -> list[list[str]]:
    return [
        [
            f"{row['escape_limit']:.1%}",
            f"{row['promised_classes']} of {row['defect_classes']}",
            *(
                ("-", "-", "-")  # of a limit that no class promises nothing follows
                if not row["promised_classes"] or math.isnan(row["normal_released"])
                else (
                    f"{row['normal_released']:.1%}",
                    f"{row['defects_released']:,}",
                    f"{row['review_of_called_normal']:.1%}",
                )
            ),
        ]
        for row in tuned.frontier
    ]


def _data_rows(tuned: Tuned) -> list[list[str]]:
    """For each defect class: its images, its limit, and images that smaller limits need."""
    risk, counts = tuned.facts["risk"], tuned.facts["counts"]
    needed = [images_needed(wish, risk) for wish in _WISHES]
    rows = []
    for promise in tuned.promises:
        if promise.kind != "escape":
            continue
        own = counts[promise.of]
        more = [
            "promised" if promise.limit is not None and promise.limit <= wish
            else f"{max(0, (number or 0) - own):,} more"
            for wish, number in zip(_WISHES, needed, strict=True)
        ]  # fmt: skip
        limit = "-" if promise.limit is None else f"{promise.limit:.1%}"
        rows.append([quoted(promise.of), f"{own:,}", limit, *more])
    return rows


def _asked(limits: Limits) -> str:
    told = limits.to_dict()
    return "; ".join(f"{name}: {value}" for name, value in told.items() if name != "signed_by")


def _frontier_figure(tuned: Tuned) -> Figure:
    figure, axes = _canvas(7.4, 3.6)
    limits = np.array([row["escape_limit"] for row in tuned.frontier])
    released = np.array([row["normal_released"] for row in tuned.frontier])
    whole = np.array(
        [row["promised_classes"] == row["defect_classes"] for row in tuned.frontier], np.bool_
    )
    axes.plot(limits, released, color=LINE, linewidth=1.5, zorder=1)
    axes.scatter(limits[whole], released[whole], s=42, color=BLUE, zorder=3, linewidths=0)
    axes.scatter(
        limits[~whole], released[~whole], s=36, facecolor="white", edgecolor=BLUE, zorder=3
    )
    if tuned.expected.overkill is not None:
        axes.axhline(1 - tuned.expected.overkill, color=ORANGE, linewidth=1)
        axes.annotate(
            "these decisions", (limits[0], 1 - tuned.expected.overkill), xytext=(0, 4),
            textcoords="offset points", color=ORANGE, fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    ticks = [0.001, 0.005, 0.02, 0.05, 0.2, 0.5]
    axes.set_xticks(ticks, [f"{tick:.1%}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("escape limit of every defect class", fontsize=9.5, color=GREY)
    axes.set_ylabel("normal images released", fontsize=9.5, color=GREY)
    return figure


def _classes_figure(tuned: Tuned) -> Figure:
    shares = tuned.expected.by_class[:_MOST_ROWS]
    figure, axes = _canvas(7.4, 0.9 + 0.29 * len(shares))
    left = np.zeros(len(shares))
    for kind, colour, column in zip(_KINDS, _COLOURS, np.nan_to_num(shares).T, strict=True):
        axes.barh(np.arange(len(shares)), column, left=left, color=colour, height=0.72, label=kind)
        left += column
    labels = [figure_label(name, 22) for name in tuned.policy.names[:_MOST_ROWS]]
    axes.set_yticks(np.arange(len(shares)), labels)
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "half", "all its images"])
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False, labelcolor=INK)
    return figure


def _coverage_figure(images: Scored, mix: FloatArray) -> Figure:
    figure, axes = _canvas(7.4, 3.4)
    found = risk_coverage(images, mix)
    axes.plot(found.coverage, found.oracle, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(found.coverage, found.errors, color=BLUE, linewidth=1.8)
    axes.set_xlim(0, 1.0)
    axes.set_ylim(0, max(0.01, float(np.max(found.errors, initial=0.0)) * 1.08))
    axes.set_xlabel("share of images that need no person", fontsize=9.5, color=GREY)
    axes.set_ylabel("error rate among them", fontsize=9.5, color=GREY)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.set_axisbelow(True)
    return figure, axes
