"""Model + data -> predictions -> numbers and pictures."""

from __future__ import annotations

from recame.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from recame.evaluation.figures import confusion_figure, save_evaluation
from recame.evaluation.inference import (
    BatchForward,
    predict_cached,
    predict_groups,
    predict_split,
)
from recame.evaluation.metrics import Evaluation, evaluate_predictions
from recame.evaluation.predictions import (
    check_suffix,
    load_predictions,
    predictions_table,
    save_predictions,
)
from recame.evaluation.statistics import Estimate, bootstrap_intervals, wilson_interval

__all__ = [
    "BatchForward",
    "Estimate",
    "Evaluation",
    "bootstrap_intervals",
    "check_suffix",
    "confusion_figure",
    "evaluate_predictions",
    "expected_calibration_error",
    "fit_temperature",
    "load_predictions",
    "predict_cached",
    "predict_groups",
    "predict_split",
    "predictions_table",
    "reliability_bins",
    "save_evaluation",
    "save_predictions",
    "wilson_interval",
]
