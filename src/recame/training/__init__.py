"""The run, and only the run: plan, probe, fine-tune, keep; then evaluate, predict and report."""

from __future__ import annotations

from recame.training.finished_run import EvaluatedRun, evaluate, predict
from recame.training.fit import train
from recame.training.reporting import report
from recame.training.run_folder import RunFolder

__all__ = ["EvaluatedRun", "RunFolder", "evaluate", "predict", "report", "train"]
