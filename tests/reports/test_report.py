from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import escape
from rich.console import Console

import recame
from recame.data.cache import BrokenImage
from recame.errors import CheckpointError, DataError, ReportError
from recame.inference.finished_run import images_to_judge, open_finished
from recame.models import load_checkpoint
from recame.progress import silent
from recame.reports.draw import run_facts
from recame.reports.evaluate import EvaluatedRun, report
from recame.reports.evidence import gather_evidence
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions
from recame.training.train import train


@pytest.fixture(scope="module")
def judged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluatedRun]:
    """An evaluated run, three of whose test images have a wrong label; read only."""
    run = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(finished, run)
    table = pd.read_csv(run / "manifest.csv")
    ok = table.index[(table["split"] == "test") & (table["label"] == "ok")]
    table.loc[ok[:3], "label"] = "hole"
    RunFolder(run).save_manifest(table)
    return run, recame.evaluate(run)


@pytest.fixture
def copied(judged: tuple[Path, EvaluatedRun], tmp_path: Path) -> Path:
    """A copy of the evaluated run, to be spoilt."""
    return Path(shutil.copytree(judged[0], tmp_path / "run"))


def numbers(run: Path, split: str = "test") -> dict:
    return json.loads((run / "evaluation" / split / "report.json").read_text("utf-8"))


def test_evaluate_ends_with_a_report_of_its_own_numbers(judged):
    run, evaluated = judged
    found = numbers(run)
    own = evaluated.evaluation.to_dict()
    assert found["evaluation"]["balanced_accuracy"] == own["balanced_accuracy"]
    page = (run / "evaluation" / "test" / "report.html").read_text("utf-8")
    for anchor in ("classes", "confusion", "confidence", "experts", "map", "gates", "made"):
        assert f'<section id="{anchor}">' in page
    assert "recame train" in page
    assert found["made"]["settings"]["run"]["seed"] == 0


def test_training_images_of_other_data_are_no_neighbours(copied: Path) -> None:
    table = pd.read_csv(copied / "manifest.csv")
    other = copied.parent / "other.csv"
    table.drop(columns="image").rename(columns={"path": "image"}).to_csv(other, index=False)
    table["split"] = table["split"].replace("train", "val")  # as if it had learned from none
    RunFolder(copied).save_manifest(table)
    recame.evaluate(copied, other)
    found = numbers(copied, "other")
    assert found["num_mistakes"] >= 3
    assert not any(mistake["neighbours"] for mistake in found["worst_mistakes"])


def test_the_gallery_shows_maps_and_training_neighbours(judged):
    run, evaluated = judged
    predictions = evaluated.predictions
    wrong = (predictions.probabilities.argmax(1) != predictions.target).sum()
    found = numbers(run)
    assert found["num_mistakes"] == wrong >= 3
    page = (run / "evaluation" / "test" / "report.html").read_text("utf-8")
    assert page.count('<article class="card">') == min(wrong, 12)
    table = pd.read_csv(run / "manifest.csv")
    train_images = set(table.loc[table["split"] == "train", "image"])
    for mistake in found["worst_mistakes"]:
        near = [neighbour["image"] for neighbour in mistake["neighbours"]]
        assert len(near) == 5
        assert set(near) <= train_images
    planted = [m for m in found["worst_mistakes"] if (m["true"], m["called"]) == ("hole", "ok")]
    assert len(planted) == 3
    assert {near["label"] for m in planted for near in m["neighbours"][:2]} == {"ok"}
    assert page.count("what speaks for ok to the ensemble") >= 3


def test_a_report_without_evaluate_is_the_same(judged, tmp_path):
    run, _ = judged
    fresh = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(fresh / "evaluation")
    files = report(fresh)
    assert files.html.parent == fresh / "evaluation" / "test"
    again = report(fresh)  # from the predictions that are there now
    for name in ("evaluation", "confusion", "worst_mistakes", "gates", "reliability"):
        assert json.loads(again.json.read_text("utf-8"))[name] == numbers(run)[name], name


def test_a_baseline_is_compared_on_the_same_images(judged, copied):
    run, evaluated = judged
    path = copied / "evaluation" / "test" / "predictions.parquet"
    table = pd.read_parquet(path)
    # The baseline calls every image by the first class.
    columns = [c for c in table if c.startswith("p_") or "_p_" in c]
    table[columns] = 0.0
    table[[c for c in columns if c.endswith("p_ok")]] = 1.0
    table.to_parquet(path, index=False)
    fresh = copied.parent / "fresh"
    shutil.copytree(run, fresh)
    files = report(fresh, against=copied)
    found = json.loads(files.json.read_text("utf-8"))["comparison"]
    assert found["baseline"] == "run"
    assert found["images"] == evaluated.evaluation.num_images
    accuracy = found["differences"]["balanced_accuracy"]
    assert accuracy["other"] == pytest.approx(1 / 4)
    own = evaluated.evaluation.headline["balanced_accuracy"].value
    assert accuracy["difference"] == pytest.approx(own - 1 / 4)
    page = files.html.read_text("utf-8")
    assert f"--against {copied}" in page
    assert 'class="bar-other"' in page


