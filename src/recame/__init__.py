"""recame: train, judge and deploy classifiers for rare defects.

The public names are loaded when they are first used, so that `import recame` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recame.config import Config
    from recame.config_files import load_config
    from recame.contracts import ExpertOutput, LossResult, Predictions, PreprocessSpec
    from recame.deployment import load, predict
    from recame.errors import RecameError
    from recame.evaluation.inspection import inspect_set
    from recame.label_space import LabelSpace
    from recame.losses import Objective
    from recame.models import MultiExpertClassifier
    from recame.training import evaluate, report, train
    from recame.training.distill import distill

_HOMES = {
    "Config": "config",
    "load_config": "config_files",
    "ExpertOutput": "contracts",
    "LossResult": "contracts",
    "Predictions": "contracts",
    "PreprocessSpec": "contracts",
    "RecameError": "errors",
    "LabelSpace": "label_space",
    "Objective": "losses",
    "MultiExpertClassifier": "models",
    "distill": "training",
    "evaluate": "training",
    "inspect_set": "evaluation.inspection",
    "load": "deployment",
    "predict": "deployment",
    "report": "training",
    "train": "training",
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
    "distill",
    "evaluate",
    "inspect_set",
    "load",
    "load_config",
    "predict",
    "report",
    "train",
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
