"""A report on disk: three files, all of them or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from recame.errors import DataError
from recame.label_space import LabelSpace
from recame.pages.drawing import save_figure
from recame.reports.confusion import MOST_DRAWN, confusion_figure

if TYPE_CHECKING:
    from recame.metrics.evaluation import Evaluation

import contextlib
import json
import os
from typing import NamedTuple

from recame.reports.markdown import report_markdown
from recame.reports.report_page import report_html
from recame.reports.run_report import RunReport


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
    texts = (
        report_html(report),
        report_markdown(report),
        json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    partials = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for partial, text in zip(partials, texts, strict=True):
            partial.write_text(text, encoding="utf-8")
        for partial, path in zip(partials, files, strict=True):
            partial.replace(path)
    except OSError as error:
        raise DataError(
            f"The report cannot be written to {folder} ({error.strerror or error}). "
            "Free some space, or make the folder writable."
        ) from error
    finally:
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        confusion.to_csv(folder / "confusion.csv")
        evaluation.per_class.to_csv(folder / "per_class.csv", index=False)
        if len(evaluation.names) <= MOST_DRAWN:
            save_figure(confusion_figure(evaluation, label_space), folder / "confusion.png")
    except OSError as error:
        raise DataError(
            f"The evaluation cannot be written to {folder} ({error.strerror or error}). "
            "Free some space, or choose another folder."
        ) from error
