"""Print an evaluation as tables: figures, intervals, and what is too uncertain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console, RenderableType
from rich.text import Text

from recame.names import counted, one_line, quoted
from recame.pages.render import interval_text, listed_text, share_text
from recame.reports.judgement import doubts
from recame.terminal_table import Cell, Column, fitted_table

if TYPE_CHECKING:
    from recame.metrics.evaluation import Evaluation

_MOST_CLASSES = 60
_MOST_ROWS = 20
_BAR = 14
_LONGEST_NAME = 22


def print_evaluation(evaluation: Evaluation, console: Console, title: str) -> None:
    """Print headline numbers, classes, experts and products; at most 100 columns wide.

    Args:
        evaluation: what to print.
        console: where to print; its encoding decides whether bars are drawn in ASCII.
        title: the heading.
    """
    width = min(console.width, 100)
    images = counted(evaluation.num_images)
    if evaluation.num_unlabelled:
        images += f", {evaluation.num_unlabelled:,} more without a label left out"
    heading = Text.assemble("\n", (one_line(title), "bold"), "  ", (images, "dim"))
    console.print(heading, width=width)
    console.print(_headline_table(evaluation, width), width=width)
    console.print(_class_table(evaluation, console, width), width=width)
    if len(evaluation.experts) > 2:
        console.print(_experts_table(evaluation.experts, width), width=width)
    if evaluation.expert_weights is not None:
        told = "Experts' weights in the ensemble, learned on these images: "
        told += ", ".join(f"{weight:.2f}" for weight in evaluation.expert_weights)
        console.print(Text(told), width=width)
    if len(evaluation.per_product) > 1:
        console.print(_product_table(evaluation.per_product, width), width=width)
    for sentence in doubts(evaluation):
        console.print(Text.assemble(("!", "yellow"), f" {sentence}"), width=width)


def _headline_table(evaluation: Evaluation, width: int) -> RenderableType:
    columns = [
        Column("number", figures=False, least=12),
        Column("value"),
        Column(f"{evaluation.confidence:.0%} interval"),
        Column("meaning", figures=False, least=16, style="dim", expendable=1),
    ]
    rows: list[list[Cell]] = []
    meaning = {
        "worst_class_recall": quoted(evaluation.worst_class),
        "tail_recall": listed_text(evaluation.tail_classes, 4),
    }
    groups = evaluation.groups
    for row in groups[groups["rule"] == "cutoffs"].to_dict("records"):
        classes = counted(row["classes"], "class")
        meaning[f"{row['group']}_recall"] = f"{classes} by the published cut-offs"
    known = {metric.name: metric for metric in evaluation.metrics}
    for name, estimate in evaluation.headline.items():
        metric = known[name]
        if estimate.value is None:
            rows.append([name, "-", "", metric.absent])
            continue
        colour = _colour(metric.goodness(estimate.value))
        first = name == "balanced_accuracy"
        rows.append(
            [
                Text(name, style="bold" if first else ""),
                Text(f"{estimate.value:.3f}", style=f"bold {colour}" if first else colour),
                interval_text(estimate.low, estimate.high, 3),
                meaning.get(name, metric.meaning),
            ]
        )
    return fitted_table(columns, rows, width)


def _class_table(evaluation: Evaluation, console: Console, width: int) -> RenderableType:
    rows = evaluation.per_class.sort_values("train_images", ascending=False, kind="stable")
    title = "Classes, by training images"
    if len(rows) > _MOST_CLASSES:
        title = f"The {_MOST_ROWS} classes of lowest recall, of {len(rows)}"
        rows = rows.sort_values("recall", kind="stable").head(_MOST_ROWS)
    wide = width >= 96
    plain = not (console.encoding or "utf-8").lower().startswith("utf")
    critical, normal = ("*", "-") if plain else ("◆", "○")
    roles = dict.fromkeys(evaluation.critical, f" {critical}")
    caption = [f"{critical} critical"] if evaluation.critical else []
    if evaluation.normal is not None:
        roles[evaluation.normal] = f" {normal}"
        caption.append(f"{normal} normal")
    columns = [
        Column("class", figures=False, least=12),
        *map(Column, ("train", "images", "recall", "interval")),
        *(Column(name, expendable=1) for name in ("prec.", "F1")),
    ]
    if wide:
        columns.append(Column("group", figures=False, least=6, expendable=2))
        track = "0" + "recall".center(_BAR - 2) + "1"
        columns.append(Column(track, figures=False, least=_BAR, expendable=3))
    cells: list[list[Cell]] = []
    for row in rows.to_dict("records"):
        few = row["note"] and row["images"] > 0
        recall = row["recall"], row["recall_low"], row["recall_high"]
        cells.append(
            [
                _short(str(row["class"])) + roles.get(row["class"], ""),
                f"{row['train_images']:,}",
                f"{row['images']:,}",
                Text(share_text(row["recall"], 2), style=_colour(row["recall"])),
                Text(interval_text(*recall[1:]), style="yellow" if few else ""),
                share_text(row["precision"], 2),
                share_text(row["f1"], 2),
                *((str(row["group"]), _bar(*recall, plain=plain)) if wide else ()),
            ]
        )
    legend = ", ".join(caption)
    return fitted_table(columns, cells, width, title=title, caption=legend and f"{legend}\n")


def _bar(value: float, low: float, high: float, *, plain: bool) -> Text:
    """Draw the interval on a track from 0 to 1, with a mark at the value."""
    if math.isnan(value):
        return Text("")
    track, inside, mark = ("-", "=", "o") if plain else ("╌", "━", "●")
    at, first, last = (min(int(x * _BAR), _BAR - 1) for x in (value, low, high))
    colour = _colour(value)
    return Text.assemble(
        (track * first, "dim"),
        (inside * (at - first), colour),
        (mark, f"bold {colour}"),
        (inside * (last - at), colour),
        (track * (_BAR - 1 - last), "dim"),
    )


def _experts_table(experts: pd.DataFrame, width: int) -> RenderableType:
    names = list(experts.columns[1:])
    columns = [Column("model", figures=False), *map(Column, names)]
    best = experts[names].max()
    rows: list[list[Cell]] = [
        [
            str(row["model"]),
            *(
                Text(share_text(row[name], 3), style="bold" if row[name] == best[name] else "")
                for name in names
            ),
        ]
        for row in experts.to_dict("records")
    ]
    return fitted_table(columns, rows, width, title="Experts and their ensemble")


def _product_table(products: pd.DataFrame, width: int) -> RenderableType:
    sorted_rows = products.sort_values("balanced_accuracy", kind="stable")
    title = "Products, lowest balanced accuracy first"
    if len(sorted_rows) > _MOST_ROWS:
        title = f"The {_MOST_ROWS} products of lowest balanced accuracy, of {len(sorted_rows)}"
    columns = [
        Column("product", figures=False),
        *map(Column, ("images", "balanced", "accuracy", "interval")),
        Column("worst class", figures=False, least=14, expendable=1),
    ]
    rows: list[list[Cell]] = []
    for row in sorted_rows.head(_MOST_ROWS).to_dict("records"):
        balanced, lowest = row["balanced_accuracy"], row["worst_class_recall"]
        worst = f"{_short(row['worst_class'])} {lowest:.2f} of {row['worst_class_images']:,}"
        rows.append(
            [
                _short(str(row["product"])),
                f"{row['images']:,}",
                Text(share_text(balanced, 2), style=_colour(balanced)),
                share_text(row["accuracy"], 2),
                interval_text(row["accuracy_low"], row["accuracy_high"], 2),
                worst if lowest < 1 else "",
            ]
        )
    return fitted_table(columns, rows, width, title=title)


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 2] + ".."


def _colour(value: float) -> str:
    if math.isnan(value):
        return "dim"
    return "red" if value < 0.5 else "yellow" if value < 0.8 else "green"
