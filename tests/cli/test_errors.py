"""What users get wrong: one line that says what to do, exit code 2, no traceback."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from safetensors import SafetensorError

from recame.config import load_config, parse_settings
from recame.models import checkpoint

Recame = Callable[..., tuple[int, str, str]]


@pytest.fixture
def refused(recame: Recame) -> Callable[..., str]:
    """Call, check that the refusal has its form, and return its line."""

    def call(*words: object, code: int = 2) -> str:
        left, _, err = recame(*words)
        assert left == code
        lines = err.strip().splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]

    return call


@pytest.fixture
def train_refused(
    refused: Callable[..., str], tiny_words: list[str], tmp_path: Path
) -> Callable[..., str]:
    """`recame train` with the tiny settings; a refused run leaves no run behind."""

    def call(data: Path | str, *words: object, code: int = 2) -> str:
        out = tmp_path / "refused-run"
        line = refused("train", data, "--out", out, *tiny_words, *words, code=code)
        assert not (out / "run.json").exists()
        return line

    return call


def two_classes(folder: Path, first: str = "a", second: str = "b", count: int = 4) -> Path:
    for shade, name in ((40, first), (200, second)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (32, 32), shade + number).save(folder / name / f"{number}.png")
    return folder


def table(folder: Path, rows: list[str]) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


class TestTrainingData:
    def test_wrong_path(self, train_refused: Callable[..., str]) -> None:
        line = train_refused("/no/such/folder")
        assert "/no/such/folder" in line
        assert "does not exist" in line

    def test_no_data_at_all(self, refused: Callable[..., str]) -> None:
        assert "recame train FOLDER" in refused("train")

    def test_empty_folder(self, train_refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert f"No images in {tmp_path / 'empty'}" in train_refused(tmp_path / "empty")

    def test_wrong_column(self, train_refused: Callable[..., str], tmp_path: Path) -> None:
        source = table(tmp_path, ["file,kind", "ok/000.png,ok", "hole/000.png,hole"])
        line = train_refused(source)
        assert "no column 'image'" in line
        assert "file, kind" in line
        assert "--set data.image_column=NAME" in line

    def test_one_class(self, train_refused: Callable[..., str], tmp_path: Path) -> None:
        folder = two_classes(tmp_path / "data")
        shutil.rmtree(folder / "b")
        assert "only one class ('a')" in train_refused(folder)

    def test_images_without_labels(
        self,
        refused: Callable[..., str],
        train_refused: Callable[..., str],
        finished: Path,
        tmp_path: Path,
    ) -> None:
        folder = two_classes(tmp_path / "data") / "a"
        rows = [f"{folder / name.name},a" for name in folder.iterdir()]
        no_column = table(tmp_path, ["image,klass", *rows])
        for line in (train_refused(folder), refused("evaluate", finished, folder)):
            assert "no class folders" in line
            assert "neither trained nor evaluated on them. Put the images of each class in" in line
        for line in (train_refused(no_column), refused("evaluate", finished, no_column)):
            assert "has no column 'label'" in line
            assert "--set data.label_column=NAME" in line
        gaps = table(tmp_path, ["image,label", *rows, f"{rows[0].split(',')[0]},"])
        for line in (train_refused(gaps), refused("evaluate", finished, gaps)):
            assert "1 row has no 'label'" in line
            assert "Fill them in or remove the rows" in line

    def test_label_that_training_never_sees(
        self, train_refused: Callable[..., str], defects: Path, tmp_path: Path
    ) -> None:
        rows = [f"{defects}/ok/{i:03d}.png,ok,train" for i in range(6)]
        rows += [f"{defects}/dent/{i:03d}.png,dent,train" for i in range(6)]
        rows.append(f"{defects}/hole/000.png,hole,test")
        source = table(tmp_path, ["image,label,split", *rows])
        line = train_refused(source)
        assert "'hole' (1 image)" in line
        assert "Add training images" in line

    def test_class_that_is_not_there(
        self, train_refused: Callable[..., str], defects: Path
    ) -> None:
        line = train_refused(defects, "--set", "data.normal_class=good")
        assert "The normal class 'good' is not among the classes: ok, scratch" in line
        assert "did you mean" not in line
        line = train_refused(defects, "--normal", "scrach")
        assert "The normal class 'scrach' is not among the classes: ok, " in line
        assert line.endswith("; did you mean scratch?")
        assert "settings" not in line

    def test_too_many_broken_files(self, train_refused: Callable[..., str], tmp_path: Path) -> None:
        folder = two_classes(tmp_path / "data", count=10)
        for number in (0, 1):
            (folder / "a" / f"{number}.png").write_bytes(b"")
        line = train_refused(folder, code=3)
        assert "2 of 20 images cannot be read" in line
        assert "data.max_broken_fraction" in line


class TestNamesOfFigures:
    @pytest.mark.parametrize("name", ["../../esc", ".hidden", ""])
    def test_a_name_that_leads_elsewhere(
        self, name: str, refused: Callable[..., str], tmp_path: Path
    ) -> None:
        # Before anything is loaded.
        line = refused("evaluate", tmp_path / "no-run", "other", "--name", name)
        assert f"--name {name!r} cannot be the name of a folder" in line
        assert "Choose a name" in line

    def test_a_note_that_was_damaged(
        self, refused: Callable[..., str], finished: Path, tmp_path: Path
    ) -> None:
        place = shutil.copytree(finished, tmp_path / "run") / "evaluation" / "test"
        place.mkdir(parents=True, exist_ok=True)
        (place / "judged.json").write_text('{"source": 3, "split": [1]}', encoding="utf-8")
        line = refused("evaluate", tmp_path / "run", "--no-report")
        assert "does not say which images were evaluated (source 3, split [1])" in line


class TestSettings:
    def test_a_setting_without_its_option(self, refused: Callable[..., str]) -> None:
        line = refused("train", "boards", "-o", "run", "--seed", 1, "finetune.epochs=3")
        assert line.endswith("settings stand after --set: write --set finetune.epochs=3")

    def test_a_file_may_be_named_like_a_setting(
        self, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("run.seed=3").write_text("image,label\n", encoding="utf-8")
        assert "--set run.seed" not in refused("train", "run.seed=3")

    @pytest.mark.parametrize(
        ("setting", "told"),
        [
            ("model.bakbone=resnet18", "model.bakbone: unknown; did you mean backbone? (known"),
            ("modle.backbone=resnet18", "write section.key"),
            ("finetune.epochs=many", "finetune.epochs: "),
            ("data.size=0", "data.size: "),
            ("probe.enabled", "has no '='"),
            ("probe.steps=[1", "the value cannot be read as YAML"),
            ("objective.tau=[1, 2, 3]", "objective.tau has 3 values for model.num_experts=2"),
        ],
    )
    def test_words_that_mean_nothing(
        self, setting: str, told: str, train_refused: Callable[..., str], defects: Path
    ) -> None:
        assert told in train_refused(defects, "--set", setting)

    @pytest.mark.parametrize(
        ("budget", "told"),
        [
            *((text, "is not a duration") for text in ("soon", "0s", "-5m", "10 minutes")),
            ("10", "ends in a number without a unit"),
        ],
    )
    def test_time_budget(
        self, budget: str, told: str, train_refused: Callable[..., str], defects: Path
    ) -> None:
        line = train_refused(defects, f"--time-budget={budget}")
        assert f"{budget!r} {told}" in line

    def test_takt(self, refused: Callable[..., str], tmp_path: Path) -> None:
        # 20 seconds, on which every PC would pass, were meant by nobody.
        line = refused("latency", tmp_path, "--takt", "20")
        assert "'20' ends in a number without a unit" in line

    @pytest.mark.parametrize(
        ("setting", "told"),
        [
            ("model.backbone=resnet5000", "Unknown backbone 'resnet5000'"),
            ("model.pretrained=/nope.pth", "No weights file or run folder at /nope.pth"),
            ("model.pretrained=package", "holds the weights of tf_efficientnet_lite0 only"),
            ("model.shared_stages=9", "model.shared_stages=9, but test_resnet has 4 stages"),
            ("model.pooled_stages=9", "model.pooled_stages=9"),
        ],
    )
    def test_network_is_refused_before_images_are_decoded(
        self, setting: str, told: str, train_refused: Callable[..., str], tmp_path: Path
    ) -> None:
        folder = two_classes(tmp_path / "torn")
        for path in folder.rglob("*.png"):
            path.write_bytes(b"torn")
        assert "sampled images can be read" in train_refused(folder)
        assert told in train_refused(folder, "--set", setting)

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            (["finetune.sampler=m_per_class", "finetune.batch_size=18"], "not a multiple of"),
            (["run.strategy=telepathy"], "run.strategy='telepathy' is unknown"),
            (["run.devices=64"], "fewer than two for each of 64 processes"),
            (["objective.base_weight=0", "objective.hard_weight=0"], "Every weight"),
            (
                ["finetune.batch_size=1", "model.standardise=true"],
                "feature normalisation needs two images",
            ),
            (
                ["finetune.scope=tails", "augment.brightness=0.3", "augment.mixup=0.4"],
                "augment.brightness, augment.mixup with finetune.scope=tails",
            ),
        ],
    )
    def test_contradictions_are_refused_before_the_probe(
        self,
        settings: list[str],
        told: str,
        train_refused: Callable[..., str],
        defects: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def too_late(*_: object, **__: object) -> None:
            raise AssertionError("the probe ran")

        monkeypatch.setattr("recame.training.train.run_probe", too_late)
        no_distillation = ["distillation_weight", "hard_distillation_weight"]
        words = [w for n in no_distillation for w in ("--set", f"objective.{n}=0")]
        words += [word for setting in settings for word in ("--set", setting)]
        assert told in train_refused(defects, *words)

    def test_settings_file(
        self, train_refused: Callable[..., str], defects: Path, tmp_path: Path
    ) -> None:
        assert "No settings file" in train_refused(defects, "--config", tmp_path / "none.yaml")
        path = tmp_path / "settings.yaml"
        path.write_text("model: {backbone: [", encoding="utf-8")
        assert "cannot be read as YAML" in train_refused(defects, "--config", path)
        path.write_text("schema_version: 99", encoding="utf-8")
        assert "update recame" in train_refused(defects, "--config", path).lower()


@pytest.mark.parametrize("begun", [True, False])
def test_who_is_interrupted_learns_how_to_go_on(
    begun: bool, recame: Recame, defects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a run"

    def interrupted(*_: object, **__: object) -> None:
        if begun:
            out.mkdir()
            (out / "run.json").write_text("{}")
        raise KeyboardInterrupt

    for module in ("recame.training.train.train", "recame.training.student.distill.distill"):
        monkeypatch.setattr(module, interrupted)
    for verb in ("train", "distill"):
        left, _, err = recame(verb, defects, "--out", out)
        assert left == 130
        told = (
            f"interrupted: {out} keeps the finished part. "
            f"Continue with: recame {verb} --out '{out}' "
        )
        assert err.strip() == (f"{told}--resume" if begun else "interrupted")
        shutil.rmtree(out, ignore_errors=True)


def test_settings_of_bits_and_texts(
    train_refused: Callable[..., str], defects: Path, tmp_path: Path
) -> None:
    """Numbers that are words, and words that look like numbers."""
    path = tmp_path / "settings.yaml"
    path.write_text("run: {precision: 16}\nfinetune: {lr: 1e-3}\n", encoding="utf-8")
    config = load_config(path).updated(parse_settings(["finetune.head_lr=2e-3"]))
    assert (config.run.precision, config.finetune.lr, config.finetune.head_lr) == ("16", 1e-3, 2e-3)
    given = parse_settings(["run.precision=32", 'data.normal_class="07"', "data.label_column='1'"])
    changed = config.updated(given)
    assert (changed.run.precision, changed.data.normal_class) == ("32", "07")
    assert changed.data.label_column == "1"
    settings = ["objective.margin=20", "objective.contrastive_weight=0.05"]
    line = train_refused(defects, *[word for s in settings for word in ("--set", s)])
    assert "unit vectors are never more than 2 apart" in line
    assert "base_weight" not in line  # not the whole section
    line = train_refused(
        defects,
        "--set",
        "finetune.optimizer=sgd",
        "--set",
        "finetune.momentum=0",
        "--set",
        "finetune.nesterov=true",
    )
    assert "Nesterov needs a momentum" in line
    settings = ["model.backbone=vgg11_bn", "model.pretrained=false", "data.size=16"]
    line = train_refused(defects, *[word for s in settings for word in ("--set", s)])
    assert "data.size=16 is too small for vgg11_bn" in line
    line = train_refused(
        defects, *[word for s in settings[:2] for word in ("--set", s)], "--size", "16x96"
    )
    assert "data.size=16x96 is too small for vgg11_bn" in line
    assert "each side must have 16 to 2048 pixels" in train_refused(defects, "--size", "8x96")


class TestRuns:
    @pytest.fixture
    def run(self, finished: Path, tmp_path: Path) -> Path:
        """A copy of a finished run, to be spoilt."""
        return Path(shutil.copytree(finished, tmp_path / "run"))

    def edit(self, path: Path, **values: object) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")

    def test_run_folder_exists(
        self, refused: Callable[..., str], finished: Path, defects: Path
    ) -> None:
        before = (finished / "run.json").read_bytes()
        line = refused("train", defects, "--out", finished)
        assert "already holds a run" in line
        assert "--resume" in line
        assert (finished / "run.json").read_bytes() == before

    def test_resume_without_a_run(
        self, refused: Callable[..., str], defects: Path, tmp_path: Path
    ) -> None:
        assert "add --out RUN" in refused("train", defects, "--resume")
        line = refused("train", defects, "--resume", "--out", tmp_path)
        assert "holds no run" in line
        line = refused("train", "--resume", "--out", tmp_path, "--seed", 3)
        assert "run's own settings" in line

    @pytest.mark.parametrize("verb", ["evaluate", "predict", "train"])
    def test_run_of_a_newer_schema(
        self, verb: str, refused: Callable[..., str], run: Path, defects: Path
    ) -> None:
        self.edit(run / "run.json", schema=99)
        words = {
            "evaluate": [run],
            "predict": [run, defects],
            "train": ["--out", run, "--resume"],
        }
        assert "schema 99" in refused(verb, *words[verb])

    @pytest.mark.parametrize("file", ["model.json", "label_space.json", "config.yaml"])
    def test_model_of_a_newer_schema(
        self, file: str, refused: Callable[..., str], run: Path
    ) -> None:
        if file == "model.json":
            self.edit(run / file, schema=99)
        elif file == "label_space.json":
            model = json.loads((run / "model.json").read_text())
            self.edit(run / "model.json", label_space={**model["label_space"], "schema": 99})
        else:
            text = (run / file).read_text().replace("schema_version: 1", "schema_version: 99")
            (run / file).write_text(text, encoding="utf-8")
        line = refused("evaluate", run)
        assert "schema 99" in line
        assert "update recame" in line.lower()

    def test_run_that_is_not_finished(
        self, refused: Callable[..., str], run: Path, defects: Path
    ) -> None:
        self.edit(run / "run.json", state="training")
        for words in (("evaluate", run), ("predict", run, defects)):
            line = refused(*words)
            assert "is not finished" in line
            assert line.endswith(f"recame train --out {run} --resume")

    def test_no_run_there(self, refused: Callable[..., str], defects: Path) -> None:
        assert "holds no run" in refused("evaluate", defects)
        assert "holds no run" in refused("predict", "/no/such/run", defects)

    def test_weights_are_missing(self, refused: Callable[..., str], run: Path) -> None:
        (run / "model.safetensors").unlink()
        assert "holds no model.safetensors" in refused("evaluate", run)

    def test_images_changed_since(
        self, refused: Callable[..., str], run: Path, tmp_path: Path
    ) -> None:
        self.edit(run / "run.json", state="training")
        other = two_classes(tmp_path / "other", count=8)
        line = refused("train", other, "--out", run, "--resume")
        assert "images have changed" in line

    def test_unknown_split(self, refused: Callable[..., str], finished: Path) -> None:
        line = refused("evaluate", finished, "--split", "holdout")
        assert "'holdout'" in line
        assert "train, val, test" in line

    def test_labels_the_model_cannot_know(
        self, refused: Callable[..., str], finished: Path, tmp_path: Path
    ) -> None:
        line = refused("evaluate", finished, two_classes(tmp_path / "new", "ok", "rust"))
        assert "not trained on 'rust' (4 images)" in line


class TestPredictions:
    def test_wrong_suffix(
        self, refused: Callable[..., str], finished: Path, defects: Path, tmp_path: Path
    ) -> None:
        line = refused("predict", finished, defects, "-o", tmp_path / "out.xlsx")
        assert "must end in .csv or .parquet" in line

    def test_missing_images(
        self, refused: Callable[..., str], finished: Path, tmp_path: Path
    ) -> None:
        assert "No image at /no/images/*.png" in refused("predict", finished, "/no/images/*.png")
        (tmp_path / "empty").mkdir()
        assert "No images in" in refused("predict", finished, tmp_path / "empty")

    def test_nothing_readable(self, recame: Recame, finished: Path, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_text("no image", encoding="utf-8")
        words = ("predict", finished, tmp_path / "broken.png", "-o", tmp_path / "out.csv")
        code, _, err = recame(*words)
        assert (code, err.count("\n")) == (3, 1)
        assert "None of 1 image can be read" in err
        assert not (tmp_path / "out.csv").exists()

    def test_more_unreadable_than_any_lot_has(
        self, recame: Recame, finished: Path, defects: Path, tmp_path: Path
    ) -> None:
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(b"")
        out = tmp_path / "out.csv"
        words = ("predict", finished, defects / "hole", tmp_path, "-o", out)
        code, _, err = recame(*words)
        assert (code, err.count("\n")) == (3, 1)
        assert "error: 3 of 9 files cannot be read" in err
        assert not out.exists()
        code, told, _ = recame(*words, "--max-unreadable", "0.4")
        assert (code, out.exists()) == (0, True)
        assert "9 files were done by the interrupted prediction" in told


def fill_disk(path: Path) -> None:
    """Let writing to this file fail as on a full disk."""
    path.symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
class TestFullDisk:
    @pytest.fixture(autouse=True)
    def _known_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Of the files beside those that are being written.
        monkeypatch.setattr(secrets, "token_hex", lambda _: "new")

    @pytest.mark.parametrize(
        "name", ["config.yaml", "run.json", "history.csv", "metrics.json", "last.ckpt"]
    )
    def test_training(
        self,
        name: str,
        refused: Callable[..., str],
        tiny_words: list[str],
        defects: Path,
        tmp_path: Path,
    ) -> None:
        fill_disk(tmp_path / f".{name}.new.part")
        line = refused("train", defects, "--out", tmp_path, *tiny_words)
        assert "No space left on device" in line
        assert "Free space" in line

    @pytest.mark.parametrize("name", ["trunk_maps.npy", "trunk_pooled.npy"])
    def test_the_frozen_trunks_outputs(
        self,
        name: str,
        refused: Callable[..., str],
        tiny_words: list[str],
        defects: Path,
        tmp_path: Path,
    ) -> None:
        fill_disk(tmp_path / f".{name}.new.part")
        words = (*tiny_words, "--set", "finetune.scope=tails", "--set", "model.pooled_stages=3")
        line = refused("train", defects, "--out", tmp_path, *words)
        assert "No space left on device" in line
        assert not any((tmp_path / name).exists() for name in ("last.ckpt", "trunk_run.json"))

    @pytest.mark.parametrize("phase", ["probe", "finetune"])
    def test_weights(
        self,
        phase: str,
        recame: Recame,
        refused: Callable[..., str],
        tiny_words: list[str],
        defects: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out = tmp_path / "run"

        def full(*_: object) -> None:  # as the library says it on a full disk
            reason = "I/O error: No space left on device (os error 28)"
            raise SafetensorError(f"Error while serializing: {reason}")

        words = [*tiny_words, "--set", f"probe.enabled={str(phase == 'probe').lower()}"]
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", full)
            line = refused("train", defects, "--out", out, *words)
        assert "No space left on device" in line
        assert not (out / "model.json").exists()
        monkeypatch.undo()
        assert recame("train", "--out", out, "--resume")[0] == 0

    def test_predicting(
        self,
        recame: Recame,
        refused: Callable[..., str],
        finished: Path,
        defects: Path,
        tmp_path: Path,
    ) -> None:
        (tmp_path / "out.csv.partial").mkdir()
        fill_disk(tmp_path / "out.csv.partial" / "table.csv")
        images = shutil.copytree(defects / "hole", tmp_path / "images")
        (images / "torn.png").write_bytes(b"")
        words = ("predict", finished, images, "-o", tmp_path / "out.csv")
        assert "the disk is full" in refused(*words)
        assert not (tmp_path / "out.csv").exists()
        (tmp_path / "out.csv.partial" / "table.csv").unlink()
        code, out, _ = recame(*words)
        assert (code, "7 files were done by the interrupted prediction" in out) == (0, True)
        assert len((tmp_path / "out.csv").read_text().splitlines()) == 8

    def test_evaluating(self, refused: Callable[..., str], finished: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(finished, tmp_path / "run"))
        before = (run / "metrics.json").read_text()
        fill_disk(run / ".metrics.json.new.part")
        line = refused("evaluate", run)
        assert "No space left on device" in line
        assert (run / "metrics.json").read_text() == before


def test_a_class_called_na_is_no_gap(
    recame: Recame, tiny_words: list[str], defects: Path, tmp_path: Path
) -> None:
    rows = [
        f"{defects}/{name}/{i:03d}.png,{label},{('train', 'val', 'test')[i % 3]},007"
        for name, label in (("ok", "None"), ("scratch", "NA"))
        for i in range(12)
    ]
    source = table(tmp_path, ["image,label,split,product", *rows])
    assert recame("train", source, "--out", tmp_path / "run", *tiny_words)[0] == 0
    assert recame("evaluate", tmp_path / "run")[0] == 0
    predictions = pd.read_parquet(tmp_path / "run/evaluation/test/predictions.parquet")
    assert set(predictions["label"]) == {"NA", "None"}
    assert set(predictions["product"]) == {"007"}
