"""Reports a run to experiment trackers: CSV, TensorBoard, MLflow, Weights & Biases, or your own.

All have the interface of Lightning's loggers. Fine-tuning writes its losses itself; this module
adds the settings, the other phases, the final figures and the report.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recame.errors import MissingDependencyError
from recame.files import read_json
from recame.runs.folder import RunFolder

if TYPE_CHECKING:
    from recame.config import Config

log = logging.getLogger(__name__)

#: Name in `run.loggers` -> the package that it needs, which is its extra's name too.
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
#: How to get a tracker's identity of the run, for later verbs; getting it begins the run there.
_IDENTITIES: dict[str, Callable[[Any], str]] = {
    "mlflow": lambda logger: str(logger.run_id),
    "wandb": lambda logger: str(logger.experiment.id),
}


class Trackers:
    """The trackers of a run; after an error a tracker is left out, with a warning.

    Args:
        loggers: of Lightning's interface.
    """

    def __init__(self, loggers: Sequence[Any] = ()) -> None:
        self.loggers = list(loggers)

    def settings(self, config: Config) -> None:
        """Report the hyperparameters, by their dotted names."""
        values = flat(config.model_dump(mode="json"))
        self._each(lambda logger: logger.log_hyperparams(values))

    def figures(self, values: Mapping[str, object], step: int = 0) -> None:
        """Report numbers; other values are left out."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if numbers:
            self._each(lambda logger: logger.log_metrics(numbers, step=step))

    def losses_of(self, phase: str) -> Callable[[int, float], None] | None:
        """The function to which a phase without a trainer reports losses; None without trackers."""
        if not self.loggers:
            return None
        return lambda step, loss: self.figures({f"{phase}/loss": loss}, step)

    def artifact(self, path: Path) -> None:
        """Give a file to the trackers that keep files."""
        if path.exists():
            self._each(lambda logger: _keep(logger, path))

    def close(self, status: str = "success") -> None:
        """Write what is left."""
        self._each(lambda logger: logger.save())
        self._each(lambda logger: logger.finalize(status))

    def _each(self, tell: Any) -> None:
        for logger in list(self.loggers):
            try:
                tell(logger)
            except Exception as error:  # noqa: BLE001 - no tracker may end hours of training
                self.loggers.remove(logger)
                _warn(type(logger).__name__, error)


def _warn(name: str, error: Exception) -> None:
    words = " ".join(str(error).split())[:200]
    log.warning(
        "%s failed (%s: %s): the run continues without it.", name, type(error).__name__, words
    )


def named_loggers(config: Config) -> tuple[str, ...]:
    """The trackers that `run.loggers` and `run.tensorboard` name, each once."""
    settings = config.run
    return tuple(dict.fromkeys([*settings.loggers, *["tensorboard"] * settings.tensorboard]))


def check_trackers(config: Config) -> None:
    """Refuse a tracker whose package is not installed, before anything is trained.

    Raises:
        MissingDependencyError: a package is missing; names it and the command that installs it.
    """
    from importlib.util import find_spec

    for name in named_loggers(config):
        package = _PACKAGES.get(name)
        if package is not None and find_spec(package) is None:
            setting = "tensorboard=true" if name not in config.run.loggers else f"loggers=[{name}]"
            raise MissingDependencyError(package, name, f"for run.{setting}")


@contextmanager
def tracking(folder: RunFolder, config: Config, others: Sequence[Any] = ()) -> Iterator[Trackers]:
    """Give the run's trackers, open for a block; a later block continues the same records.

    Args:
        folder: folder of the run; its `run.json` keeps the trackers' identities of the run.
        config: settings of the run.
        others: the user's own loggers, which stay open.
    """
    noted = folder.info().get("trackers", {})
    theirs = _wandb_run()
    own, found = [], dict(noted)
    for name in named_loggers(config):
        try:
            logger = _made(name, folder.path, noted.get(name))
            if name in _IDENTITIES:
                found[name] = _IDENTITIES[name](logger)
        except Exception as error:  # noqa: BLE001 - as above: a server that does not answer, say
            _warn(name, error)
        else:
            own.append(logger)
    if found != noted:
        folder.mark(folder.state, trackers=found)
    trackers, status = Trackers([*own, *others]), "failed"
    try:
        yield trackers
        status = "success"
    finally:
        trackers.close(status)
        # Left open, it would take what the next run of this process tells.
        if (opened := _wandb_run()) is not None and opened is not theirs:
            opened.finish(exit_code=int(status != "success"))


def _wandb_run() -> Any:
    """The run of Weights & Biases that this process has open, if any."""
    return getattr(sys.modules.get("wandb"), "run", None)


def final_figures(split: str, judged: Mapping[str, Any]) -> dict[str, float]:
    """The headline numbers of a split, as `metrics.json` has them.

    Examples:
        >>> final_figures("val", {"macro_f1": {"value": 0.5, "low": 0.4}, "worst_class": "dent"})
        {'val/macro_f1': 0.5}
    """
    return {
        f"{split}/{name}": float(value["value"])
        for name, value in judged.items()
        if isinstance(value, Mapping) and isinstance(value.get("value"), int | float)
    }


def track_evaluation(
    folder: RunFolder, config: Config, name: str, report: Path | None = None
) -> None:
    """Report the figures of a split's evaluation to the trackers in a run's settings.

    Args:
        folder: folder of the run; its `metrics.json` holds the figures.
        config: settings of the run.
        name: name of the split, as `evaluate` keeps it.
        report: the report page, if it was drawn.
    """
    if not named_loggers(config):
        return
    check_trackers(config)
    with tracking(folder, config) as trackers:
        trackers.figures(final_figures(name, read_json(folder.path / "metrics.json")[name]))
        if report is not None:
            trackers.artifact(report)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted names.

    Examples:
        >>> flat({"model": {"stages": 0, "regions": [2, 2]}})
        {'model.stages': 0, 'model.regions': '[2, 2]'}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            plain = isinstance(value, str | int | float) or value is None
            found[f"{before}{name}"] = value if plain else str(value)
    return found


def _made(name: str, run: Path, identity: str | None) -> Any:
    from lightning.pytorch import loggers

    if name == "csv":
        return loggers.CSVLogger(run, name="csv")
    if name == "tensorboard":
        return loggers.TensorBoardLogger(save_dir=run, name="tensorboard", version="")
    if name == "mlflow":
        place, own = os.environ.get("MLFLOW_TRACKING_URI"), run.resolve()
        return loggers.MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "recame"),
            run_name=own.name,
            # A database: MLflow refuses plain folders since 3.
            tracking_uri=place or f"sqlite:///{(own / 'mlflow.db').as_posix()}",
            artifact_location=None if place else (own / "mlartifacts").as_uri(),
            run_id=identity,
        )
    assert name == "wandb"
    return loggers.WandbLogger(
        project=os.environ.get("WANDB_PROJECT", "recame"),
        name=run.resolve().name,
        save_dir=run,
        id=identity,
        resume="allow",
    )


def _keep(logger: Any, path: Path) -> None:
    """Of those that can: MLflow's client, the run of Weights & Biases, or what is like them."""
    client = logger.experiment
    if hasattr(client, "log_artifact") and hasattr(logger, "run_id"):
        client.log_artifact(logger.run_id, str(path))
    elif hasattr(client, "log_artifact"):
        client.log_artifact(str(path), name=path.stem, type="report")
