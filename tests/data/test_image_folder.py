"""Which folders are splits, which are classes, and which are recame's own results."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.data.listing import Unused, list_images, walk_images
from recame.data.manifest import ManifestColumns, read_manifest
from recame.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def told(folder: Path, **how: object) -> tuple[pd.DataFrame, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = read_manifest(folder, **how)  # type: ignore[arg-type]
    return table, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("name", "split"),
    [("dev", "val"), ("Eval", "test"), ("evaluation", "test"), ("holdout", "test")],
)
def test_what_a_split_is_called_beside_train(tmp_path: Path, name: str, split: str) -> None:
    touch(tmp_path, *(f"{top}/{c}/1.png" for top in ("train", name) for c in "ab"))
    table, said = told(tmp_path)
    assert set(table["label"]) == {"a", "b"}
    assert table["split"].value_counts().to_dict() == {"train": 2, split: 2}
    assert said == []


def test_a_further_split_keeps_its_name_beside_a_test(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{top}/{c}/1.png" for top in ("train", "test", "holdout") for c in "ab"))
    assert set(read_manifest(tmp_path)["split"]) == {"train", "test", "holdout"}
    (tmp_path / "m.csv").write_text("image,label,split\n1,a,train\n2,b,dev\n3,a,eval\n4,b,test\n")
    table = read_manifest(tmp_path / "m.csv", ManifestColumns())
    assert table["split"].tolist() == ["train", "val", "eval", "test"]


@pytest.mark.parametrize("name", ["unlabelled", "masks"])
def test_what_is_no_split_beside_train_is_asked_about(tmp_path: Path, name: str) -> None:
    touch(tmp_path, *(f"{top}/{c}/1.png" for top in ("train", name) for c in "ab"))
    with pytest.raises(DataError, match=rf"'train' with .* \(train/a, train/b\).* '{name}', wh"):
        read_manifest(tmp_path)
    assert set(read_manifest(tmp_path / "train")["label"]) == {"a", "b"}
    assert len(read_manifest(tmp_path, labels="ignored")) == 4


@pytest.mark.parametrize("name", ["test", "val", "Dev", "train"])
def test_a_class_named_as_a_split_is_told(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "ok/1.png", "ok/2.png", "nok/1.png", f"{name}/1.png", f"{name}/2.png")
    table, said = told(tmp_path)
    assert set(table["label"]) == {"ok", "nok", name}
    assert len(said) == 1
    assert f"'{name}' of {tmp_path} (2 images) counts as a class" in said[0]
    _, said = told(tmp_path, labels="ignored")
    assert said == []


def test_folders_without_images_decide_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png")
    for empty in ("notes", "runs/first"):
        (tmp_path / empty).mkdir(parents=True)
    table, _ = told(tmp_path)
    assert table["split"].tolist() == ["train", "train"]


@pytest.mark.parametrize("marker", ["run.json", "bundle.json"])
@pytest.mark.parametrize("top", ["", "train/"])
def test_results_among_the_images_are_no_data(tmp_path: Path, marker: str, top: str) -> None:
    touch(tmp_path, f"{top}a/1.png", f"{top}b/1.png")
    before = read_manifest(tmp_path)
    run = tmp_path / "runs" / "first"
    touch(run, "evaluation/test/confusion.png")
    (run / marker).write_text("{}")
    (run / "notes.odd").touch()
    touch(tmp_path, f"{top}a/kept/evaluation/confusion.png")
    (tmp_path / f"{top}a" / "kept" / marker).write_text("{}")
    table, said = told(tmp_path)
    pd.testing.assert_frame_equal(table, before)
    (line,) = said
    assert f"2 folders in {tmp_path} are runs or bundles of recame (" in line
    assert f"{top}a/kept" in line
    assert "runs/first" in line
    assert [path.name for path in list_images([tmp_path])] == ["1.png", "1.png"]
    # A run without pictures hides no image.
    (run / "evaluation" / "test" / "confusion.png").unlink()
    (tmp_path / f"{top}a" / "kept" / "evaluation" / "confusion.png").unlink()
    assert told(tmp_path)[1] == []
    unused = Unused()
    assert len(list(walk_images(tmp_path, unused))) == 2
    assert (set(unused.own), len(unused)) == ({f"{top}a/kept", "runs/first"}, 0)


def test_a_run_that_is_named_is_searched(tmp_path: Path) -> None:
    touch(tmp_path, "evaluation/confusion.png")
    (tmp_path / "run.json").write_text("{}")
    assert len(list_images([tmp_path])) == 1
