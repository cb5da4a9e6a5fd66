"""Runs on sets in memory: trained, resumed, judged, inspected and predicted as from files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import recame
from recame.config import Config
from recame.errors import CheckpointError, ConfigError, DataError
from recame.runs.folder import RunFolder


@pytest.fixture(scope="module")
def table(defects_table: Path) -> pd.DataFrame:
    """The defects as a table in memory, with splits and products."""
    table = pd.read_csv(defects_table, dtype={"lot": str})
    table["image"] = [str(defects_table.parent / name) for name in table["image"]]
    return table


@pytest.fixture(scope="module")
def run(
    table: pd.DataFrame, tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    folder = tmp_path_factory.mktemp("given") / "run"
    return recame.train(table, tiny_settings, epochs=1, normal="ok", out=folder)


def test_a_table_in_memory_is_kept_with_the_run(run: RunFolder, table: pd.DataFrame) -> None:
    assert run.source.parent == run.path
    assert run.source.suffix == ".parquet"
    manifest = pd.read_csv(run.path / "manifest.csv", dtype={"lot": str})
    assert manifest["lot"].tolist() == table["lot"].tolist()
    assert manifest["split"].tolist() == table["split"].tolist()
    assert str(run) == str(run.path)


def test_an_interrupted_run_goes_on_without_its_table(
    table: pd.DataFrame,
    run: RunFolder,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recame.training.train.run_finetune", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recame.train(table, tiny_settings, epochs=1, normal="ok", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="leave epochs out"):
        recame.train(out=tmp_path / "run", resume=True, epochs=2)
    resumed = recame.train(out=tmp_path / "run", resume=True)
    assert resumed.finished
    assert resumed.weights_sha256() == run.weights_sha256()


def test_another_run_takes_the_images_of_one(
    run: RunFolder, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    short = {**tiny_settings, "finetune.enabled": False}
    second = recame.train(run, short, out=tmp_path / "second", normal="ok")
    splits = [pd.read_csv(each.path / "manifest.csv")["split"].tolist() for each in (run, second)]
    assert splits[0] == splits[1]


def test_judged_on_pairs_and_drawn_again(
    run: RunFolder, table: pd.DataFrame, tmp_path: Path
) -> None:
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    pairs = list(zip(table["image"][::3], table["label"][::3], strict=True))
    result = recame.evaluate(copy, pairs, name="pairs", report=False, device="cpu")
    assert result.evaluation.num_images == len(pairs) == 34
    assert str(result).startswith("pairs: 34 images of 4 classes")
    assert result.to_frame().loc["escape_rate", "value"] == result.evaluation["escape_rate"].value
    assert len(result.predictions_frame()) == 34
    assert len(result.plot().axes) >= 2
    page = recame.report(copy, "pairs").html
    assert "34 images" in page.read_text(encoding="utf-8")
    again = recame.evaluate(copy, pairs, report=False)  # called by its content
    assert again.split.startswith("given-")
    judged = json.loads((copy.path / "evaluation" / "pairs" / "judged.json").read_text())
    assert judged["settings"] == {"run.accelerator": "cpu"}


def test_inspected_and_predicted(run: RunFolder, table: pd.DataFrame, tmp_path: Path) -> None:
    found = recame.inspect(table, decode=False, normal="ok", data={"data.group_by": "lot"})
    assert str(found).startswith("table: 102 images of 4 classes\n  ")
    assert set(found.to_frame()["level"]) <= {"bad", "warn", "note", "good"}
    assert len(found.plot().axes[0].patches) == 4
    summary = recame.predict(run, table, out=tmp_path / "found.csv")
    assert summary.num_images == len(summary.to_frame()) == 102
    assert summary.to_frame()["lot"].tolist() == table["lot"].tolist()
    assert recame.predict(run, run, out=tmp_path / "own.csv").num_images == 102
    with pytest.raises(ConfigError, match=r"finetune\.lr has no effect on an inspection"):
        recame.inspect(table, data={"finetune.lr": 1})


def test_a_run_gets_a_name(
    table: pd.DataFrame,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = recame.train(table, {**tiny_settings, "finetune.enabled": False})
    assert run.path.parent == Path("runs")
    assert run.path.name.startswith("table-20")


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        ({"imgsz": 64}, ConfigError, "give size=128"),
        ({"epcohs": 3}, ConfigError, "did you mean epochs"),
        ({"data": None}, DataError, "No data given"),
        ({"data": [("a.png", "ok")]}, DataError, "only one class"),
        ({"out": None, "resume": True}, ConfigError, "add out=RUN"),
        ({"resume": True}, CheckpointError, "holds no run"),
        ({"config": 3}, ConfigError, "of type int are not accepted"),
    ],
)
def test_what_is_wrong_leaves_nothing(
    table: pd.DataFrame,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    words: dict[str, Any],
    error: type[Exception],
    told: str,
) -> None:
    given = {"data": table, "config": tiny_config(), "out": tmp_path / "run", **words}
    with pytest.raises(error, match=told):
        recame.train(**given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "settings", "error"),
    [
        ({"split": "test"}, {}, "Training never sees 'scratch'"),
        ({}, {"normal": "fine"}, "'fine'"),
        ({"label": None}, {}, "no 'label'"),
    ],
    ids=["a class only in test", "no such normal class", "a label is missing"],
)
def test_what_cannot_be_learnt_is_refused_before_time_is_spent(
    table: pd.DataFrame,
    change: dict[str, object],
    settings: dict[str, Any],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spent(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded")

    for place in ("recame.training.begin.settle_size", "recame.data.dataset.propose_spec"):
        monkeypatch.setattr(place, spent)
    table = table.copy()
    for column, value in change.items():
        table.loc[table["label"] == "scratch", column] = value
    with pytest.raises((ConfigError, DataError), match=error):
        recame.train(table, **settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
