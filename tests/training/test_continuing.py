"""A run continued with new images: weights, settings and splits of the old ones are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from recame.config import Config
from recame.errors import ConfigError, DataError
from recame.reports.evaluate import evaluate
from recame.runs.folder import RunFolder
from recame.training.continuing import continued_table, continuing_config, resumed_table
from recame.training.train import train


@pytest.fixture(scope="module")
def first(
    defects: Path, tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """A run of three of the four classes, which decides the symmetry and knows a normal class."""
    place = tmp_path_factory.mktemp("continuing")
    known = place / "known"
    for name in ("ok", "scratch", "dent"):
        shutil.copytree(defects / name, known / name)
    config = tiny_config(
        augment__symmetry="auto", finetune__epochs=1, data__normal_class="ok", data__calibrate=0.0
    )
    return train(known, config, out=place / "run")


@pytest.fixture(scope="module")
def new(defects: Path, first: RunFolder) -> Path:
    """Images of a class that the run does not know, and more of one that it knows."""
    folder = first.path.parent / "new"
    shutil.copytree(defects / "hole", folder / "hole")
    (folder / "dent").mkdir()
    for number in range(4):
        shutil.copy(
            defects / "scratch" / f"{number:03d}.png", folder / "dent" / f"{number:03d}.png"
        )
    return folder


def test_new_images_join_and_a_class_grows(first: RunFolder, new: Path, tmp_path: Path) -> None:
    config = continuing_config(first.path, add=True)
    assert config.data.normal_class == "ok"
    assert config.augment.symmetry == first.load_config().augment.symmetry != "auto"
    assert config.model.pretrained == first.path.resolve()
    run = train(new, config, out=tmp_path / "run")
    table = pd.read_csv(run.manifest_path).set_index("image")
    before = pd.read_csv(first.manifest_path).set_index("image")
    assert table["split"].loc[before.index].equals(before["split"])
    added = table.drop(before.index)
    assert added["label"].value_counts().to_dict() == {"hole": 6, "dent": 4}
    assert set(added[added["label"] == "hole"]["split"]) == {"train", "val", "test"}
    # Names that both sets have are told apart.
    assert "new/dent/000.png" in added.index
    assert set(run.label_space().names) == {"ok", "scratch", "dent", "hole"}
    assert any(
        "96 images of it keep their splits, and 10 images are" in why for why in run.reasons()
    )
    judged = evaluate(run.path, report=False).predictions
    assert len(judged.target) == int((table["split"] == "test").sum())


def test_a_folder_that_grew_keeps_the_splits(first: RunFolder, new: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown"  # and has moved
    shutil.copytree(first.source, grown)
    shutil.copytree(new / "hole", grown / "hole")
    (grown / "ok" / "000.png").unlink()
    settings = continuing_config(first.path, add=False).data
    table, why = continued_table(grown, settings, seed=0)
    before = pd.read_csv(first.manifest_path).set_index("image")["split"].drop("ok/000.png")
    assert table.set_index("image")["split"].loc[before.index].equals(before)
    assert "95 images of it keep their splits, and 6 images are new" in why
    assert why.endswith("; missing: 1 image of the run")
    with pytest.raises(DataError, match="holds none of the 96 images of"):
        continued_table(new, settings.model_copy(update={"replay": False}), seed=0)


def test_groups_stay_together(first: RunFolder, new: Path, tmp_path: Path) -> None:
    manifest = pd.read_csv(first.manifest_path)
    known = manifest.assign(lot=range(len(manifest)))
    test_lot = int(known[known["split"] == "test"]["lot"].iloc[0])
    more = pd.DataFrame(
        {"image": [str(path) for path in sorted(new.rglob("*.png"))], "label": "dent"}
    )
    more["lot"] = [test_lot, test_lot, *range(200, 200 + len(more) - 2)]
    table = pd.concat([known.drop(columns=["split"]).assign(image=known["path"]), more])
    table[["image", "label", "lot"]].to_csv(tmp_path / "all.csv", index=False)
    settings = continuing_config(first.path, add=False).data
    settings = settings.model_copy(update={"group_by": "lot"})
    found, _ = continued_table(tmp_path / "all.csv", settings, seed=0)
    assert set(found[found["lot"] == str(test_lot)]["split"]) == {"test"}
    assert found.groupby("lot")["split"].nunique().max() == 1


def test_a_copy_follows_the_image_that_the_run_has(first: RunFolder, tmp_path: Path) -> None:
    known = pd.read_csv(first.manifest_path)
    new = tmp_path / "new"
    for row in known[known["label"] == "scratch"].itertuples():
        (new / "scratch").mkdir(parents=True, exist_ok=True)
        shutil.copy(row.path, new / "scratch" / f"{row.split}-{Path(row.path).name}")
    settings = continuing_config(first.path, add=True).data
    found, _ = continued_table(new, settings, seed=0)
    added = found[~found["path"].isin(known["path"])]
    assert set(added["split"]) == {"train", "val", "test"}
    assert [Path(path).name.partition("-")[0] for path in added["path"]] == list(added["split"])


def test_a_resumed_run_keeps_its_splits(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "", Config())
    table = pd.DataFrame({"image": ["a", "a", "b", "c", "d"], "path": "", "label": "x"})
    assert resumed_table(table, run, Config()) is table  # killed before it had written it
    run.save_manifest(table[:4].assign(split=["test", "val", "train", "new"]))
    assert resumed_table(table, run, Config())["split"].tolist() == [
        *("test", "val", "train", "new", "train"),
    ]
    given = table.assign(split=["train", "train", "train", "test", "train"])
    assert resumed_table(given, run, Config())["split"].tolist() == [
        *("test", "val", "train", "test", "train"),
    ]
    changes = pd.DataFrame({"image": ["d"], "split": ["test"], "was": ["x"], "is": ["-"]})
    run.save_table(run.corrections_path, changes)
    assert resumed_table(table, run, Config())["split"].tolist()[4] == "test"
    run.save_manifest(table[:3].assign(split=["test", "test", "train"]))
    assert resumed_table(table, run, Config())["split"].tolist()[3] == "val"  # unreadable then
    run.manifest_path.write_text("edited\n")
    assert resumed_table(table, run, Config()) is table


def test_what_contradicts_is_refused(first: RunFolder, tmp_path: Path) -> None:
    settings = continuing_config(first.path, add=True).data
    image = pd.read_csv(first.manifest_path)["path"].iloc[0]
    (tmp_path / "new.csv").write_text(f"image,label\n{image},dent\n", encoding="utf-8")
    wrong = pd.read_csv(first.manifest_path)["label"].iloc[0] != "dent"
    with pytest.raises(DataError, match="otherwise than that run does" if wrong else "nothing new"):
        continued_table(tmp_path / "new.csv", settings, seed=0)
    first_config = first.load_config()
    student = first_config.updated({"distill.teacher": first.path})
    copy = RunFolder(tmp_path / "student")
    shutil.copytree(first.path, copy.path)
    copy.save_config(student)
    with pytest.raises(ConfigError, match="is a student's run"):
        continuing_config(copy.path, add=True)
