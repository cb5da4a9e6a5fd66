"""The run, and only the run: plan, probe, fine-tune, keep; evaluate, report, distil."""

from __future__ import annotations

from recame.training.distill import distill
from recame.training.finished_run import EvaluatedRun, evaluate
from recame.training.fit import train
from recame.training.reporting import report
from recame.training.run_folder import RunFolder

__all__ = ["EvaluatedRun", "RunFolder", "distill", "evaluate", "report", "train"]
