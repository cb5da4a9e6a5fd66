"""Runs are told to MLflow and to Weights & Biases themselves, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recame
from recame.config import Config
from recame.files import read_json

pytestmark = pytest.mark.slow


def test_mlflow_keeps_settings_figures_and_files(
    defects: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mlflow", reason="recame[mlflow] is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run = recame.train(defects, tiny_config(run__loggers=["mlflow"]), out=tmp_path / "run")
    found = recame.evaluate(run)
    client = MlflowClient(f"sqlite:///{(tmp_path / 'run' / 'mlflow.db').as_posix()}")
    (kept,) = client.search_runs([client.get_experiment_by_name("recame").experiment_id])
    assert kept.info.run_id == run.info()["trackers"]["mlflow"]
    assert (kept.info.run_name, kept.info.status) == ("run", "FINISHED")
    assert kept.data.params["model.backbone"] == "test_resnet"
    assert len(client.get_metric_history(kept.info.run_id, "loss_epoch")) == 2
    headline = found.evaluation.headline["balanced_accuracy"].value
    assert kept.data.metrics["test/balanced_accuracy"] == pytest.approx(headline)
    files = {file.path for file in client.list_artifacts(kept.info.run_id)}
    assert files == {"config.yaml", "history.csv", "report.html"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing where it was called


def test_weights_and_biases_keeps_each_run_apart(
    defects: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wandb = pytest.importorskip("wandb", reason="recame[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    settings = tiny_config(run__loggers=["wandb"])
    told: list[dict[str, Any]] = []
    log = wandb.Run.log

    def noted(self: Any, data: dict[str, Any], *args: Any, **words: Any) -> Any:
        told.append({"id": self.id, **data})
        return log(self, data, *args, **words)

    monkeypatch.setattr(wandb.Run, "log", noted)
    runs = [recame.train(defects, settings, out=tmp_path / name) for name in ("a", "b")]
    assert wandb.run is None
    found = recame.evaluate(runs[0])
    identities = [run.info()["trackers"]["wandb"] for run in runs]
    assert len({*identities, "None"}) == 3
    headline = found.evaluation.headline["balanced_accuracy"].value
    (row,) = [row for row in told if "test/balanced_accuracy" in row]
    assert (row["id"], row["test/balanced_accuracy"]) == (identities[0], pytest.approx(headline))
    for identity in identities:
        assert len([row for row in told if row["id"] == identity and "loss_epoch" in row]) == 2
    (written,) = (tmp_path / "b" / "wandb").glob(f"offline-run-*-{identities[1]}")
    assert (written / f"run-{identities[1]}.wandb").stat().st_size > 10_000
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]
    assert read_json(tmp_path / "a" / "run.json")["trackers"] == {"wandb": identities[0]}
