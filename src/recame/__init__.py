"""recame: train, judge and deploy classifiers for rare defects.

The public names are loaded when they are first used, so that `import recame` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recame.config import Config, load_config
    from recame.contracts import ExpertOutput, LossResult, Predictions, PreprocessSpec
    from recame.errors import RecameError
    from recame.inspection import inspect_set
    from recame.label_space import LabelSpace
    from recame.losses import Objective
    from recame.models import MultiExpertClassifier
    from recame.reports.comparing import compare
    from recame.reports.evaluate import evaluate, report
    from recame.reports.monitoring import monitor
    from recame.reports.tuning import tune
    from recame.reports.verifying import verify
    from recame.runs.predictions import load_predictions
    from recame.runtime import load, predict
    from recame.training.student.distill import distill
    from recame.training.train import train

_HOMES = {
    "Config": "config",
    "load_config": "config",
    "ExpertOutput": "contracts",
    "LossResult": "contracts",
    "Predictions": "contracts",
    "PreprocessSpec": "contracts",
    "RecameError": "errors",
    "LabelSpace": "label_space",
    "Objective": "losses",
    "MultiExpertClassifier": "models",
    "compare": "reports.comparing",
    "distill": "training.student.distill",
    "evaluate": "reports.evaluate",
    "inspect_set": "inspection",
    "load": "runtime",
    "load_predictions": "runs.predictions",
    "monitor": "reports.monitoring",
    "predict": "runtime",
    "report": "reports.evaluate",
    "train": "training.train",
    "tune": "reports.tuning",
    "verify": "reports.verifying",
}

__all__ = [
    "Config",
    "ExpertOutput",
    "LabelSpace",
    "LossResult",
    "MultiExpertClassifier",
    "Objective",
    "Predictions",
    "PreprocessSpec",
    "RecameError",
    "compare",
    "distill",
    "evaluate",
    "inspect_set",
    "load",
    "load_config",
    "load_predictions",
    "monitor",
    "predict",
    "report",
    "train",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name == "__version__":
        from importlib.metadata import version

        return version("recame")
    if name not in _HOMES:
        raise AttributeError(f"module 'recame' has no attribute {name!r}")
    try:
        value = getattr(import_module(f"recame.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        from recame.errors import as_missing_dependency

        raise as_missing_dependency(error) from error
    globals()[name] = value
    return value
