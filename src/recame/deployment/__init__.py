"""Checkpoint -> bundle -> predictions, which need no torch.

The names below are loaded when they are first used, so that a runtime imports only what it runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recame.deployment.bundle import Bundle, is_bundle, open_bundle
    from recame.deployment.runtime import Prediction, Predictor, load
    from recame.deployment.streaming import PredictionSummary, predict, predict_files

_HOME = {
    "Bundle": "bundle",
    "Prediction": "runtime",
    "PredictionSummary": "streaming",
    "Predictor": "runtime",
    "is_bundle": "bundle",
    "load": "runtime",
    "open_bundle": "bundle",
    "predict": "streaming",
    "predict_files": "streaming",
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
        raise AttributeError(f"module 'recame.deployment' has no attribute {name!r}")
    value: object = getattr(import_module(f"recame.deployment.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
