"""A report on disk: three files, all of them or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from recame.files import json_text, write_together
from recame.label_space import LabelSpace
from recame.pages.drawing import save_figure
from recame.reports.confusion import MOST_DRAWN, confusion_figure
from recame.reports.markdown import report_markdown
from recame.reports.report_page import report_html
from recame.reports.run_report import RunReport

if TYPE_CHECKING:
    from recame.metrics.evaluation import Evaluation

_ADVICE = "Free some space, or choose a folder that you may write to."


class ReportFiles(NamedTuple):
    """Where a report lies.

    Attributes:
        html: the page.
        markdown: its summary.
        json: all numbers, with a schema version.
    """

    html: Path
    markdown: Path
    json: Path


def write_report(report: RunReport, folder: Path) -> ReportFiles:
    """Write `report.html`, `report.md` and `report.json`.

    Everything is drawn before anything is written, and takes its name when all is on disk.

    Args:
        report: what to tell.
        folder: made when missing.

    Raises:
        DataError: the folder cannot be written, or the disk is full; an old report survives.
    """
    files = ReportFiles(*(folder / f"report.{suffix}" for suffix in ("html", "md", "json")))
    texts = (report_html(report), report_markdown(report), json_text(report.to_dict()))
    with write_together(folder, advice=_ADVICE) as partial:
        for path, text in zip(files, texts, strict=True):
            (partial / path.name).write_text(text, encoding="utf-8")
    return files


def save_evaluation(evaluation: Evaluation, folder: Path, label_space: LabelSpace) -> None:
    """Write `confusion.csv`, `confusion.png` (of at most `MOST_DRAWN` classes) and `per_class.csv`.

    Args:
        evaluation: what to write.
        folder: made when missing.
        label_space: gives the order of the picture.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    names = pd.Index(evaluation.names, name="is \\ called")
    confusion = pd.DataFrame(evaluation.confusion, index=names, columns=list(evaluation.names))
    with write_together(folder, advice=_ADVICE) as partial:
        confusion.to_csv(partial / "confusion.csv")
        evaluation.per_class.to_csv(partial / "per_class.csv", index=False)
        if len(evaluation.names) <= MOST_DRAWN:
            save_figure(confusion_figure(evaluation, label_space), partial / "confusion.png")
