"""What a run leaves behind, and what evaluation and prediction make of it, through Python."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

import recame
from recame.config import Config, load_config
from recame.errors import ConfigError, DataError
from recame.inference.forward import BatchForward
from recame.metrics.calibration import expected_calibration_error
from recame.runs.folder import RunFolder

CLASSES = ["ok", "scratch", "dent", "hole"]

RUN_FILES = {
    "asked.yaml",
    "broken_images.csv",
    "config.yaml",
    "decisions.json",
    "environment.json",
    "graph",
    "history.csv",
    "label_space.json",
    "last.ckpt",
    "manifest.csv",
    "metrics.json",
    "model.json",
    "model.safetensors",
    "phases.json",
    "reasons.json",
    "run.json",
}

HEADLINES = ["balanced_accuracy", "macro_f1", "tail_recall", "worst_class_recall", "accuracy"]


def listen() -> tuple[Console, io.StringIO]:
    heard = io.StringIO()
    return Console(file=heard, width=200), heard


def leaves(values: object) -> list[object]:
    if isinstance(values, dict):
        return [leaf for value in values.values() for leaf in leaves(value)]
    return [values]


class TestRunFolder:
    def test_files(self, finished: Path) -> None:
        left = {path.name for path in finished.iterdir() if path.suffix != ".lock"}
        assert left == RUN_FILES

    def test_nothing_is_left_to_decide(self, finished: Path) -> None:
        config = load_config(finished / "config.yaml")
        assert config.data.channels == 1  # the images are grey
        assert (config.run.precision, config.finetune.epoch_size) == ("32", 70)
        saved = yaml.safe_load((finished / "config.yaml").read_text())
        # What only the machine, or a table's own bytes, can tell stays open.
        saved["run"].pop("strategy")
        saved["data"].pop("encoding")
        assert "auto" not in leaves(saved)

    def test_what_was_asked_is_kept(
        self, finished: Path, tiny_config: Callable[..., Config]
    ) -> None:
        asked = RunFolder.open(finished).asked()
        assert asked == tiny_config()
        assert asked.objective.tau == asked.run.precision == "auto"

    def test_history_has_a_row_an_epoch(self, finished: Path) -> None:
        history = pd.read_csv(finished / "history.csv")
        assert list(history["epoch"]) == [1, 2]
        assert list(history["step"]) == [5, 10]
        parts = history.filter(like="loss/").sum(axis=1)
        np.testing.assert_allclose(parts, history["loss"], rtol=1e-5)
        assert history["val/balanced_accuracy"].between(0, 1).all()
        assert (history["seconds"] > 0).all()

    def test_label_space_keeps_training_counts(self, finished: Path) -> None:
        space = json.loads((finished / "label_space.json").read_text())
        assert space["names"] == CLASSES
        assert space["counts"] == [42, 16, 8, 4]

    def test_manifest_records_every_image_and_split(self, finished: Path) -> None:
        manifest = pd.read_csv(finished / "manifest.csv")
        assert len(manifest) == 102
        assert manifest["split"].value_counts().to_dict() == {"train": 70, "val": 16, "test": 16}
        assert set(manifest.loc[manifest["split"] == "test", "label"]) == set(CLASSES)

    def test_environment_and_phases(self, finished: Path) -> None:
        environment = json.loads((finished / "environment.json").read_text())
        assert environment["packages"]["torch"].startswith("2.")
        phases = json.loads((finished / "phases.json").read_text())
        scores = phases["val_balanced_accuracy"]
        assert set(scores) == {"probe", "finetune", "joined", "joined_first"}
        assert phases["kept"] == "joined" or scores[phases["kept"]] > scores["joined"]
        metrics = json.loads((finished / "metrics.json").read_text())["val"]
        assert metrics["balanced_accuracy"]["value"] == scores[phases["kept"]]

    def test_it_learned(self, finished: Path) -> None:
        val = json.loads((finished / "metrics.json").read_text())["val"]
        assert val["balanced_accuracy"]["value"] > 0.6  # chance: 0.25

    def test_same_seed_same_weights(
        self, finished: Path, defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
    ) -> None:
        again = recame.train(defects, tiny_config(), out=tmp_path / "again").path
        ours, theirs = (load_file(run / "model.safetensors") for run in (again, finished))
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_val_and_other_splits_are_judged_by_one_rule(
    defects_table: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products, seed and calibration of the figures, and the precision that was asked for."""
    used = []
    begin = BatchForward.__init__

    def spy(self: BatchForward, *args: Any, **words: Any) -> None:
        used.append(words["precision"])
        begin(self, *args, **words)

    monkeypatch.setattr(BatchForward, "__init__", spy)
    config = tiny_config(
        probe__enabled=False,
        data__product_column="lot",
        run__seed=3,
        run__precision="bf16",
    )
    run = recame.train(defects_table, config, out=tmp_path / "run").path
    trained = json.loads((run / "metrics.json").read_text())["val"]
    recame.evaluate(run, split="val", report=False)
    judged = json.loads((run / "metrics.json").read_text())["val"]
    assert len(trained["per_product"]) == 10
    assert trained == judged
    recame.load(run).predict(defects_table.parent / "defects" / "hole")
    assert used == ["bf16"] * 4
    assert recame.load(run).describe()["precision"] == "bf16"
    # As the message on numbers that are none advises.
    text = (run / "config.yaml").read_text().replace("precision: bf16", "precision: '32'")
    (run / "config.yaml").write_text(text)
    recame.evaluate(run, split="val", report=False)
    assert used[4:] == ["32"]


