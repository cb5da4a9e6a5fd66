"""Rows of a table that mean a box of a file: what is seen of it, its name, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recame.config import DataConfig
from recame.contracts import PreprocessSpec
from recame.data import cache as cache_module
from recame.data import decode as decode_module
from recame.data.cache import build_cache
from recame.data.contents import content_digests, read_headers
from recame.data.dataset import load_inspection_set
from recame.data.decode import Reader, decode_image
from recame.data.file_groups import groups_of
from recame.data.file_part import Box, FilePart, crop, readings, split_part
from recame.data.image_table import TableColumns, table_rows
from recame.data.listing import list_image_names
from recame.data.manifest import ManifestColumns, read_manifest
from recame.data.proposal import native_size, propose_spec
from recame.errors import CheckpointError, DataError, MissingDependencyError

LIMIT = 10_000_000
SPEC = PreprocessSpec(40, 40, 1, 8, 255.0, (0.5,), (0.5,))


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """200 x 100 pixels (height, width) whose values tell their place."""
    pixels = np.arange(200)[:, None] // 2 + np.arange(100)
    path = tmp_path / "board.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def seen(path: Path, box: str, **changes: float) -> np.ndarray:
    spec = PreprocessSpec(40, 40, 1, 8, 255.0, (0.5,), (0.5,), **changes)
    return decode_image(Path(f"{path}#xywh={box}"), spec, max_pixels=LIMIT)[..., 0]


def test_a_box_is_seen_with_what_surrounds_it(board: Path) -> None:
    whole = np.asarray(Image.open(board))
    np.testing.assert_array_equal(seen(board, "40,90,20,10"), whole[75:115, 30:70])
    # At the border the square is shifted inside: nothing is made up.
    np.testing.assert_array_equal(seen(board, "90,180,10,20"), whole[160:200, 60:100])
    # What reaches over the border does not count.
    np.testing.assert_array_equal(seen(board, "-5,0,25,10"), whole[0:40, 0:40])
    # The square may be as large as the box asks for, then it is resized.
    np.testing.assert_array_equal(seen(board, "30,80,40,20", context=1.0), whole[70:110, 30:70])


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        (Box(50, 50, 1, 1), (200, 100), (slice(34, 66), slice(34, 66))),  # at least 32 pixels
        (Box(0, 0, 4, 4), (20, 24), (slice(0, 20), slice(0, 20))),  # as many as there are
        (Box(40, 20, 40, 30), (60, 500), (slice(0, 60), slice(30, 90))),  # square while it may be
        (Box(40, 20, 100, 30), (60, 500), (slice(0, 60), slice(40, 140))),  # longer than high
        (Box(10.5, 10.5, 29.5, 20), (100, 100), (slice(0, 59), slice(0, 59))),
    ],
)
def test_the_square_around_a_box(
    box: Box, size: tuple[int, int], expected: tuple[slice, slice]
) -> None:
    assert crop(box, *size, 2.0) == expected


_SIDE = st.integers(1, 500)


@given(_SIDE, _SIDE, st.floats(0, 1), st.floats(0, 1), st.floats(0.5, 600), st.floats(1, 9))
def test_a_crop_lies_inside_and_holds_the_box(
    height: int, width: int, x: float, y: float, side: float, context: float
) -> None:
    box = Box(x * (width - 0.25) - side / 2, y * (height - 0.25) - side / 2, side, side)
    rows, columns = crop(box, height, width, context)
    for part, first, length in ((rows, box.y, height), (columns, box.x, width)):
        assert 0 <= part.start < part.stop <= length
        assert part.start <= max(first, 0) + 1
        assert part.stop >= min(first + side, length) - 1


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("100,10,5,5", r"its box 100,10,5,5 \(x, y, width, height\) lies outside its 100 x 200"),
        ("10,-8,5,5", "lies outside its 100 x 200 pixels"),
        ("10,10,0,5", r"its box 10,10,0,5 \(x, y, width, height\) has no area"),
        ("10,10,5", "no such file"),
        ("10,10,-5,5", "no such file"),
    ],
)
def test_a_box_that_cannot_be_seen_says_why(board: Path, box: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        seen(board, box)
    name = f"{board}#xywh={box}"
    found = build_cache([Path(name)], SPEC, cache_dir=board.parent / "c", max_pixels=LIMIT)
    [broken] = found.broken
    assert (broken.path, Reader(SPEC, LIMIT).read(name).pixels) == (name, broken.reason)


def test_upright_pixels_count(tmp_path: Path) -> None:
    turned = np.arange(100 * 200, dtype=np.uint32).reshape(100, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise makes it upright
    Image.fromarray((turned % 251).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90((turned % 251).astype(np.uint8), -1)
    np.testing.assert_array_equal(seen(tmp_path / "a.png", "40,150,20,10"), upright[135:175, 30:70])


def test_a_box_on_a_page(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((60, 80), value, np.uint8)) for value in (10, 20)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    name = f"{tmp_path / 'a.tif'}#2&xywh=10,10,4,4"
    read = Reader(SPEC, LIMIT).read(name, checksum=True)
    assert set(np.asarray(read.pixels).flat) == {20}
    assert read.lost == {}
    first = Reader(SPEC, LIMIT).read(name.replace("2&", ""))
    assert set(np.asarray(first.pixels).flat) == {10}
    assert list(first.lost) == ["pages"]
    # A file that is called so wins, as of pages.
    Image.fromarray(np.full((60, 80), 99, np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "a.tif#2")
    assert set(decode_image(Path(name), SPEC, max_pixels=LIMIT).flat) == {99}
    assert [str(part) for _, part in readings(name)] == ["", "#xywh=10,10,4,4", "#2&xywh=10,10,4,4"]


@given(st.text(), *[st.floats(-9999, 9999)] * 2, *[st.floats(0, 9999)] * 2, st.integers(0, 99))
def test_names_tell_their_part(
    file: str, x: float, y: float, width: float, height: float, page: int
) -> None:
    part = FilePart(page, Box(x, y, width, height))
    found, read = split_part(f"{file}{part}")
    if file:
        assert found == file
        assert read.page == page
        assert read.box is not None
        assert read.box == pytest.approx(part.box, abs=0.0005)
    assert f"{found}{read}" == f"{file}{part}"


def test_sizes_are_those_of_what_is_seen(board: Path) -> None:
    boxes = [Path(f"{board}#xywh=40,90,30,10"), Path(f"{board}#xywh=10,10,20,30")]
    assert native_size(boxes) == (60, 60)
    assert native_size(boxes, context=1.5) == (45, 45)
    spec, native = propose_spec(boxes, size=None, max_pixels=LIMIT, context=1.5)
    assert (spec.context, spec.height, native) == (1.5, 45, (45, 45))
    assert read_headers([str(boxes[0])])["height"].tolist() == [60]


def test_context_travels_with_the_preprocessing() -> None:
    usual = SPEC.to_dict()
    assert usual["schema"] == 1
    assert "context" not in usual
    wide = PreprocessSpec(40, 40, 1, 8, 255.0, (0.5,), (0.5,), context=3.0)
    assert wide.to_dict()["schema"] == 3
    assert PreprocessSpec.from_dict(wide.to_dict()) == wide
    assert PreprocessSpec.from_dict(usual).context == 2.0
    assert wide.decode_fingerprint() != SPEC.decode_fingerprint()
    with pytest.raises(CheckpointError, match=r"context=0\.5"):
        PreprocessSpec(40, 40, 1, 8, 255.0, (0.5,), (0.5,), context=0.5)


def test_a_file_is_decoded_once_for_its_boxes(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    real = cache_module.read_image

    def counting(*args: object, **options: object) -> object:
        decoded.append(args)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "read_image", counting)
    names = [Path(f"{board}#xywh={10 * n},20,10,10") for n in range(11)]  # the last lies outside

    def cached(paths: list[Path]) -> cache_module.ImageCache:
        return build_cache(paths, SPEC, cache_dir=board.parent / "c", max_pixels=LIMIT)

    found = cached(names)
    assert len(decoded) == 1
    assert [broken.path for broken in found.broken] == [str(names[10])]
    for name, row in zip(names[:10], found.row_of, strict=False):
        np.testing.assert_array_equal(found.images[row], decode_image(name, SPEC, max_pixels=LIMIT))
    # Another box is another image, to the fingerprint too.
    assert cached(names[:3]).fingerprint != cached([names[0], names[1], names[4]]).fingerprint
    again = content_digests([str(names[0]), str(names[1]), str(names[0])])
    assert again[0] == again[2] != again[1]
    os.utime(board, (1, 1))
    cached(names)
    assert len(decoded) == 4


def test_a_prediction_decodes_a_file_once_for_boxes_that_follow_each_other(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = board.with_name("other.png")
    other.write_bytes(board.read_bytes())
    decoded = []
    real = decode_module.read_image

    def counting(*args: object, **options: object) -> object:
        decoded.append(args)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(decode_module, "read_image", counting)
    reader = Reader(SPEC, LIMIT)

    def corner(path: Path, x: int) -> int:
        return int(
            np.asarray(reader.read(f"{path}#xywh={x},10,10,10", checksum=x > 40).pixels)[0, 0, 0]
        )

    assert [corner(board, x) for x in (20, 40, 60)] == [9, 29, 49]
    assert corner(other, 20) == 9  # the same bytes
    assert len(decoded) == 1
    Image.fromarray(np.full((200, 100), 7, np.uint8)).save(board)
    assert [corner(board, x) for x in (20, 40)] == [7, 7]
    assert len(decoded) == 2
    assert reader.read(board).lost == {}
    assert len(decoded) == 3  # a whole image is not kept
    monkeypatch.setattr(decode_module, "_MOST_KEPT", 100)
    assert [corner(other, x) for x in (20, 40)] == [9, 29]
    assert len(decoded) == 5


def table(path: Path, rows: list[str], header: str = "image,label,x,y,width,height") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_rows_with_and_without_boxes(board: Path, tmp_path: Path) -> None:
    source = table(
        tmp_path / "m.csv",
        ["board.png,ok,,,,", "board.png,hole,10,20,30,40", "board.png#2,dent,1.50,2,3,4.0004"],
    )
    found = read_manifest(source)
    names = ["board.png", "board.png#xywh=10,20,30,40", "board.png#2&xywh=1.5,2,3,4"]
    assert found["image"].tolist() == names
    assert found["path"].tolist() == [str(tmp_path / name) for name in names]
    assert found["width"].tolist()[1:] == [30, 3]
    assert list_image_names([source]) == [str(tmp_path / name) for name in names]
    # What was named so once is not named twice.
    found.drop(columns="path").to_csv(tmp_path / "again.csv", index=False)
    assert read_manifest(tmp_path / "again.csv")["image"].tolist() == names
    found.drop(columns="path").to_parquet(tmp_path / "again.parquet")
    assert read_manifest(tmp_path / "again.parquet")["image"].tolist() == names
    assert table_rows(tmp_path / "again.parquet").paths == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            "10,20,30,",
            r"row 2 below the header \(b.png\) has x=10, .* height=: the box is incomplete",
        ),
        ("10,20,nan,5", r"width=nan, height=5: a box needs four numbers"),
        ("nan,nan,nan,nan", r"x=nan, y=nan, width=nan, height=nan: a box needs four numbers"),
        ("10,20,wide,5", r"width=wide, height=5: a box needs four numbers of pixels"),
        ("10,20,inf,5", r"width=inf, height=5: a box needs four numbers of pixels"),
        ("10,20,0,5", r"width=0, height=5: the box has no area, so it shows nothing"),
        ("10,20,5,-5", r"width=5, height=-5: the box has no area.* not two corners"),
        ("10,20,0.0001,5", "the box has no area"),
    ],
)
def test_a_faulty_row_is_an_error(tmp_path: Path, row: str, told: str) -> None:
    source = table(tmp_path / "m.csv", ["a.png,ok,1,2,3,4", f"b.png,hole,{row}"])
    with pytest.raises(DataError, match=told):
        read_manifest(source)
    with pytest.raises(DataError, match=told):
        list_image_names([source])


def test_two_boxes_in_one_row(tmp_path: Path) -> None:
    source = table(tmp_path / "m.csv", ["a.png,ok,1,2,3,4", '"b.png#xywh=1,2,3,4",hole,1,2,3,5'])
    with pytest.raises(DataError, match=r"row 2 below .* but the image's name holds another"):
        read_manifest(source)


def test_columns_of_boxes_may_be_called_otherwise(board: Path, tmp_path: Path) -> None:
    header = "file,label,left,top,w,h"
    source = table(tmp_path / "m.csv", ["board.png,ok,1,2,3,4", "board.png,no,5,6,7,8"], header)
    box = ("left", "top", "w", "h")
    found = read_manifest(source, ManifestColumns(image="file", box=box))
    names = ["board.png#xywh=1,2,3,4", "board.png#xywh=5,6,7,8"]
    assert found["image"].tolist() == names
    columns = TableColumns("file", box)
    assert list_image_names([source], columns) == [str(tmp_path / name) for name in names]
    with pytest.raises(DataError, match=r"no column 'upper'.*data.box_columns"):
        read_manifest(source, ManifestColumns(image="file", box=("left", "upper", "w", "h")))
    with pytest.raises(DataError, match=r"no column 'image'.*--image-column NAME"):
        list_image_names([source])
    with pytest.raises(DataError, match=r"no column 'b'.*--box-columns"):
        table_rows(source, TableColumns("file", ("left", "b", "w", "h")))


def test_other_columns_are_no_boxes(tmp_path: Path) -> None:
    wafer = table(tmp_path / "a.csv", ["a.png,ok,1,2", "b.png,no,3,4"], "image,label,x,y")
    assert read_manifest(wafer)["image"].tolist() == ["a.png", "b.png"]
    three = table(tmp_path / "b.csv", ["a.png,ok,1,2,3", "b.png,no,3,4,5"], "image,label,x,y,width")
    with pytest.raises(DataError, match=r"no column 'height', .*data.box_columns=null"):
        read_manifest(three)
    assert len(read_manifest(three, ManifestColumns(box=None))) == 2
    assert table_rows(three, TableColumns(box=None)).paths == [
        str(tmp_path / "a.png"),
        str(tmp_path / "b.png"),
    ]
    source = table(tmp_path / "c.csv", ["a.png,ok,1,2,3,4", "b.png,no,,,,"])
    config = DataConfig(box_columns=None)
    plain = read_manifest(source, ManifestColumns.of(config))
    assert plain["image"].tolist() == ["a.png", "b.png"]


def test_damaged_tables_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = table(tmp_path / "cut.csv", ["a.png,ok,1,2,3,4", "b.png,no,1"])
    with pytest.raises(DataError, match="row 2 below the header has 3 cells, but the header has 6"):
        table_rows(cut)
    empty = table(tmp_path / "empty.csv", ["a.png,ok,1,2,3,4", ",no,1,2,3,4"])
    with pytest.raises(DataError, match="row 2 below the header has no 'image'"):
        table_rows(empty)
    (tmp_path / "old.csv").write_bytes("image\nbr\xfcche.png\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        table_rows(tmp_path / "old.csv")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        table_rows(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"csv needs nothing"):
        table_rows(tmp_path / "a.parquet")


def boxed_set(folder: Path, boards: int = 12, each: int = 4) -> Path:
    """Boards with boxes of both classes, the files called in two ways."""
    rng, rows = np.random.default_rng(0), []
    for number in range(boards):
        pixels = rng.integers(0, 255, (120, 90), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        for place in range(each):
            dots = "./" * (place % 2)
            label = ("ok", "hole")[(number + place) % 2]
            rows.append(f"{dots}{number:02d}.png,{label},{20 * place},{10 + number},12,9")
        rows.append(f"{number:02d}.png,ok,,,,")
    return table(folder / "m.csv", rows)


def test_boxes_of_a_file_stay_in_one_split(tmp_path: Path) -> None:
    source = boxed_set(tmp_path)
    config = DataConfig(cache_dir=tmp_path / "c", size=16, context=3.0)
    found = load_inspection_set(source, config, seed=0)
    assert found.spec.context == 3.0
    assert len(found.table) == 60
    assert set(found.table["split"]) == {"train", "val", "test"}
    file = found.table["image"].str.extract(r"(\d\d)\.png")[0]
    assert found.table.groupby(file)["split"].nunique().max() == 1


def test_boxes_and_groups_stay_together() -> None:
    images = ["a#xywh=1,2,3,4", "./a", "b#xywh=1,2,3,4", "b#xywh=1,2,3,5", "c", "d#xywh=1,2,3,4"]
    rows = pd.DataFrame({"image": images, "lot": [1, 2, 2, 3, 4, 5]})
    assert len(set(groups_of(rows, "lot")[:4])) == 1
    assert groups_of(rows, None).tolist() == ["a", "a", "b", "b", "c", "d"]
    assert groups_of(rows.iloc[[0, 2, 4, 5]], None) is None
