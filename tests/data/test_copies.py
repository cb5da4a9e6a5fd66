"""Copies of a file: found cheaply, drawn into one split, and told where they lie in two."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.config import DataConfig
from recame.data import copies
from recame.data.copies import copies_of
from recame.data.dataset import InspectionSet, load_inspection_set
from recame.data.manifest import read_manifest
from recame.data.splits import complete_splits, draw_splits, make_splits


def write(folder: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (16, 16), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.bmp")
    return folder


def load(source: Path | pd.DataFrame, tmp_path: Path) -> tuple[InspectionSet, list[str]]:
    config = DataConfig(size=16, tiles=0, cache_dir=tmp_path / "cache")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_inspection_set(source, config, seed=0)
    return loaded, [str(warning.message) for warning in caught]


def splits(folder: Path) -> pd.Series:
    asked = {"val_fraction": 0.15, "test_fraction": 0.15, "group_by": None, "seed": 0}
    table = complete_splits(read_manifest(folder), **asked)  # type: ignore[arg-type]
    return table.set_index("image")["split"]


def test_only_equal_bytes_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [b"a" * 50_000, b"a" * 50_000, b"b" * 50_000, b"", b"", b"short", b"a" * 49_999]
    contents.append(b"a" * 16_000 + b"c" + b"a" * 33_999)  # equal in all pieces that are read first
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    names = [*range(len(contents)), "gone", "gone2", 5]
    table = pd.DataFrame({"path": [str(tmp_path / f"{name}.png") for name in names]})
    table.index += 10
    read: list[str] = []
    whole = copies._whole
    monkeypatch.setattr(copies, "_whole", lambda file: read.append(file) or whole(file))  # type: ignore[func-returns-value]
    found = copies_of(table)
    assert found is not None
    assert found.index.tolist() == table.index.tolist()
    groups = [sorted(rows - 10) for rows in found.groupby(found).groups.values() if len(rows) > 1]
    assert groups == [[0, 1], [5, 10]]
    assert {Path(file).stem for file in read} == {"0", "1", "7"}
    assert copies_of(table[2:5]) is None
    assert copies_of(table[["path"]].rename(columns={"path": "image"})) is None


def test_pages_and_pipes(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif", "c#2.tif"):
        (tmp_path / name).write_bytes(b"x" * 99)
    os.mkfifo(tmp_path / "pipe.tif")
    paths = [str(tmp_path / name) for name in ("a.tif#1", "a.tif#2", "b.tif#1", "pipe.tif")]
    assert pd.Series(copies_of(pd.DataFrame({"path": paths}))).tolist() == [0, 1, 0, 2]
    named = pd.DataFrame({"path": [str(tmp_path / "a.tif"), str(tmp_path / "c#2.tif")]})
    assert pd.Series(copies_of(named)).tolist() == [0, 0]


def test_copies_are_drawn_into_one_split(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"a": 60, "b": 40, "rare": 6})
    before = splits(folder)
    assert make_splits(
        read_manifest(folder)["label"], val_fraction=0.15, test_fraction=0.15, seed=0
    ).tolist() == list(before)
    for number in range(20):
        shutil.copy(folder / "a" / f"{number:03d}.bmp", folder / "a" / f"copy{number}.bmp")
    for number in range(6):
        for times in range(5):
            shutil.copy(
                folder / "rare" / f"{number:03d}.bmp", folder / "rare" / f"{number}{times}.bmp"
            )
    after = splits(folder)
    for number in range(20):
        assert after[f"a/{number:03d}.bmp"] == after[f"a/copy{number}.bmp"]
    for number in range(6):
        assert (
            len({after[f"rare/{number:03d}.bmp"], *after.filter(regex=f"rare/{number}[0-4].bmp")})
            == 1
        )
    shares = after.value_counts(normalize=True)
    assert 0.6 < shares["train"] < 0.8
    assert set(after.filter(regex="rare/")) == {"train", "val", "test"}
    pd.testing.assert_series_equal(after, splits(folder))
    _, said = load(folder, tmp_path)
    assert said == []


def test_copies_with_several_labels_cost_no_class_its_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"a": 60, "b": 3})
    for number in range(3):
        shutil.copy(folder / "b" / f"{number:03d}.bmp", folder / "a" / f"b{number}.bmp")
    found = splits(folder)
    assert set(found.filter(regex="^b/")) == {"train", "val", "test"}
    loaded, said = load(folder, tmp_path)
    (line,) = said
    assert line.startswith("6 images have a copy with another label (a/b0.bmp is ")
    assert "a/b0.bmp is 'a', b/000.bmp is 'b'" in line
    assert loaded.label_space.num_classes == 2


def test_what_is_the_same_throughout_is_split_all_the_same() -> None:
    labels = pd.Series(["a"] * 10 + ["b"] * 10)
    asked = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}
    same = pd.Series([0] * 20)
    plain = make_splits(labels, **asked)  # type: ignore[arg-type]
    pd.testing.assert_series_equal(draw_splits(labels, copies=same, **asked), plain)  # type: ignore[arg-type]
    # Given groups decide.
    boards = pd.Series([number % 5 for number in range(20)], name="board")
    grouped = make_splits(labels, groups=boards, **asked)  # type: ignore[arg-type]
    drawn = draw_splits(labels, groups=boards, copies=same, **asked)  # type: ignore[arg-type]
    pd.testing.assert_series_equal(drawn, grouped)


def test_val_and_calibrate_are_drawn_without_copies(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"a": 40, "b": 40})
    for path in list(folder.glob("*/*.bmp")):
        shutil.copy(path, path.with_name(f"copy{path.name}"))
    table = read_manifest(folder).assign(split="train")
    asked = {"val_fraction": 0.2, "test_fraction": 0.2, "group_by": None, "seed": 0}
    found = complete_splits(table, calibrate_fraction=0.2, **asked)  # type: ignore[arg-type]
    assert set(found["split"]) == {"train", "val", "calibrate"}
    named = found["image"].str.replace("copy", "")
    assert found["split"].groupby(named).nunique().max() == 1


def test_copies_in_given_splits_are_told(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set",
        {"train/a": 9, "train/b": 9, "val/a": 3, "val/b": 3, "test/a": 3, "test/b": 3},
    )
    assert load(folder, tmp_path)[1] == []
    for number in range(2):
        shutil.copy(
            folder / "train" / "a" / f"{number:03d}.bmp", folder / "test" / "a" / f"x{number}.bmp"
        )
    shutil.copy(folder / "val" / "a" / "001.bmp", folder / "test" / "b" / "y.bmp")
    shutil.copy(folder / "train" / "b" / "001.bmp", folder / "val" / "b" / "z.bmp")
    shutil.copy(folder / "train" / "b" / "002.bmp", folder / "train" / "b" / "fine.bmp")
    for _ in range(2):  # from the files, and from the cache
        _, (leaks, labels) = load(folder, tmp_path)
        assert leaks.startswith("3 images of test and 1 image of val are copies of an image in ano")
        assert "test/a/x0.bmp = train/a/000.bmp in train; test/a/x1.bmp = train/a/001.bmp" in leaks
        assert "inspect lists them (leaks.csv)" in leaks
        assert labels.startswith("2 images have a copy with another label")
    # Whoever judges with a model that is there learns nothing from them.
    loaded, _ = load(folder, tmp_path)
    config = DataConfig(size=16, tiles=0, cache_dir=tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space = loaded.label_space
        load_inspection_set(folder, config, seed=0, spec=loaded.spec, label_space=space)


def test_a_row_that_is_there_twice(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"a": 10, "b": 10})
    table = read_manifest(folder)
    table = pd.concat([table, table[:4]], ignore_index=True)
    loaded, said = load(table, tmp_path)
    assert said == []
    assert loaded.table.groupby("image")["split"].nunique().max() == 1