def test_training_images_that_have_moved_cost_the_neighbours_alone(copied):
    table = pd.read_csv(copied / "manifest.csv")
    moved = table["split"] == "train"
    table.loc[moved, "path"] = table.loc[moved, "path"] + ".gone"
    RunFolder(copied).save_manifest(table)
    page = report(copied).html.read_text("utf-8")
    found = numbers(copied)
    (remark,) = found["remarks"]
    assert remark.startswith("The training images are not available: no nearest")
    gone = table.loc[moved, "path"].iloc[0]
    assert f"The reason: {moved.sum()} of " in remark
    assert f"{gone}: " in remark
    assert remark in (copied / "evaluation" / "test" / "report.md").read_text("utf-8")
    assert all(mistake["neighbours"] == [] for mistake in found["worst_mistakes"])
    assert 'class="maps"' in page
    assert found["gates"]


def test_without_any_image_the_numbers_remain(copied):
    table = pd.read_csv(copied / "manifest.csv")
    table["path"] += ".gone"
    RunFolder(copied).save_manifest(table)
    before = numbers(copied)["evaluation"]
    page = report(copied).html.read_text("utf-8")
    found = numbers(copied)
    assert found["evaluation"] == before
    (remark,) = found["remarks"]
    assert "The images of this split are not available" in remark
    assert "The reason: None of " in remark
    assert any(path in remark for path in table["path"])
    assert str(escape(remark)) in page
    assert f"> {remark}" in (copied / "evaluation" / "test" / "report.md").read_text("utf-8")
    assert 'id="map"' not in page
    assert 'id="gates"' not in page


def test_a_run_of_an_older_version_is_reported_with_what_it_has(copied):
    for name in ("history.csv", "phases.json", "environment.json"):
        (copied / name).unlink(missing_ok=True)
    page = report(copied).html.read_text("utf-8")
    assert 'id="training"' not in page
    made = numbers(copied)["made"]
    assert made["phases"] == {}
    assert made["facts"]["seed"] == "0"
    assert "packages" not in made["facts"]


def test_facts_tell_how_to_make_the_run_again(judged):
    folder, config, loaded = open_finished(judged[0])
    facts = run_facts(folder, config, loaded, "val")
    assert facts.commands[0].startswith("recame train /")
    assert f"--config {folder.path}/config.yaml" in facts.commands[0]
    assert facts.commands[1].endswith("-again --split val")
    changed = {setting.name: setting for setting in facts.changed}
    assert changed["model.backbone"].value == "test_resnet"
    assert changed["data.size"].default == "auto"
    assert "run.seed" not in changed
    told = dict(facts.facts)
    assert told["data fingerprint"] == folder.info()["data_fingerprint"]
    assert "2 experts, attention regional" in told["model"]
    assert len(facts.history) == 2


def test_a_report_that_cannot_be_drawn_costs_no_figure(finished, tmp_path, monkeypatch):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    other = Path(shutil.copytree(finished, tmp_path / "other"))  # it is judged too

    def broken(*args, **kwargs):
        raise ValueError("no [ink]")

    monkeypatch.setattr("recame.reports.draw.draw_report", broken)
    told = io.StringIO()
    judged = recame.evaluate(run, console=Console(file=told, width=200))
    assert judged.evaluation.num_images > 0
    assert "The report could not be drawn (ValueError: no [ink])" in told.getvalue()
    assert "test" in json.loads((run / "metrics.json").read_text("utf-8"))
    target = run / "evaluation" / "test"
    assert (target / "predictions.parquet").exists()
    assert not (target / "report.html").exists()
    # What failed is neither lost nor taken for a success.
    kept = target / "report_error.txt"
    assert isinstance(judged.report_error, ReportError)
    assert isinstance(judged.report_error.__cause__, ValueError)
    assert f"The traceback is in {kept}" in told.getvalue()
    assert f"recame report {run} --split test" in told.getvalue()
    assert 'raise ValueError("no [ink]")' in kept.read_text("utf-8")
    kept.unlink()
    with pytest.raises(ReportError, match=rf"no \[ink\].*--split test --against {other}"):
        report(run, against=other)
    assert "ValueError: no [ink]" in kept.read_text("utf-8")
    monkeypatch.undo()
    assert report(run).html.exists()
    assert not kept.exists()


def test_a_full_disk_costs_the_traceback_and_hides_no_reason(copied, monkeypatch):
    def full(*args, **kwargs):
        raise DataError("no space")

    monkeypatch.setattr("recame.reports.draw.write_together", full)
    monkeypatch.setattr("recame.reports.evaluate.write_text", full)
    with pytest.raises(ReportError, match=r"drawn \(no space\);.* traceback is lost: no space"):
        report(copied)


