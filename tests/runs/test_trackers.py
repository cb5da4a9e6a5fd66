"""Trackers are told of a run, keep its files where they can, and end no training."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from recame.config import Config
from recame.errors import MissingDependencyError
from recame.reports.evaluate import evaluate
from recame.runs import trackers
from recame.runs.folder import RunFolder
from recame.runs.trackers import Trackers, check_trackers
from recame.training.train import train


class Told(Logger):
    """Remembers what it is told, and keeps files as MLflow's does."""

    run_id = "r1"

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.figures: dict[str, list[tuple[int, float]]] = {}
        self.files: list[str] = []
        self.ended: list[str] = []
        keep = lambda run, path: self.files.append(f"{run}/{Path(path).name}")  # noqa: E731
        self.experiment = SimpleNamespace(log_artifact=keep)

    name, version = "told", "0"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.settings |= dict(params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.figures.setdefault(name, []).append((step or 0, value))

    def finalize(self, status: str) -> None:
        self.ended.append(status)


class Failing(Told):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        raise ConnectionError("no answer")


class Epochs(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.count += 1


def test_a_run_is_told_whole(
    defects: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, epochs, lightning = Told(), Epochs(), logging.getLogger("lightning.pytorch")
    level, filters = lightning.level, list(warnings.filters)
    with caplog.at_level(logging.INFO, logger="recame"):
        names = ["csv", "tensorboard"]
        config = tiny_config(run__loggers=names)
        run = train(defects, config, out=tmp_path / "run", logger=told, callbacks=[epochs]).path
    assert (lightning.level, warnings.filters) == (level, filters)
    assert epochs.count == 2
    assert told.settings["model.backbone"] == "test_resnet"
    phases = {"probe/loss", "loss_epoch", "val/balanced_accuracy", "val/macro_f1"}
    assert phases <= told.figures.keys()
    assert "finetune/val_balanced_accuracy" in told.figures
    assert len(told.figures["loss_epoch"]) == 2
    assert {"r1/config.yaml", "r1/history.csv"} == set(told.files)
    assert told.ended[-1] == "success"
    assert any("balanced accuracy on val" in record.message for record in caplog.records)
    written = pd.read_csv(run / "csv" / "version_0" / "metrics.csv")
    assert written["val/macro_f1"].dropna().tolist() == [told.figures["val/macro_f1"][-1][1]]
    assert list((run / "tensorboard").glob("events.*"))
    judged = evaluate(run, report=False).evaluation.headline["balanced_accuracy"].value
    later = pd.read_csv(run / "csv" / "version_1" / "metrics.csv")
    assert later["test/balanced_accuracy"].tolist() == pytest.approx([judged])


def test_one_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    both = Trackers([Failing(), told])
    both.figures({"a": 1, "b": "no number"}, step=3)
    both.figures({"a": 2})
    assert told.figures == {"a": [(3, 1.0), (0, 2.0)]}
    assert "Failing failed (ConnectionError: no answer)" in caplog.text


def test_one_that_cannot_be_made_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def made(name: str, *_: object) -> Any:
        if name == "mlflow":
            raise ConnectionError("no server there")
        return SimpleNamespace(experiment=SimpleNamespace(id="w1"), save=bool, finalize=bool)

    monkeypatch.setattr(trackers, "_made", made)
    marked: dict[str, Any] = {}
    folder: Any = SimpleNamespace(
        path=tmp_path,
        state="running",
        info=lambda: {"trackers": {"mlflow": "m1"}},
        mark=lambda state, **facts: marked.update(facts),
    )
    config = Config().updated({"run.loggers": ["mlflow", "wandb"]})
    with trackers.tracking(folder, config) as told:
        assert len(told.loggers) == 1
    assert marked == {"trackers": {"mlflow": "m1", "wandb": "w1"}}
    assert "mlflow failed (ConnectionError: no server there)" in caplog.text


def test_files_go_to_those_that_keep_them(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("<p>", encoding="utf-8")
    kept: list[tuple[str, dict[str, str]]] = []

    def log_artifact(path: str, **words: str) -> None:
        kept.append((Path(path).name, words))

    weights_and_biases = SimpleNamespace(experiment=SimpleNamespace(log_artifact=log_artifact))
    Trackers([weights_and_biases, SimpleNamespace(experiment=object())]).artifact(path)
    assert kept == [("report.html", {"name": "report", "type": "report"})]


def test_a_missing_tracker_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
    defects: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("mlflow", "wandb"):
        with pytest.raises(MissingDependencyError, match=rf"pip install 'recame\[{name}\]'"):
            check_trackers(Config().updated({"run.loggers": [name]}))
    with pytest.raises(MissingDependencyError, match=r"run\.tensorboard=true"):
        train(defects, tiny_config(run__tensorboard=True), out=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").path.exists()
