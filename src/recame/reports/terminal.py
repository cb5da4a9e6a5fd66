"""Print an evaluation as tables: figures, intervals, and what is too uncertain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recame.names import one_line, quoted
from recame.pages.render import interval_text, listed_text, share_text
from recame.reports.judgement import doubts

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
    counted = f"{evaluation.num_images:,} images"
    if evaluation.num_unlabelled:
        counted += f", {evaluation.num_unlabelled:,} more without a label left out"
    heading = Text.assemble("\n", (one_line(title), "bold"), "  ", (counted, "dim"))
    console.print(heading, width=width)
    console.print(_headline_table(evaluation), width=width)
    console.print(_class_table(evaluation, console, width), width=width)
    if len(evaluation.experts) > 2:
        console.print(_experts_table(evaluation.experts), width=width)
    if evaluation.expert_weights is not None:
        told = "Experts' weights in the ensemble, learned on these images: "
        told += ", ".join(f"{weight:.2f}" for weight in evaluation.expert_weights)
        console.print(Text(told), width=width)
    if len(evaluation.per_product) > 1:
        console.print(_product_table(evaluation.per_product), width=width)
    for sentence in doubts(evaluation):
        console.print(Text.assemble(("!", "yellow"), f" {sentence}"), width=width)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_style="bold",
        title_justify="left",
        header_style="dim",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        justify: Literal["left", "right"] = "right" if table.columns else "left"
        table.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis")
    return table


def _headline_table(evaluation: Evaluation) -> Table:
    table = _table("", "number", "value", f"{evaluation.confidence:.0%} interval")
    table.add_column("meaning", style="dim", overflow="fold")
    meaning = {
        "worst_class_recall": quoted(evaluation.worst_class),
        "tail_recall": listed_text(evaluation.tail_classes, 4),
    }
    groups = evaluation.groups
    for row in groups[groups["rule"] == "cutoffs"].itertuples():
        classes = "1 class" if row.classes == 1 else f"{row.classes} classes"
        meaning[f"{row.group}_recall"] = f"{classes} by the published cut-offs"
    known = {metric.name: metric for metric in evaluation.metrics}
    for name, estimate in evaluation.headline.items():
        metric = known[name]
        if estimate.value is None:
            table.add_row(name, "-", "", Text(metric.absent))
            continue
        colour = _colour(metric.goodness(estimate.value))
        first = name == "balanced_accuracy"
        table.add_row(
            Text(name, style="bold" if first else ""),
            Text(f"{estimate.value:.3f}", style=f"bold {colour}" if first else colour),
            interval_text(estimate.low, estimate.high, 3),
            Text(meaning.get(name, metric.meaning)),
        )
    return table


def _class_table(evaluation: Evaluation, console: Console, width: int) -> Table:
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
    table = _table(title, "class", "train", "images", "recall", "interval", "prec.", "F1")
    if wide:
        table.add_column("group", no_wrap=True)
        table.add_column("0" + "recall".center(_BAR - 2) + "1", no_wrap=True)
    if caption:
        table.caption, table.caption_justify = ", ".join(caption) + "\n", "left"
    for row in rows.to_dict("records"):
        few = row["note"] and row["images"] > 0
        recall = row["recall"], row["recall_low"], row["recall_high"]
        table.add_row(
            Text(_short(str(row["class"])) + roles.get(row["class"], "")),
            f"{row['train_images']:,}",
            f"{row['images']:,}",
            Text(share_text(row["recall"], 2), style=_colour(row["recall"])),
            Text(interval_text(*recall[1:]), style="yellow" if few else ""),
            share_text(row["precision"], 2),
            share_text(row["f1"], 2),
            *((Text(str(row["group"])), _bar(*recall, plain=plain)) if wide else ()),
        )
    return table


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


def _experts_table(experts: pd.DataFrame) -> Table:
    names = list(experts.columns[1:])
    table = _table("Experts and their ensemble", "model", *names)
    best = experts[names].max()
    for row in experts.to_dict("records"):
        cells = [
            Text(share_text(row[name], 3), style="bold" if row[name] == best[name] else "")
            for name in names
        ]
        table.add_row(Text(str(row["model"])), *cells)
    return table


def _product_table(products: pd.DataFrame) -> Table:
    rows = products.sort_values("balanced_accuracy", kind="stable")
    title = "Products, lowest balanced accuracy first"
    if len(rows) > _MOST_ROWS:
        title = f"The {_MOST_ROWS} products of lowest balanced accuracy, of {len(rows)}"
    table = _table(title, "product", "images", "balanced", "accuracy", "interval")
    table.add_column("worst class")
    for row in rows.head(_MOST_ROWS).to_dict("records"):
        balanced, lowest = row["balanced_accuracy"], row["worst_class_recall"]
        worst = f"{_short(row['worst_class'])} {lowest:.2f} of {row['worst_class_images']:,}"
        table.add_row(
            Text(_short(str(row["product"]))),
            f"{row['images']:,}",
            Text(share_text(balanced, 2), style=_colour(balanced)),
            share_text(row["accuracy"], 2),
            interval_text(row["accuracy_low"], row["accuracy_high"], 2),
            Text(worst if lowest < 1 else ""),
        )
    return table


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 2] + ".."


def _colour(value: float) -> str:
    if math.isnan(value):
        return "dim"
    return "red" if value < 0.5 else "yellow" if value < 0.8 else "green"
