"""The report's summary as Markdown, for a merge request or a message."""

from __future__ import annotations

from recame.pages.render import (
    count_text,
    interval_text,
    markdown_cell,
    markdown_table,
    share_text,
)
from recame.reports.report_page import (
    EXPERT_COLUMNS,
    change_text,
    expert_rows,
    outcome_rows,
    pair_rows,
)
from recame.reports.run_report import RunReport

_SIGNS = {"good": "+", "note": "-", "warn": "!", "bad": "!!"}
_MOST_CLASSES, _MOST_ROWS = 100, 10


def report_markdown(report: RunReport) -> str:
    """Return a page of Markdown with tables.

    Args:
        report: the report.
    """
    facts, evaluation = report.facts, report.evaluation
    confidence = f"{evaluation.confidence:.0%}"
    parts = [
        f"# {markdown_cell(facts.name)} on {markdown_cell(facts.split)}",
        report.lead,
        "\n".join(f"- `{_SIGNS[f.level]}` {f.text}" for f in report.findings),
        "## Numbers",
        _headline(report, confidence),
        "## Classes, by training images",
        _classes(report, confidence),
    ]
    if report.outcome is not None:
        heads = ["by its decisions", "images", "share", "95 %"]
        rows = outcome_rows(report.outcome)
        parts += ["## Decisions", markdown_table(heads, rows)]
    if pairs := pair_rows(report, _MOST_ROWS):
        parts += ["## Most frequent confusions"]
        parts += [markdown_table(["true", "called", "images", "of the class"], pairs, left=2)]
    if report.disagreement is not None:
        heads = ["", *(name.replace("_", " ") for name in EXPERT_COLUMNS)]
        parts += ["## Experts", markdown_table(heads, expert_rows(report))]
    if len(evaluation.per_product) > 1:
        parts += ["## Products", _products(report)]
    parts += ["## How it was made", markdown_table(["what", "value"], facts.facts, left=2)]
    if facts.commands:
        parts += ["```\n" + "\n".join(facts.commands) + "\n```"]
    parts += [f"> {remark}" for remark in report.evidence.remarks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(report: RunReport, confidence: str) -> str:
    rows, compared = [], bool(report.comparison and report.comparison.images)
    for metric in report.evaluation.metrics:
        estimate, title = report.evaluation.headline.get(metric.name), metric.title
        if estimate is None or metric.level == "detail":
            continue
        if metric.name == "worst_class_recall":
            title = f"{title} ({report.evaluation.worst_class})"
        interval = interval_text(estimate.low, estimate.high, 3)
        rows.append([title, share_text(estimate.value), interval, change_text(metric, report)])
    heads = ["number", "value", confidence, "against the baseline"]
    width = len(heads) if compared else 3
    return markdown_table(heads[:width], [row[:width] for row in rows])


def _classes(report: RunReport, confidence: str) -> str:
    table = report.evaluation.per_class
    told = ""
    if len(table) > _MOST_CLASSES:
        told = f"The {_MOST_CLASSES} classes of lowest recall, of {len(table):,}.\n\n"
        table = table.sort_values("recall", kind="stable").head(_MOST_CLASSES)
    table = table.sort_values("train_images", ascending=False, kind="stable")
    rows = [
        [
            row["class"],
            row["group"],
            count_text(row["train_images"]),
            count_text(row["images"]),
            share_text(row["recall"], 2),
            interval_text(row["recall_low"], row["recall_high"]),
            share_text(row["precision"], 2),
            share_text(row["f1"], 2),
        ]
        for row in table.to_dict("records")
    ]
    heads = ["class", "group", "train", "images", "recall", confidence, "precision", "F1"]
    return told + markdown_table(heads, rows, left=2)


def _products(report: RunReport) -> str:
    table = report.evaluation.per_product.sort_values("balanced_accuracy", kind="stable")
    told = ""
    if len(table) > _MOST_ROWS:
        told = f"The {_MOST_ROWS} products of lowest balanced accuracy, of {len(table):,}.\n\n"
    rows = [
        [
            row["product"],
            count_text(row["images"]),
            share_text(row["balanced_accuracy"], 2),
            share_text(row["accuracy"], 2),
            interval_text(row["accuracy_low"], row["accuracy_high"]),
            f"{row['worst_class']} {row['worst_class_recall']:.2f}",
        ]
        for row in table.head(_MOST_ROWS).to_dict("records")
    ]
    heads = ["product", "images", "balanced", "accuracy", "interval", "worst class"]
    return told + markdown_table(heads, rows)
