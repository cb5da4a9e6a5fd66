"""recame: train, evaluate and deploy classifiers for rare defects.

Public names are loaded at their first use, so that `import recame` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recame.bench.command import Request as BenchRequest
    from recame.bench.command import run_bench
    from recame.config import Config, load_config
    from recame.contracts import ExpertOutput, LossResult, Predictions, PreprocessSpec
    from recame.datasets.generated import SyntheticSpec
    from recame.datasets.generated import write as synth
    from recame.decisions.limits import Limits
    from recame.decisions.tuned import Tuned
    from recame.errors import RecameError
    from recame.export.export import export as export_bundle
    from recame.inspection import Inspection, inspect_set
    from recame.inspection import inspect_set as inspect
    from recame.label_space import LabelSpace
    from recame.losses import Objective
    from recame.metrics.evaluation import Evaluation
    from recame.metrics.from_arrays import evaluate_probabilities
    from recame.models import Architecture, MultiExpertClassifier
    from recame.reports.comparing import compare
    from recame.reports.evaluate import evaluate, report
    from recame.reports.monitoring import monitor
    from recame.reports.tuning import tune
    from recame.reports.verifying import verify
    from recame.runs.folder import RunFolder
    from recame.runs.predictions import load_predictions
    from recame.runtime import Bundle, Prediction, PredictionSummary, Predictor, load, predict
    from recame.runtime.latency import LatencyReport, measure_latency
    from recame.training.student.distill import distill
    from recame.training.train import train

    __version__: str

#: Public name -> where it lies, and what it is called there if not the same.
_HOMES = {
    "Architecture": "models",
    "BenchRequest": "bench.command:Request",
    "Bundle": "runtime",
    "Config": "config",
    "Evaluation": "metrics.evaluation",
    "ExpertOutput": "contracts",
    "Inspection": "inspection",
    "LabelSpace": "label_space",
    "LatencyReport": "runtime.latency",
    "Limits": "decisions.limits",
    "LossResult": "contracts",
    "MultiExpertClassifier": "models",
    "Objective": "losses",
    "Prediction": "runtime",
    "PredictionSummary": "runtime",
    "Predictions": "contracts",
    "Predictor": "runtime",
    "PreprocessSpec": "contracts",
    "RecameError": "errors",
    "RunFolder": "runs.folder",
    "SyntheticSpec": "datasets.generated",
    "Tuned": "decisions.tuned",
    "compare": "reports.comparing",
    "distill": "training.student.distill",
    "evaluate": "reports.evaluate",
    "evaluate_probabilities": "metrics.from_arrays",
    "export_bundle": "export.export:export",
    "inspect": "inspection:inspect_set",
    "inspect_set": "inspection",
    "load": "runtime",
    "load_config": "config",
    "load_predictions": "runs.predictions",
    "measure_latency": "runtime.latency",
    "monitor": "reports.monitoring",
    "predict": "runtime",
    "report": "reports.evaluate",
    "run_bench": "bench.command",
    "synth": "datasets.generated:write",
    "train": "training.train",
    "tune": "reports.tuning",
    "verify": "reports.verifying",
}

__all__ = [
    "Architecture",
    "BenchRequest",
    "Bundle",
    "Config",
    "Evaluation",
    "ExpertOutput",
    "Inspection",
    "LabelSpace",
    "LatencyReport",
    "Limits",
    "LossResult",
    "MultiExpertClassifier",
    "Objective",
    "Prediction",
    "PredictionSummary",
    "Predictions",
    "Predictor",
    "PreprocessSpec",
    "RecameError",
    "RunFolder",
    "SyntheticSpec",
    "Tuned",
    "compare",
    "distill",
    "evaluate",
    "evaluate_probabilities",
    "export_bundle",
    "inspect",
    "inspect_set",
    "load",
    "load_config",
    "load_predictions",
    "measure_latency",
    "monitor",
    "predict",
    "report",
    "run_bench",
    "synth",
    "train",
    "tune",
    "verify",
]

if not TYPE_CHECKING:  # to a type checker a misspelt name is none

    def __getattr__(name: str) -> object:
        """Load a public name from its home."""
        from importlib import import_module

        if name == "__version__":
            from importlib.metadata import version

            return version("recame")
        if name not in _HOMES:
            from recame.peers import way_of

            way = way_of(name)
            told = "" if way is None else f". In recame: {way}"
            # Python itself tells the nearest of `__dir__`.
            raise AttributeError(f"module 'recame' has no attribute {name!r}{told}")
        home, _, there = _HOMES[name].partition(":")
        try:
            value = getattr(import_module(f"recame.{home}"), there or name)
        except ModuleNotFoundError as error:
            from recame.errors import as_missing_dependency

            raise as_missing_dependency(error, f"recame.{name}") from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The public names, whether or not they have been used."""
    return sorted({*globals(), *__all__, "__version__"})
