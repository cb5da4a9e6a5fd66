"""A finished run of which one file is not as it was: verbs refuse it, none answers by the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import recame
from recame.errors import CheckpointError, ConfigError, ReportError
from recame.files import read_json, write_json
from recame.runs.folder import RunFolder
from recame.training.train import train


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def drop_last_row(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def test_a_manifest_that_is_cut_between_two_rows_is_not_judged(run: Path) -> None:
    drop_last_row(run / "manifest.csv")
    for verb in (recame.evaluate, recame.report):
        with pytest.raises(
            CheckpointError, match=r"manifest\.csv cannot be used .*evaluate the run on"
        ):
            verb(run)
    assert not (run / "evaluation").exists()


def test_other_images_are_judged_without_it_and_the_report_says_so(
    run: Path, defects_table: Path
) -> None:
    drop_last_row(run / "manifest.csv")
    judged = recame.evaluate(run, defects_table)
    told = json.loads((judged.folder / "report.json").read_text("utf-8"))["remarks"]
    assert any("manifest.csv cannot be used" in remark for remark in told)


@pytest.mark.parametrize("kept", [0, 30])
def test_classes_that_are_torn_answer_nothing(kept: int, run: Path, defects: Path) -> None:
    path = run / "label_space.json"
    path.write_bytes(path.read_bytes()[:kept])
    asks: list[Callable[[], object]] = [
        lambda: recame.load(run),
        lambda: recame.predict(run, [defects], out=run / "table.csv"),
        lambda: recame.evaluate(run),
    ]
    for ask in asks:
        with pytest.raises(CheckpointError, match=r"label_space\.json cannot be .*or remove it"):
            ask()
    path.unlink()
    assert len(recame.load(run).predict([defects / "ok" / "000.png"])) == 1


@pytest.mark.parametrize("name", ["history.csv", "environment.json", "phases.json"])
def test_a_report_does_not_leave_out_what_is_torn(name: str, run: Path) -> None:
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"{name} cannot be" in str(recame.evaluate(run).report_error)
    with pytest.raises(ReportError, match=rf"{name} cannot be .*remove it"):
        recame.report(run)
    path.unlink()
    recame.report(run)


def unfinished(run: Path) -> RunFolder:
    """As if it had been interrupted."""
    info = read_json(run / "run.json")
    write_json(run / "run.json", {**info, "state": "training"})
    return RunFolder.open(run)


def test_another_precision_is_not_gone_on_with(run: Path, defects: Path) -> None:
    path = unfinished(run).path / "config.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count("precision: '32'") == 1
    path.write_text(text.replace("precision: '32'", "precision: bf16"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"began with run\.precision=32.*now says bf16"):
        train(defects, out=run, resume=True)
    assert RunFolder.open(run).state == "training"


def test_a_history_that_is_torn_is_not_gone_on_with(run: Path, defects: Path) -> None:
    drop_last_row(unfinished(run).history_path)
    with pytest.raises(CheckpointError, match=r"history\.csv cannot be used .*or remove it"):
        train(defects, out=run, resume=True)


def test_a_manifest_is_made_anew_by_a_run_that_goes_on(run: Path, defects: Path) -> None:
    whole = (run / "manifest.csv").read_bytes()
    drop_last_row(unfinished(run).manifest_path)
    train(defects, out=run, resume=True)
    assert (run / "manifest.csv").read_bytes() == whole
    recorded = pd.read_csv(run / "manifest.csv")
    assert len(recame.evaluate(run).predictions) == (recorded["split"] == "test").sum()