class TestPhases:
    @pytest.mark.parametrize("phase", ["probe", "finetune"])
    def test_each_can_run_alone(
        self, phase: str, defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
    ) -> None:
        other = {"probe": "finetune", "finetune": "probe"}[phase]
        config = tiny_config(**{f"{other}__enabled": False})
        run = recame.train(defects, config, out=tmp_path / "run").path
        assert json.loads((run / "phases.json").read_text())["kept"] == phase
        assert (run / "history.csv").exists() == (phase == "finetune")

    def test_last_phase_can_be_asked_for(
        self, defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
    ) -> None:
        config = tiny_config(run__keep="last", finetune__epochs=1, finetune__lr=1e-9)
        run = recame.train(defects, config, out=tmp_path / "run").path
        assert json.loads((run / "phases.json").read_text())["kept"] == "finetune"


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that evaluation may write into."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "run"))


class TestEvaluate:
    def test_recorded_test_split(self, run: Path) -> None:
        console, heard = listen()
        judged = recame.evaluate(run, console=console)
        metrics = json.loads((run / "metrics.json").read_text())
        assert set(metrics) == {"val", "test"}
        for name in HEADLINES:
            value = metrics["test"][name]
            assert set(value) == {"value", "low", "high"}
            assert value["low"] <= value["value"] <= value["high"]
            assert name in heard.getvalue()
        assert judged.folder == run / "evaluation" / "test"
        files = {path.name for path in judged.folder.iterdir()}
        assert {"predictions.parquet", "per_class.csv", "confusion.csv", "confusion.png"} <= files
        table = pd.read_parquet(judged.folder / "predictions.parquet")
        recorded = pd.read_csv(run / "manifest.csv").query("split == 'test'")
        assert set(table["image"]) == set(recorded["image"])
        hits = (table["prediction"] == table["label"]).groupby(table["label"]).mean()
        assert hits.mean() == pytest.approx(metrics["test"]["balanced_accuracy"]["value"])

    def test_images_deleted_since_are_named(self, run: Path, tmp_path: Path) -> None:
        manifest = pd.read_csv(run / "manifest.csv")
        manifest["path"] = "/gone/" + manifest["image"]
        spoilt = Path(shutil.copytree(run, tmp_path / "run"))
        RunFolder(spoilt).save_manifest(manifest)
        with pytest.raises(DataError, match=r"None of the sampled images can be read .*/gone/"):
            recame.evaluate(spoilt)

    def test_given_data_with_splits(self, run: Path, defects_table: Path) -> None:
        judged = recame.evaluate(run, defects_table, split="val")
        assert judged.split == "manifest-val"
        assert judged.folder == run / "evaluation" / "manifest-val"
        assert len(judged.predictions) == 17
        table = pd.read_parquet(judged.folder / "predictions.parquet")
        assert {"product", "lot"} <= set(table.columns)
        assert set(table["product"]) == {"board-A", "board-B"}

    def test_given_data_without_splits_is_judged_whole(
        self, run: Path, write_images: Callable[..., Path], tmp_path: Path
    ) -> None:
        folder = write_images(tmp_path / "new", dict.fromkeys(CLASSES[:3], 4), seed=7)
        judged = recame.evaluate(run, folder)
        assert len(judged.predictions) == 12
        assert np.isfinite(judged.evaluation.to_dict()["balanced_accuracy"]["value"])
        assert judged.folder == run / "evaluation" / "new"

    def test_other_images_never_take_the_place_of_the_runs_own(
        self,
        finished: Path,
        write_images: Callable[..., Path],
        defects_table: Path,
        tmp_path: Path,
    ) -> None:
        run = Path(shutil.copytree(finished, tmp_path / "run"))
        recame.evaluate(run, report=False)
        own = (run / "metrics.json").read_text()
        other, same = (
            write_images(tmp_path / name, dict.fromkeys(CLASSES, 3), seed=7)
            for name in ("line", "elsewhere/line")
        )
        recame.evaluate(run, other, report=False)
        kept = json.loads((run / "metrics.json").read_text())
        assert set(kept) == {"val", "test", "line"}
        assert {name: kept[name] for name in ("val", "test")} == json.loads(own)
        with pytest.raises(ConfigError, match=r"elsewhere/line would overwrite.*--name"):
            recame.evaluate(run, same, report=False)
        with pytest.raises(ConfigError, match=r"would be evaluated under the name 'test'"):
            recame.evaluate(run, other, name="test", report=False)
        recame.evaluate(run, same, name="monday", report=False)
        assert set(json.loads((run / "metrics.json").read_text())) == {*kept, "monday"}
        recame.evaluate(run, other, report=False)  # the same again
        # A version before judged other images under the name of the run's own split.
        place = run / "evaluation" / "test" / "judged.json"
        place.write_text(json.dumps({"source": str(other)}))
        with pytest.raises(ConfigError, match=rf"split test of {other}, and those of split test"):
            recame.evaluate(run, report=False)


