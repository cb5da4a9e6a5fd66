"""Whole inspections: a generated set with planted faults, and sets that others would refuse."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from recame.config import DataConfig
from recame.datasets.generated import SyntheticSpec, write
from recame.errors import DataError
from recame.inspection import (
    Inspection,
    inspect_set,
    print_inspection,
    save_inspection,
)
from recame.inspection.checks.duplicates import Duplicates
from recame.inspection.checks.files import Files
from recame.inspection.checks.label_errors import LabelErrors
from recame.inspection.checks.structure import Structure
from recame.pages.drawing import figure_label

CACHE = "cache"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inspection, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("planted")
    spec = SyntheticSpec(
        num_images=700,
        num_classes=5,
        num_products=4,
        clusters_per_class=3,
        imbalance=100,
        label_noise=0.03,
        exact_duplicates=0.02,
        leaks=0.1,
        seed=1,
    )
    manifest = write(spec, folder / "set")
    truth = pd.read_csv(folder / "set" / "truth.csv", keep_default_na=False)
    inspection = inspect_set(manifest, data=DataConfig(cache_dir=folder / CACHE))
    return inspection, truth


def test_planted_clusters_are_recovered(planted: tuple[Inspection, pd.DataFrame]) -> None:
    inspection, truth = planted
    structure, embedded = inspection[Structure], inspection.embedded
    assert embedded is not None
    labels = inspection.table["label"].to_numpy()[embedded.rows]
    right = labels == truth["true_label"].to_numpy()[embedded.rows]
    cluster = truth["cluster"].to_numpy()[embedded.rows]
    scores = [
        adjusted_rand_score(cluster[own], structure.cluster[own])
        for own in (right & (labels == name) for name in inspection.audit.classes["class"])
    ]
    assert np.mean(scores) > 0.8
    head = structure.classes.iloc[0]
    assert 2.5 < head["effective"] < 4.5
    assert head["kind"] == "many in few"
    assert structure.agreement.iloc[0]["column"] == "product"
    assert structure.agreement.iloc[0]["ami"] > 0.8


def test_planted_faults_are_found(planted: tuple[Inspection, pd.DataFrame]) -> None:
    inspection, truth = planted
    duplicates = inspection[Duplicates]
    exact = truth["duplicate_kind"] == "exact"
    assert duplicates.equal["group"].nunique() >= exact.sum() * 0.9
    assert set(np.flatnonzero(exact)) <= set(duplicates.equal["table_row"])
    source = truth["duplicate_of"].where(truth["duplicate_of"] != "", truth["image"]).to_numpy()
    near = duplicates.near
    same = source[near["first"].to_numpy(int)] == source[near["second"].to_numpy(int)]
    assert same.mean() > 0.8
    assert same.sum() >= 5
    wrong = (inspection.table["label"] != truth["true_label"]).to_numpy()
    first = inspection[LabelErrors].suspects["table_row"].to_numpy(int)[:10]
    assert wrong[first].mean() >= 0.5
    keys = [finding.key for finding in inspection.findings()]
    assert {"leaks", "duplicates", "labels", "small", "group-board"} <= set(keys)


def test_files_are_written_whole(planted: tuple[Inspection, pd.DataFrame], tmp_path: Path) -> None:
    inspection, _ = planted
    (tmp_path / "broken.csv").write_text("of an earlier inspection")
    page = save_inspection(inspection, tmp_path)
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/") > 40
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert page.stat().st_size < 4_000_000
    document = json.loads((tmp_path / "inspection.json").read_text(encoding="utf-8"))
    assert document["schema"] == 1
    assert document["images"] == 700
    names = {path.name for path in tmp_path.iterdir()}
    assert {"suspects.csv", "duplicates.csv", "leaks.csv", "clusters.csv"} <= names
    assert "broken.csv" not in names
    assert not any(name.endswith(".part") for name in names)
    suspects = pd.read_csv(tmp_path / "suspects.csv")
    assert len(suspects) == len(inspection[LabelErrors].suspects)
    assert suspects["corrected_label"].isna().all()  # for people to fill in


@pytest.mark.parametrize("width", [60, 80, 100])
def test_summary_fits_the_terminal(planted: tuple[Inspection, pd.DataFrame], width: int) -> None:
    stream = io.StringIO()
    print_inspection(planted[0], Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in stream.getvalue()
    structure = planted[0][Structure].classes
    for row in structure.to_dict("records"):  # whole, in one line
        figures = rf" {row['effective']:,.1f} +{row['images_per_cluster']:,.1f} "
        assert any(re.search(figures, line + " ") for line in lines)
    assert any("may be wrong" in line for line in lines)


def test_words_of_the_table_are_explained_beside_it(
    planted: tuple[Inspection, pd.DataFrame],
) -> None:
    stream, structure = io.StringIO(), planted[0][Structure]
    kinds, dense = structure.classes["kind"].copy(), "Many in few: many images in few appearances."
    scattered = "Few in many: few images scattered over many appearances."
    try:
        structure.classes["kind"] = ["many in few", *["few in many"] * (len(kinds) - 1)]
        print_inspection(planted[0], Console(file=stream, width=100))
        (finding,) = [found for found in structure.say() if found.key == "few-in-many"]
        assert finding.text.startswith("Few images, scattered over many appearances: ")
        assert structure.tiles()[0]["meaning"] == (
            "classes with few images scattered over many appearances; 1 class with many images "
            "in few (many in few)"
        )
    finally:
        structure.classes["kind"] = kinds
    told = " ".join(stream.getvalue().split())
    assert dense in told
    assert scattered in told


def images(folder: Path, labels: list[str], size: int = 32) -> pd.DataFrame:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number, _ in enumerate(labels):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (size, size), np.uint8)).save(path)
        paths.append(str(path))
    return pd.DataFrame({"image": paths, "path": paths, "label": labels})


def test_one_of_everything_reads_as_one(tmp_path: Path) -> None:
    table = images(tmp_path / "parts", ["ok"] * 5 + ["dent"] * 5).assign(product="P1")
    for number, (height, width) in {0: (40, 32), 1: (32, 48)}.items():
        Image.new("L", (width, height), 90).save(table["path"][number])
    inspection = inspected(table, tmp_path)[0]
    (sizes,) = [found for found in inspection[Files].say() if found.key == "sizes"]
    assert sizes.text == (
        "Height x width: 32 x 32 (8 files), 40 x 32 (1 file), 32 x 48 (1 file); 8 bit "
        "(from 10 headers)."
    )
    stream = io.StringIO()
    print_inspection(inspection, Console(file=stream, width=80))
    assert " · 1 product\n" in stream.getvalue()
    inspection[Files].unused.add("notes.txt")
    titles = [found.title for found in inspection[Files].say()]
    assert "1 file in the folder is not used" in titles


def inspected(table: pd.DataFrame, tmp_path: Path) -> tuple[Inspection, set[str], str]:
    inspection = inspect_set(
        table,
        data=DataConfig(cache_dir=tmp_path / CACHE),
        out=tmp_path / "out",
        console=Console(file=io.StringIO(), width=80),
    )
    page = tmp_path / "out" / "inspection.html"
    keys = {finding.key for finding in inspection.findings()}
    return inspection, keys, page.read_text(encoding="utf-8")


def test_a_caller_s_table_stays_as_it_was(tmp_path: Path) -> None:
    table = images(tmp_path, ["a"] * 6 + ["b"] * 6)
    table["split"] = pd.Categorical(["train", "test"] * 6)
    table["lot"] = np.arange(12) // 3
    Path(table["path"][0]).write_bytes(b"no image")
    table.index = table.index[::-1] + 7
    before = table.copy(deep=True)
    inspected(table, tmp_path)
    pd.testing.assert_frame_equal(table, before)


def test_one_image(tmp_path: Path) -> None:
    inspection, keys, html = inspected(images(tmp_path, ["ok"]), tmp_path)
    assert {"one-class", "no-splits", "no-products"} <= keys
    assert inspection.embedded is not None
    assert inspection[Structure].classes["clusters"].tolist() == [1]
    assert "1 image" in html


def test_labels_that_only_the_test_split_has(tmp_path: Path) -> None:
    table = images(tmp_path, ["a"] * 6 + ["b"] * 3)
    table["split"] = ["train"] * 6 + ["test"] * 3
    inspection, keys, _ = inspected(table, tmp_path)
    assert {"unseen", "absent-test", "no-val"} <= keys
    assert inspection.embedded is not None
    assert inspection[Structure].classes["images"].tolist() == [6, 0]


def test_a_leaked_image_counts_for_the_training_split(tmp_path: Path) -> None:
    table = images(tmp_path, ["a"] * 6 + ["b"] * 6)
    table["split"] = ["test"] * 3 + ["train"] * 9
    for number in range(3):  # rows of the test split come first
        Path(table["path"][number]).write_bytes(Path(table["path"][number + 3]).read_bytes())
    inspection, keys, _ = inspected(table, tmp_path)
    assert "leaks" in keys
    assert inspection.embedded is not None
    assert inspection[Structure].classes["images"].tolist() == [3, 6]


@pytest.mark.slow
def test_numbers_that_each_lot_counts_anew_are_no_leak(tmp_path: Path) -> None:
    table = images(tmp_path, ["a", "b"] * 60, size=8)
    table["lot"] = [f"L{i // 5}" for i in range(120)]
    table["split"] = ["train"] * 60 + ["test"] * 60
    table["wafer"] = [i % 24 for i in range(120)]
    found = {f.key: f for f in inspected(table, tmp_path)[0].findings()}
    assert found["group-wafer"].level == "note"
    assert "start again in each lot" in found["group-wafer"].text
    table["lot"] = "L"
    found = {f.key: f for f in inspected(table, tmp_path / "again")[0].findings()}
    assert found["group-wafer"].level == "bad"


def test_names_that_matplotlib_would_read_otherwise(tmp_path: Path) -> None:
    table = images(tmp_path, ["C$#$"] * 4 + ["_misc"] * 4 + ["\u7f3a\u9677"] * 4)
    table["product"] = ["$_$", "\u7f3a\u9677"] * 6
    _, _, html = inspected(table, tmp_path)
    assert "C$#$" in html
    assert (figure_label("_$x", 9), figure_label("long name", 5)) == (r" _\$x", "long…")


def test_many_unreadable_files_and_conflicting_copies(tmp_path: Path) -> None:
    table = images(tmp_path, ["a", "b", "a", "b", "a"])
    Path(table["path"][0]).write_bytes(b"no image")
    Path(table["path"][3]).write_bytes(Path(table["path"][2]).read_bytes())
    inspection, keys, html = inspected(table, tmp_path)
    assert len(inspection[Files].broken) == 1
    assert {"broken", "conflicts"} <= keys
    assert inspection[Duplicates].equal["image"].tolist() == table["image"].tolist()[2:4]
    assert "not an image" in html


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    table = images(tmp_path, ["a", "b"])
    for path in table["path"]:
        Path(path).write_bytes(b"")
    with pytest.raises(DataError, match="can be read"):
        inspect_set(table, data=DataConfig(cache_dir=tmp_path / CACHE))


def test_thousands_of_classes_and_rows_without_images(tmp_path: Path) -> None:
    num = 20_000
    names = [f"{i}.png" for i in range(num)]
    table = pd.DataFrame(
        {
            "image": names,
            "path": names,
            "label": [f"class {i % 3000}" for i in range(num)],
            "split": "train",
            "lot": [f"L{i % 500}" for i in range(num)],
        }
    )
    inspection = inspect_set(table, decode=False)
    page = save_inspection(inspection, tmp_path).read_text(encoding="utf-8")
    assert inspection.embedded is None
    assert "3,000 classes" in page
    assert "Clusters within classes" not in page
    assert len(page) < 1_000_000


@pytest.mark.slow
def test_thousands_of_classes_with_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recame.inspection.examine.MOST_EMBEDDED", 60)
    table = images(tmp_path, [f"c{i // 2}" for i in range(100)])
    inspection, keys, _ = inspected(table, tmp_path)
    assert inspection.embedded is not None
    assert len(inspection.embedded.rows) <= 60
    assert "sampled" in keys


@pytest.mark.slow
def test_parts_of_a_file_are_kept_together_without_advice(tmp_path: Path) -> None:
    table = images(tmp_path, ["ok"] * 6 + ["hole"] * 6)
    found, _, _ = inspected(table, tmp_path / "whole")
    [finding] = [f for f in found.findings() if f.key == "no-splits"]
    assert "data.group_by" in finding.action
    # Two small boxes beside each other show the same.
    boxes = [f"{name}#xywh={x},14,4,4" for name in table["image"] for x in (12, 13)]
    rows = pd.DataFrame({"image": boxes, "path": boxes, "label": ["ok"] * 12 + ["hole"] * 12})
    found, keys, _ = inspected(rows, tmp_path / "parts")
    told = {f.key: f for f in found.findings()}
    assert "keep the pages and boxes of each file together" in told["no-splits"].text
    assert "duplicates" in keys
    assert "data.group_by" not in told["no-splits"].action + told["duplicates"].action
