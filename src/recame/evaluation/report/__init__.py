"""One report of a run on one split: a page, a Markdown summary, and all numbers as JSON."""

from __future__ import annotations

from recame.evaluation.report.comparison import Comparison, compare_predictions
from recame.evaluation.report.content import (
    REPORT_SCHEMA,
    Baseline,
    RunFacts,
    RunReport,
    Setting,
    build_report,
)
from recame.evaluation.report.evidence import Evidence, gather_evidence
from recame.evaluation.report.files import ReportFiles, write_report
from recame.evaluation.report.paired import Difference

__all__ = [
    "REPORT_SCHEMA",
    "Baseline",
    "Comparison",
    "Difference",
    "Evidence",
    "ReportFiles",
    "RunFacts",
    "RunReport",
    "Setting",
    "build_report",
    "compare_predictions",
    "gather_evidence",
    "write_report",
]
