"""A report on disk: three files, all of them or none."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from recame.errors import DataError
from recame.evaluation.report.content import RunReport
from recame.evaluation.report.markdown import report_markdown
from recame.evaluation.report.page import report_html


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
