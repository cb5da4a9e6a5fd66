"""A table of boxes through every verb: each row an image of its own, from training to the line."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import recame
from recame.cli.app import app
from recame.config import Config
from recame.data.file_part import split_part
from recame.export.export import export
from recame.inspection import inspect_set
from recame.runtime import load
from recame.runtime.predicting_files import predict_files
from recame.training.student.distill import distill
from recame.training.train import train

#: Boards of 4 x 2 places; every class but the first is the mark of a place.
KINDS = ("ok", "scratch", "dent")
BOARDS, PITCH = 36, 48


def draw_board(kinds: list[int], rng: np.random.Generator) -> np.ndarray:
    """(2 * PITCH, 4 * PITCH) pixels."""
    image = rng.normal(120, 12, (2 * PITCH, 4 * PITCH))
    for place, kind in enumerate(kinds):
        top, left = (place // 4) * PITCH + 18, (place % 4) * PITCH + 18
        if kind == 1:
            image[top + 5 : top + 8, left : left + 12] = 250
        elif kind == 2:
            image[top : top + 12, left : left + 12] = 10
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 288 boxes on 36 boards; read only."""
    folder, rng = tmp_path_factory.mktemp("data") / "boards", np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["image,label,x,y,width,height,defect"]
    for number in range(BOARDS):
        kinds = rng.choice(3, 8, p=(0.6, 0.25, 0.15)).tolist()
        name = f"images/{number:02d}.png"
        Image.fromarray(draw_board(kinds, rng)).save(folder / name)
        for place, kind in enumerate(kinds):
            x, y = (place % 4) * PITCH + 18, (place // 4) * PITCH + 18
            # A few wrong labels, so that there are mistakes to show.
            label = KINDS[kind if (8 * number + place) % 11 else (kind + 1) % 3]
            lines.append(f"{name},{label},{x},{y},12,12,{8 * number + place}")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "boxes.csv"


@pytest.fixture(scope="module")
def run(
    boards: Path, tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    config = tiny_config(data__context=2.5, finetune__epochs=4, data__normal_class="ok")
    out = train(boards, config, out=tmp_path_factory.mktemp("boxes") / "run").path
    recame.evaluate(out)
    return out


def test_each_box_is_an_image_of_the_run(run: Path) -> None:
    manifest = pd.read_csv(run / "manifest.csv")
    assert len(manifest) == 288
    assert manifest["image"][0] == "images/00.png#xywh=18,18,12,12"
    assert manifest["defect"].tolist() == list(range(288))
    file = manifest["image"].map(lambda name: split_part(name)[0])
    assert manifest.groupby(file)["split"].nunique().max() == 1
    assert set(manifest["split"]) == {"train", "val", "test"}
    assert json.loads((run / "model.json").read_text())["preprocess"]["context"] == 2.5
    figures = json.loads((run / "metrics.json").read_text())["test"]
    # A whole board shows all kinds: only who sees the box can tell.
    assert figures["balanced_accuracy"]["value"] > 0.6
    predicted = pd.read_parquet(run / "evaluation" / "test" / "predictions.parquet")
    assert (
        predicted["image"].tolist() == manifest.loc[manifest["split"] == "test", "image"].tolist()
    )
    page = (run / "evaluation" / "test" / "report.html").read_text()
    assert re.search(r"images/\d\d\.png#xywh=\d+,\d+,12,12", page)


def answers(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_bundle_and_run_predict_a_table_row_by_row(
    run: Path, boards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export(run, tmp_path / "bundle", verify=boards)
    assert bundle.spec.context == 2.5
    monkeypatch.chdir(boards.parent)
    rows = boards.read_text().splitlines()
    mixed = ["image,x,y,width,height"]
    mixed += [",".join(np.array(row.split(","))[[0, 2, 3, 4, 5]]) for row in rows[40:0:-1]]
    mixed += ["images/03.png,,,,", "images/03.png,500,0,9,9"]
    (tmp_path / "some.csv").write_text("\n".join(mixed) + "\n")
    (tmp_path / "images").symlink_to(boards.parent / "images")
    tables = []
    for number, model in enumerate((run, bundle.path)):
        out = tmp_path / f"{number}.csv"
        summary = recame.predict(model, tmp_path / "some.csv", out=out)
        tables.append(answers(out))
        assert (summary.num_images, summary.num_unreadable) == (41, 1)
        [(name, reason)] = summary.unreadable
        assert name == f"{tmp_path}/images/03.png#xywh=500,0,9,9"
        assert reason.endswith("lies outside its 192 x 96 pixels")
    for found in tables:
        assert found[0]["image"] == "images/04.png#xywh=162,66,12,12"  # the table's order
        assert found[0]["path"] == f"{tmp_path}/images/04.png#xywh=162,66,12,12"
        assert found[40]["image"] == "images/03.png"
    labels = [row.split(",")[1] for row in rows[40:0:-1]]
    agreed = [row["prediction"] == label for row, label in zip(tables[1], labels, strict=False)]
    assert np.mean(agreed) > 0.6
    assert [row["prediction"] for row in tables[0]] == [row["prediction"] for row in tables[1]]
    # By name, without a table, and in memory.
    model = load(bundle.path)
    name = "images/03.png#xywh=18,18,12,12"
    [alone] = model.predict([name])
    by_table = model.predict([tmp_path / "some.csv"])
    same = next(found for found in by_table if str(found.image).endswith(name))
    np.testing.assert_allclose(alone.probabilities, same.probabilities, atol=1e-6)


def test_an_interrupted_prediction_goes_on_by_box(
    run: Path, boards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out.csv", load(run, batch_size=256)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(model, [boards], out, on_progress=stop)
    summary = predict_files(model, [boards], out)
    assert (summary.num_images, summary.num_resumed) == (288, 256)
    assert len({row["image"] for row in answers(out)}) == 288


@pytest.mark.slow
def test_the_line_s_machine_reads_tables_of_boxes(run: Path, boards: Path, tmp_path: Path) -> None:
    bundle = export(run, tmp_path / "bundle", verify=boards)
    renamed = boards.read_text().replace("image,label,x,y,width", "file,label,left,top,w", 1)
    (boards.parent / "renamed.csv").write_text(renamed)
    code = """
import sys
for missing in ("torch", "pandas", "pyarrow", "pydantic", "yaml", "sklearn", "matplotlib"):
    sys.modules[missing] = None
import recame
from recame.data.image_table import TableColumns
columns = TableColumns("file", ("left", "top", "w", "height"))
recame.predict(sys.argv[1], sys.argv[2], out=sys.argv[3], columns=columns)
"""
    words = [str(bundle.path), str(boards.parent / "renamed.csv")]
    subprocess.run([sys.executable, "-c", code, *words, str(tmp_path / "out.csv")], check=True)
    found = answers(tmp_path / "out.csv")
    assert len(found) == 288
    assert found[0]["image"] == "images/00.png#xywh=18,18,12,12"
    assert found[0]["path"] == f"{boards.parent}/images/00.png#xywh=18,18,12,12"
    options = ["--image-column", "file", "--box-columns", "left,top,w,height"]
    options += ["-o", str(tmp_path / "again.csv")]
    done = CliRunner().invoke(app, ["predict", *words, *options])
    assert done.exit_code == 0, done.output
    assert answers(tmp_path / "again.csv") == found


def test_a_student_learns_from_boxes(run: Path, boards: Path, tmp_path: Path) -> None:
    unlabelled = tmp_path / "more.csv"
    image = boards.parent / "images" / "00.png"
    unlabelled.write_text(f"image,x,y,width,height\n{image},40,40,20,20\n{image},90,40,20,20\n")
    changes = {"finetune.epochs": 1}
    student = distill(run, out=tmp_path / "s", unlabelled=[unlabelled], changes=changes)
    assert json.loads((student.path / "model.json").read_text())["preprocess"]["context"] == 2.5
    kept = pd.read_csv(student.path / "unlabelled.csv")["image"].tolist()
    assert kept == [f"{image}#xywh=40,40,20,20", f"{image}#xywh=90,40,20,20"]


@pytest.mark.slow
def test_inspection_tells_boxes_apart(boards: Path, tmp_path: Path) -> None:
    rows = boards.read_text().splitlines()
    twice = tmp_path / "twice.csv"
    (tmp_path / "images").symlink_to(boards.parent / "images")
    twice.write_text("\n".join([*rows, rows[1]]) + "\n")
    inspection = inspect_set(twice, out=tmp_path / "out")
    assert inspection.audit.num_images == 289
    assert inspection.audit.repeated["image"].tolist() == ["images/00.png#xywh=18,18,12,12"] * 2
    assert inspection.headers["height"].tolist() == [32] * 289
    assert inspection.equal["image"].tolist() == ["images/00.png#xywh=18,18,12,12"] * 2


def test_training_says_what_it_takes_for_boxes(
    boards: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    words = ["train", str(boards), "--out", str(tmp_path / "run"), *tiny_words]
    words += ["--set", "finetune.enabled=false", "--set", "probe.views=1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert "288 of them are boxes of 36 files, each seen in a square whose side is" in told
    assert re.search(r"features of \d+ images, 1 view each", told)
    done = CliRunner().invoke(app, ["predict", "m", "t.csv", "--box-columns", "a,b"])
    assert "--box-columns 'a,b' are not four names" in str(done.exception)