def test_images_of_other_names_are_said_to_be_so(copied):
    _, config, loaded = open_finished(copied)
    table = pd.read_csv(copied / "manifest.csv")
    data = images_to_judge(table, config, loaded, "test", silent)
    predictions = load_predictions(
        copied / "evaluation" / "test" / "predictions.parquet"
    ).predictions
    renamed = replace(data, table=data.table.assign(image="new/" + data.table["image"]))
    evidence = gather_evidence(loaded, renamed, predictions, "test")
    assert evidence.remarks[0].endswith("No image of the data has the name of a predicted one.")
    one = data.table.index[data.table["split"] == "test"][0]
    broken = (BrokenImage("x.png", "no [ink]"),)
    partly = replace(
        data, table=data.table.drop(index=one), cache=replace(data.cache, broken=broken)
    )
    (remark,) = gather_evidence(loaded, partly, predictions, "test").remarks
    assert remark.startswith(f"1 of {len(predictions)} images of this split is not available")
    assert remark.endswith("The reason: x.png: no [ink]")


def test_predictions_of_other_weights_are_made_anew(copied: Path) -> None:
    place = copied / "evaluation" / "test"
    judged = json.loads((place / "judged.json").read_text())
    table = pd.read_parquet(place / "predictions.parquet")
    then = table["confidence"].tolist()
    table["p_ok"] = 1.0
    (place / "judged.json").write_text(json.dumps(judged | {"weights": "0" * 64}))
    table.to_parquet(place / "predictions.parquet")
    report(copied)
    assert pd.read_parquet(place / "predictions.parquet")["confidence"].tolist() == then
    assert json.loads((place / "judged.json").read_text()) == judged


def test_evaluate_without_a_report_writes_none(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    recame.evaluate(run, report=False)
    assert (run / "evaluation" / "test" / "predictions.parquet").exists()
    assert not (run / "evaluation" / "test" / "report.html").exists()


@pytest.mark.slow
def test_another_source_is_reported_from_its_own_images(finished, write_images, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    folder = write_images(tmp_path / "line", {"ok": 6, "scratch": 4, "dent": 1}, seed=7)
    recame.evaluate(run, folder)
    found = numbers(run, "line")
    assert found["evaluation"]["num_images"] == 11
    assert found["gates"]
    assert found["made"]["source"] == str(folder)
    assert found["made"]["commands"][1].endswith(f"-again {folder} --name line")
    assert found["made"]["commands"][2].endswith("-again --split line")
    report(run, split="line")
    assert numbers(run, "line")["evaluation"] == found["evaluation"]
    assert numbers(run, "line")["made"] == found["made"]
    # Images that have gone leave their numbers behind.
    shutil.rmtree(folder)
    report(run, split="line")
    assert numbers(run, "line")["evaluation"] == found["evaluation"]
    assert f"No data at {folder}: the path does not exist" in numbers(run, "line")["remarks"][0]
    assert numbers(run, "line")["made"]["source"] == str(folder)


def test_one_expert_without_attention_and_products(defects_table, tiny_config, tmp_path):
    config = tiny_config(
        model__num_experts=1,
        model__attention="none",
        finetune__enabled=False,
        data__normal_class="ok",
        data__critical_classes=["hole"],
    )
    run = train(defects_table, config, out=tmp_path / "run").path
    recame.evaluate(run)
    page = (run / "evaluation" / "test" / "report.html").read_text("utf-8")
    for absent in ("experts", "gates"):
        assert f'id="{absent}"' not in page
    assert 'id="products"' in page
    assert "Escape rate" in page
    assert "Critical escape rate" in page
    assert numbers(run)["experts"] is None


def test_what_is_no_run_or_no_split_is_refused(judged, tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        report(tmp_path)
    with pytest.raises(DataError, match="no image in the split 'night'"):
        report(judged[0], split="night")
    with pytest.raises(CheckpointError, match="holds no run"):
        report(judged[0], against=tmp_path)


def test_evidence_of_a_large_split_looks_at_a_sample(judged, monkeypatch):
    run, evaluated = judged
    folder = RunFolder.open(run)
    loaded = load_checkpoint(folder.path)
    predictions = evaluated.predictions
    times = 2000
    large = type(predictions)(
        predictions.table.iloc[np.tile(np.arange(len(predictions)), times)].reset_index(drop=True),
        np.tile(predictions.probabilities, (times, 1)),
        np.tile(predictions.expert_probabilities, (times, 1, 1)),
        np.tile(predictions.target, times),
    )
    seen = []
    monkeypatch.setattr(
        "recame.reports.sampled_images.predict_cached",
        lambda model, images, rows, **_: (
            seen.append(len(rows)),
            None,
            torch.rand(len(rows), 2, 8).numpy(),
        ),
    )
    from recame.data.dataset import load_inspection_set

    config = folder.load_config()
    table = pd.read_csv(run / "manifest.csv")
    data = load_inspection_set(
        table, config.data, seed=0, spec=loaded.spec, label_space=loaded.label_space
    )
    evidence = gather_evidence(loaded, data, large, "test")
    assert len(large) > 20_000
    assert seen[0] <= 1200 + 12
    assert len(evidence.embedding.rows) == 1200
    assert len(evidence.mistakes) <= 12
