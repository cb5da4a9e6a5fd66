"""Corrected labels through the verbs: listed by the run, kept by resuming, judged, told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from recame.config import Config
from recame.errors import DataError
from recame.inspection import inspect_set
from recame.reports.evaluate import evaluate, report
from recame.runs.folder import RunFolder
from recame.training.train import train


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["image,label,corrected_label", *rows, ""]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corrected_run(
    defects_table: Path,
    tiny_config: Callable[..., Config],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunFolder, str]:
    """A run of the set with two labels corrected, one of `test`, and an image left out."""
    place = tmp_path_factory.mktemp("corrected")
    rows = ["defects/ok/000.png,ok,dent", "defects/ok/004.png,ok,dent", "defects/ok/001.png,ok,-"]
    path = write(place / "corrections.csv", rows)
    stream = io.StringIO()
    config = tiny_config(data__corrections=path, finetune__epochs=1)
    console = Console(file=stream, width=200)
    return train(defects_table, config, out=place / "run", console=console), stream.getvalue()


def test_a_run_lists_what_was_corrected(corrected_run: tuple[RunFolder, str]) -> None:
    run, told = corrected_run
    listed = pd.read_csv(run.path / "corrections.csv")
    assert listed["is"].tolist() == ["dent", "-", "dent"]
    assert listed["split"].tolist() == ["train", "train", "test"]
    assert "2 labels corrected and 1 image left out by" in told
    assert "1 image of them is in test" in told
    manifest = pd.read_csv(run.manifest_path).set_index("image")["label"]
    assert manifest["defects/ok/000.png"] == "dent"
    assert "defects/ok/001.png" not in manifest


def test_its_own_figures_are_of_the_corrected_labels(corrected_run: tuple[RunFolder, str]) -> None:
    run, _ = corrected_run
    found = evaluate(run.path)
    target = found.predictions.table.set_index("image")["label"]
    assert target["defects/ok/004.png"] == "dent"
    facts = json.loads((found.folder / "report.json").read_text(encoding="utf-8"))["made"]["facts"]
    assert facts["corrected labels"] == "3 (train 2, test 1; 1 of them left out; corrections.csv)"


def test_later_corrections_are_judged_beside_them(
    corrected_run: tuple[RunFolder, str], tmp_path: Path
) -> None:
    run, _ = corrected_run
    # With what the run has taken before, and an image that it has left out.
    rows = ["defects/ok/001.png,ok,-", "defects/ok/004.png,ok,dent", "defects/dent/004.png,,ok"]
    path = write(tmp_path / "later.csv", rows)
    found = evaluate(run.path, corrections=path, report=False)
    assert found.split == "test-corrected"
    listed = pd.read_csv(found.folder / "corrections.csv")
    assert listed.to_dict("list") == {
        "image": ["defects/dent/004.png"], "split": ["test"], "was": ["dent"], "is": ["ok"]
    }  # fmt: skip
    assert found.predictions.table.set_index("image")["label"]["defects/dent/004.png"] == "ok"
    page = report(run.path, split="test-corrected").html.read_text(encoding="utf-8")
    assert "dent/004.png" in page


def test_an_edited_table_is_other_data(
    defects_table: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    path = write(tmp_path / "c.csv", ["defects/ok/000.png,ok,dent"])
    config = tiny_config(data__corrections=path, finetune__epochs=1)
    run = train(defects_table, config, out=tmp_path / "run")
    run.mark("training")
    write(path, ["defects/ok/000.png,ok,scratch"])
    with pytest.raises(DataError, match="images have changed since"):
        train(defects_table, out=run.path, resume=True)


def test_an_inspection_takes_corrections_and_loses_none(
    defects_table: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "c.csv", ["defects/ok/000.png,ok,dent", "defects/ok/001.png,ok,-"])
    config = Config().updated({"data.corrections": path}).data
    found = inspect_set(defects_table, data=config, decode=False, out=tmp_path / "found")
    assert found.audit.num_images == 101
    (told,) = [finding for finding in found.findings() if "correction" in finding.title]
    assert (told.title, told.count) == ("2 corrections applied", 2)
    assert len(pd.read_csv(tmp_path / "found" / "corrections.csv")) == 2
    write(tmp_path / "found" / "suspects.csv", ["defects/ok/002.png,ok,dent"])
    with pytest.raises(DataError, match=r"suspects\.csv holds 1 correction, which this inspection"):
        inspect_set(defects_table, decode=False, out=tmp_path / "found")