class TestPredict:
    @pytest.fixture
    def images(self, write_images: Callable[..., Path], tmp_path: Path) -> Path:
        folder = write_images(tmp_path / "new", {"ok": 3, "scratch": 2}, seed=5)
        (folder / "ok" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (folder / "ok" / "notes.txt").write_text("not an image", encoding="utf-8")
        return folder

    def test_folder_with_a_broken_file(self, finished: Path, images: Path) -> None:
        summary = recame.predict(finished, [images], out=images / "out.csv")
        table, broken = pd.read_csv(summary.out), summary.unreadable
        expected = ["image", "path", "prediction", "confidence"]
        expected += [f"p_{name}" for name in CLASSES]
        assert list(table.columns[: len(expected)]) == expected
        assert len(table) == 6
        table = table[table["action"] != "unreadable"]
        assert len(table) == 5
        probabilities = table[expected[4:]].to_numpy()
        np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
        np.testing.assert_allclose(probabilities.max(1), table["confidence"], atol=1e-6)
        assert [Path(path).name for path, _ in broken] == ["broken.png"]
        assert broken[0][1]

    def test_files_and_globs(self, finished: Path, images: Path, tmp_path: Path) -> None:
        sources = [images / "ok" / "000.png", str(images / "s*" / "*.png")]
        summary = recame.predict(finished, sources, out=tmp_path / "out.csv")
        table = pd.read_csv(summary.out)
        assert [Path(p).parent.name for p in table["image"]] == ["ok", "scratch", "scratch"]
        assert summary.num_unreadable == 0

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_written_table(self, suffix: str, finished: Path, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "made" / f"out{suffix}"
        summary = recame.predict(finished, [images / "scratch"], out=out)
        read = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
        found = recame.load(finished).predict(images / "scratch")
        assert list(read["prediction"]) == [item.label for item in found]
        assert "expert1_p_hole" in read
        assert summary.num_images == 2

    def test_same_as_evaluation(self, run: Path, tmp_path: Path) -> None:
        manifest = pd.read_csv(run / "manifest.csv").query("split == 'test'")
        table = pd.read_csv(
            recame.predict(run, list(manifest["path"]), out=tmp_path / "out.csv").out
        )
        judged = recame.evaluate(run)
        ours = table.set_index("image")["confidence"]
        theirs = pd.Series(judged.predictions.probabilities.max(1), list(manifest["path"]))
        np.testing.assert_allclose(ours.loc[theirs.index], theirs, atol=1e-5)
        of_table = table.set_index("image").loc[theirs.index, [f"p_{name}" for name in CLASSES]]
        error = expected_calibration_error(of_table.to_numpy(), judged.predictions.target)
        assert judged.evaluation.headline["ece"].value == pytest.approx(error, abs=1e-4)


def spoil(folder: Path) -> dict[str, bytes]:
    """Write files that are no images among them, each in its own way."""
    whole = next((folder / "ok").glob("*.png")).read_bytes()
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PDF")
    wrong = {
        "ok/zero-bytes.png": b"",
        "ok/truncated.png": whole[: len(whole) // 2],
        "scratch/text.png": b"this is a note, not an image\n",
        "dent/document.jpg": buffer.getvalue(),
    }
    for name, content in wrong.items():
        (folder / name).write_bytes(content)
    return wrong


@pytest.fixture(scope="module")
def spoilt(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """132 files, 3 % of them broken."""
    counts = {"ok": 70, "scratch": 30, "dent": 20, "hole": 8}
    folder = write_images(tmp_path_factory.mktemp("spoilt") / "data", counts)
    assert len(spoil(folder)) / 132 == pytest.approx(0.03, abs=0.001)
    return folder


class TestBrokenFiles:
    def test_training_goes_on_and_lists_them(
        self, spoilt: Path, tiny_config: Callable[..., Config], tmp_path: Path
    ) -> None:
        console, heard = listen()
        config = tiny_config(finetune__enabled=False)
        run = recame.train(spoilt, config, out=tmp_path / "run", console=console)
        listed = pd.read_csv(run.path / "broken_images.csv")
        wanted = {"zero-bytes.png", "truncated.png", "text.png", "document.jpg"}
        assert {Path(image).name for image in listed["image"]} == wanted
        assert listed["reason"].str.len().min() > 5
        said = heard.getvalue()
        assert "4 images cannot be used" in said
        for row in listed.itertuples():
            assert f"{row.image}: {row.reason}" in said
        assert len(pd.read_csv(run.path / "manifest.csv")) == 128

    def test_more_than_the_setting_allows_is_an_error(
        self, spoilt: Path, tiny_config: Callable[..., Config], tmp_path: Path
    ) -> None:
        config = tiny_config(data__max_broken_fraction=0.02)
        with pytest.raises(DataError, match="4 of 132 images cannot be read"):
            recame.train(spoilt, config, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_class_must_not_vanish(
        self,
        write_images: Callable[..., Path],
        tiny_config: Callable[..., Config],
        tmp_path: Path,
    ) -> None:
        folder = write_images(tmp_path / "data", {"ok": 60, "scratch": 20, "dent": 1})
        (folder / "dent" / "000.png").write_bytes(b"")
        with pytest.raises(DataError, match="'dent' is unreadable"):
            recame.train(folder, tiny_config(), out=tmp_path / "run")


def test_images_of_other_kinds(
    tiny_config: Callable[..., Config], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "data", {"ok": 12, "scratch": 6})
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        image = Image.open(path)
        path.unlink()
        if number % 3 == 0:
            image.convert("RGB").resize((50, 40)).save(path.with_suffix(".jpg"))
        elif number % 3 == 1:
            deep = np.asarray(image).astype(np.uint16) * 256
            Image.fromarray(deep).save(path.with_suffix(".tiff"))
        else:
            image.save(path.with_suffix(".bmp"))
    config = tiny_config(finetune__epochs=1, probe__steps=5)
    run = recame.train(folder, config, out=tmp_path / "run")
    assert len(pd.read_csv(run.path / "broken_images.csv")) == 0
    assert recame.predict(run.path, [folder], out=tmp_path / "out.csv").num_images == 18
