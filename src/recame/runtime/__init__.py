"""Predict with a bundle or a run; a bundle needs no torch.

The names below are loaded when they are first used, so that only what is needed is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recame.runtime.bundle import Bundle, is_bundle, open_bundle
    from recame.runtime.opening import load
    from recame.runtime.predicting_files import predict, predict_files
    from recame.runtime.prediction import Prediction
    from recame.runtime.prediction_summary import PredictionSummary
    from recame.runtime.predictor import Predictor

_HOME = {
    "Bundle": "bundle",
    "Prediction": "prediction",
    "PredictionSummary": "prediction_summary",
    "Predictor": "predictor",
    "is_bundle": "bundle",
    "load": "opening",
    "open_bundle": "bundle",
    "predict": "predicting_files",
    "predict_files": "predicting_files",
}

__all__ = [
    "Bundle",
    "Prediction",
    "PredictionSummary",
    "Predictor",
    "is_bundle",
    "load",
    "open_bundle",
    "predict",
    "predict_files",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'recame.runtime' has no attribute {name!r}")
    value: object = getattr(import_module(f"recame.runtime.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
