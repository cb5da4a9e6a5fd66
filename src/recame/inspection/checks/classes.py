"""Checks how many images each class has in each split, and how precise its recall can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recame.data.audit import ManifestAudit
from recame.data.file_groups import groups_of
from recame.inspection.check import (
    MOST_ROWS,
    Block,
    Check,
    Level,
    Section,
    SetFinding,
)
from recame.inspection.figures import canvas
from recame.metrics.statistics import TOO_WIDE, wilson_interval
from recame.names import counted, quoted
from recame.pages.drawing import figure_label
from recame.pages.render import BLUE, GREY, LINE, figure_picture, interval_text, listed_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Classes(Check):
    """Images of each class in each split."""

    place = 1

    def say(self) -> list[SetFinding]:
        """Only one class, missing splits and classes, classes too small to evaluate."""
        audit = self.inspection.audit
        classes, found = audit.classes, []
        if len(classes) == 1:
            text = f"All {counted(audit.num_images)} are {classes['class'].iloc[0]!r}."
            hint = "Add images of another class before training."
            found.append(SetFinding("one-class", "bad", "There is only one class", text, hint, 1))
        if not audit.splits:
            text = "The source has no splits; `recame train` would draw them, stratified by class"
            if groups_of(self.inspection.table, None) is None:
                text += "."
                hint = (
                    "If images belong together, name the column that says so (data.group_by), so "
                    "that they stay in one split."
                )
            else:
                text += ", and keep the pages and boxes of each file together."
                hint = ""
            found.append(SetFinding("no-splits", "note", "No splits are given", text, hint))
        else:
            found += _missing_in_splits(audit)
        sizes = evaluation_sizes(audit)
        small = sizes[sizes["small"] & (sizes["images"] > 0)].sort_values("images")
        if len(small) and len(classes) > 1:
            split = _held_out(audit) or ""
            row, n = small.iloc[0], int(small["images"].iloc[0])
            found.append(
                SetFinding(
                    "small",
                    "warn" if split else "note",
                    f"{counted(len(small), 'class')} too small to evaluate",
                    f"{quoted(row['class'])}: {counted(n, (split + ' image').strip())}; even "
                    f"{n} of {n} right only shows a recall of {row['low']:.2f}-1.00, and half "
                    f"right {row['half_low']:.2f}-{row['half_high']:.2f}.",
                    "Collect more held-out images of "
                    f"{listed_text(small['class'].tolist())}; about 40 give an interval of 0.3.",
                    len(small),
                )
            )
        return found

    def tiles(self) -> list[dict[str, str]]:
        """Images, imbalance."""
        audit = self.inspection.audit
        splits = ", ".join(f"{name} {count:,}" for name, count in list(audit.splits.items())[:4])
        meaning = f"most over least frequent of {counted(len(audit.classes), 'class')}"
        if "train" in audit.splits:
            present = int((audit.classes["train"] > 0).sum())
            meaning = f"in train, over {counted(present, 'class')} with images"
        ratio, splits = f"{audit.imbalance_ratio:,.0f} : 1", splits or "no splits given"
        return [
            {"name": "Images", "value": f"{audit.num_images:,}", "meaning": splits},
            {"name": "Imbalance", "value": ratio, "meaning": meaning},
        ]

    def show(self) -> list[Section]:
        """A figure of the counts, and their table."""
        audit = self.inspection.audit
        note = "Most frequent first, on a logarithmic scale: each step is ten times as many images."
        if len(audit.classes) > MOST_ROWS:
            note += f" {len(audit.classes) - MOST_ROWS} rarer classes are in inspection.json."
        heads = ["images", *audit.splits, "all right", "half right"]
        columns = [("class", "left"), *((head, "right") for head in heads)]
        sizes = evaluation_sizes(audit).rename(columns={"images": "held_out"})
        rows = [
            (
                row["class"],
                *(f"{row[name]:,}" for name in ("images", *audit.splits)),
                f"{row['low']:.2f}-1.00" if row["held_out"] else "no image",
                interval_text(row["half_low"], row["half_high"]) if row["held_out"] else "",
            )
            for row in audit.classes.merge(sizes, on="class").head(MOST_ROWS).to_dict("records")
        ]
        explained = (
            "Right-hand columns: the 95 % interval (Wilson) of a class's recall if all its "
            "held-out images were classified correctly, and if half of them were."
        )
        numbers = [Block("note", explained), Block("table", (columns, rows))]
        summary = "Numbers, splits, and how precise recall can be"
        figure = figure_picture(counts_figure(audit.classes), "Images of each class on a log scale")
        blocks = [
            Block("note", note),
            Block("picture", figure),
            Block("folded", (summary, numbers)),
        ]
        return [Section("classes", "Classes", blocks)]

    def facts(self) -> dict[str, Any]:
        """The counts, and what they can show."""
        audit = self.inspection.audit
        return {
            "images": audit.num_images,
            "imbalance_ratio": audit.imbalance_ratio,
            "splits": audit.splits,
            "classes": audit.classes,
            "evaluation": evaluation_sizes(audit),
        }


def evaluation_sizes(audit: ManifestAudit) -> pd.DataFrame:
    """What the images of each class in the test split (else val, else all) can show at best.

    Returns:
        `class`, `images` and the Wilson interval of a recall when all (`low`, `high`) or half
        (`half_low`, `half_high`) are right; `small` where the latter is wider than 0.3.
    """
    counts = audit.classes[_held_out(audit) or "images"].to_numpy()
    low, high = wilson_interval(counts, counts)
    half_low, half_high = wilson_interval(counts / 2, counts)
    return pd.DataFrame(
        {
            "class": audit.classes["class"],
            "images": counts,
            "low": low,
            "high": high,
            "half_low": half_low,
            "half_high": half_high,
            "small": half_high - half_low > TOO_WIDE,
        }
    )


def _held_out(audit: ManifestAudit) -> str | None:
    return next((name for name in ("test", "val") if name in audit.splits), None)


def _missing_in_splits(audit: ManifestAudit) -> list[SetFinding]:
    classes, found = audit.classes, []
    if "train" not in audit.splits:
        text = f"The splits are {listed_text(list(audit.splits))}."
        hint = "Name the training rows 'train', or check data.split_column."
        return [SetFinding("no-train", "bad", "No image is in the split 'train'", text, hint)]
    if unseen := classes.loc[classes["train"] == 0, "class"].tolist():
        found.append(
            SetFinding(
                "unseen",
                "bad",
                f"Training never sees {listed_text(unseen)}",
                "These classes have images only in other splits, so no model can learn them, and "
                "`recame train` refuses the data.",
                "Add training images, or remove the rows.",
                len(unseen),
            )
        )
    without: tuple[tuple[str, Level, str], ...] = (
        (
            "val",
            "note",
            "Training takes its share of the training rows for it (data.val_fraction).",
        ),
        ("test", "warn", "No images remain for the final evaluation."),
    )
    for split, level, text in without:
        if split not in audit.splits:
            found.append(SetFinding(f"no-{split}", level, f"There is no {split} split", text))
        elif absent := classes.loc[classes[split] == 0, "class"].tolist():
            found.append(
                SetFinding(
                    f"absent-{split}",
                    "warn",
                    f"{split} has no image of {listed_text(absent)}",
                    "No figure can be given for these classes there.",
                    f"Move or collect some for {split}.",
                    len(absent),
                )
            )
    return found


def counts_figure(classes: pd.DataFrame) -> Figure:
    """Images of each class on a log scale; the training split's part darker.

    Args:
        classes: `ManifestAudit.classes`.
    """
    shown = classes.head(MOST_ROWS)
    rows = np.arange(len(shown))
    figure, axes = canvas(7.4, 0.7 + 0.27 * len(shown))
    has_train = "train" in shown
    axes.barh(rows, shown["images"], height=0.72, color="#bcd3ea" if has_train else BLUE)
    if has_train:
        axes.barh(rows, shown["train"], height=0.72, color=BLUE)
    axes.set_xscale("log")
    axes.set_xlim(0.7, max(shown["images"].max(), 1) * 2.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="x", which="both", length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(rows, [figure_label(name, 22) for name in shown["class"]])
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.tick_params(axis="x", labelcolor=GREY)
    for row, record in enumerate(shown.to_dict("records")):
        part = f"{record['train']:,} of " if has_train else ""
        text = f"{part}{record['images']:,}"
        axes.text(record["images"] * 1.08, row, text, va="center", fontsize=8, color=GREY)
    label = "images (dark: in train)" if has_train else "images"
    axes.set_xlabel(f"{label}, log scale", fontsize=9, color=GREY, loc="left")
    return figure
