"""Facts of a manifest, of headers and of pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.data.audit import audit_manifest, category_columns, group_columns
from recame.data.contents import equal_groups, pixel_statistics, read_headers
from recame.errors import DataError


def make_table(**columns: list[object]) -> pd.DataFrame:
    num = len(next(iter(columns.values())))
    names = [f"{i}.png" for i in range(num)]
    return pd.DataFrame({"image": names, "path": names, **columns})


def test_counts_are_ordered_and_zeros_kept() -> None:
    table = make_table(
        label=["b", "a", "a", "c", "a", "b"],
        split=["test", "train", "train", "train", "test", "extra"],
        product=["p", "p", "q", "q", "p", "p"],
    )
    audit = audit_manifest(table)
    assert audit.classes["class"].tolist() == ["a", "b", "c"]
    assert audit.classes["train"].tolist() == [2, 0, 1]
    assert audit.splits == {"train": 3, "test": 2, "extra": 1}
    assert audit.imbalance_ratio == 2.0  # in train, where b has no image
    assert audit.products is not None
    assert audit.products.loc["b"].tolist() == [2, 0]
    assert audit.num_empty_cells == 2


def test_nothing_is_invented_without_columns() -> None:
    audit = audit_manifest(make_table(label=["a"]))
    assert audit.splits == {}
    assert audit.products is None
    assert audit.groups == ()
    assert audit.imbalance_ratio == 1.0


def test_a_board_in_two_splits_is_found() -> None:
    boards = [f"B{i // 2}" for i in range(60)]
    split = ["train"] * 30 + ["test"] * 30
    split[1] = "test"  # the second image of B0
    audit = audit_manifest(make_table(label=["a"] * 60, split=split, board_id=boards))
    (group,) = audit.groups
    assert group.column == "board_id"
    assert group.straddling["group"].tolist() == ["B0"]
    assert group.straddling["splits"].tolist() == ["test, train"]
    assert group.num_images == 2
    assert not group.by_nature


def test_few_values_are_shared_by_nature_unless_named() -> None:
    table = make_table(
        label=["a"] * 40, split=["train", "test"] * 20, tool=["t1", "t1", "t2", "t2"] * 10
    )
    assert audit_manifest(table).groups[0].by_nature
    assert not audit_manifest(table, group_by="tool").groups[0].by_nature


def test_columns_are_chosen_by_word_and_by_values() -> None:
    table = make_table(
        label=["a"] * 4, keyboard=["x", "y"] * 2, Wafer=["w1", "w2"] * 2, lot=["l"] * 4
    )
    assert group_columns(table) == ["Wafer"]
    assert category_columns(table) == ["keyboard", "Wafer"]


def test_measured_columns_are_no_groups() -> None:
    number = list(range(30)) * 2
    table = make_table(
        label=["a"] * 60,
        die_x=number,
        tool_temperature=number,
        wafer=[i / 4 for i in number],
        unit=[float(i) for i in number],
    )
    assert group_columns(table) == ["unit"]


def test_a_column_of_truth_values_is_a_group_like_others() -> None:
    table = make_table(
        label=["a"] * 6, split=["train"] * 3 + ["test"] * 3, sample=[True, False, True] * 2
    )
    (group,) = audit_manifest(table).groups
    assert group.straddling[["group", "splits"]].to_numpy().tolist() == [
        ["True", "test, train"],
        ["False", "test, train"],
    ]
    table.loc[:2, "sample"] = True
    (group,) = audit_manifest(table, group_by="sample").groups
    assert group.straddling["group"].tolist() == ["True"]


def test_an_unknown_group_column_is_refused() -> None:
    with pytest.raises(DataError, match="no column 'wafer'"):
        audit_manifest(make_table(label=["a"]), group_by="wafer")


def test_headers_tell_depth_and_channels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 7), np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "colour.bmp")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    names = ("deep.png", "colour.bmp", "turned.jpg", "broken.png", "gone.png")
    paths = [str(tmp_path / name) for name in names]
    headers = read_headers(paths)
    assert headers[["height", "width", "channels", "bits"]].to_numpy().tolist() == [
        [5, 7, 1, 16],
        [5, 7, 3, 8],
        [7, 5, 1, 8],
    ]


def test_pixels_are_measured_and_equal_ones_found() -> None:
    images = np.zeros((3, 4, 4, 1), np.uint8)
    images[1, :, :2] = 255
    facts = pixel_statistics(images, 255.0)
    assert facts["brightness"].tolist() == [0.0, 0.5, 0.0]
    assert facts["contrast"].tolist() == [0.0, 0.5, 0.0]
    assert equal_groups(facts["digest"].tolist()).tolist() == [0, -1, 0]
    assert len(pixel_statistics(images[:0], 255.0)) == 0


@pytest.mark.parametrize("column", ["piece", "coil_id", "slab", "sheet", "panel", "heat", "charge"])
def test_pieces_of_metal_are_groups(column: str) -> None:
    table = pd.DataFrame({"label": list("aabb"), column: [1, 1, 2, 2]})
    assert group_columns(table) == [column]
