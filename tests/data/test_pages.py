"""TIFF files by page: `file.tif#2`, and folders that take all pages."""

import io
import os
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recame.config import DataConfig
from recame.contracts import PreprocessSpec
from recame.data.cache import build_cache
from recame.data.contents import content_digests, read_headers
from recame.data.dataset import load_inspection_set
from recame.data.decode import Reader, decode_image
from recame.data.file_groups import groups_of
from recame.data.file_part import split_part
from recame.data.image_file import read_image
from recame.data.listing import list_image_names
from recame.data.manifest import read_manifest
from recame.data.paged_file import content_sha256, pages_of
from recame.data.proposal import native_size, propose_spec
from recame.data.splits import complete_splits
from recame.errors import DataError
from recame.files import sha256

LIMIT = 10_000_000
SPEC = PreprocessSpec(4, 4, 1, 8, 255.0, (0.5,), (0.5,))


def tiff(*values, side=4, kind="TIFF"):
    """Pages of one value each; every page one pixel larger than the one before."""
    pages = [Image.fromarray(np.full((side + n, side), v, np.uint8)) for n, v in enumerate(values)]
    stream = io.BytesIO()
    pages[0].save(stream, kind, save_all=True, append_images=pages[1:])
    return stream.getvalue()


@pytest.fixture
def three(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(10, 20, 30))
    return path


def test_a_name_asks_for_a_page(three):
    for name, value in (("a.tif", 10), ("a.tif#1", 10), ("a.tif#2", 20), ("a.tif#3", 30)):
        path = three.with_name(name)
        assert set(decode_image(path, SPEC, max_pixels=LIMIT).flat) == {value}
        read = Reader(SPEC, LIMIT).read(str(path), checksum=True)
        assert set(read.pixels.flat) == {value}
        assert read.sha256 == sha256(three)
        # Who names a page loses none.
        assert list(read.lost) == ([] if "#" in name else ["pages"])
    assert native_size([three.with_name("a.tif#3")]) == (6, 4)
    assert read_headers([f"{three}#2"])["height"].tolist() == [5]
    _, native = propose_spec([Path(f"{three}#3")], size=None, max_pixels=LIMIT)
    assert native == (6, 4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.tif#4", "no page 4: the file has 3"),
        ("a.tif#0", "no page 0: pages are counted from 1"),
        ("a.tif#01", "no page 01: pages are counted from 1"),
        ("a.tif#-1", "no page -1: pages are counted from 1"),
        ("b.tif#0", "no such file"),
        ("a.tif#x", "no such file"),
        ("b.tif#1", "no such file"),
        ("a.png#2", "no page 2: only TIFF has pages here, and this is PNG"),
        ("a.pgm#2", "no page 2: only TIFF has pages here, and this is PGM"),
    ],
)
def test_a_page_that_is_not_there_says_so(three, name, reason):
    three.with_name("a.png").write_bytes(tiff(1, 2, kind="PNG"))
    three.with_name("a.pgm").write_bytes(b"P5 1 1 255\n\1")
    with pytest.raises(DataError, match=reason):
        decode_image(three.with_name(name), SPEC, max_pixels=LIMIT)
    assert set(decode_image(three.with_name("a.pgm#1"), SPEC, max_pixels=LIMIT).flat) == {1}


def test_an_existing_file_wins(three):
    real = three.with_name("a.tif#2")
    real.write_bytes(tiff(99))
    assert set(decode_image(real, SPEC, max_pixels=LIMIT).flat) == {99}
    assert content_sha256(real) == sha256(real) != sha256(three)
    assert set(decode_image(three.with_name("a.tif#3"), SPEC, max_pixels=LIMIT).flat) == {30}
    assert list_image_names([str(real)]) == [str(real)]


@settings(deadline=None)
@given(st.text(), st.integers(0, 10**8))
def test_splitting_a_name_loses_nothing(file, page):
    name = f"{file}#{page}"
    found, part = split_part(name)
    assert f"{found}{part}" == name
    if file and 0 < page < 10**7:
        assert (found, part.page) == (file, page)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 3)])
def test_deep_pages(tmp_path, kind, shape):
    rng = np.random.default_rng(0)
    pages = [(rng.random(shape) * 1000).astype(kind) for _ in range(3)]
    stored = [page[..., ::-1] if page.ndim == 3 else page for page in pages]
    data = cv2.imencodemulti(".tif", [np.ascontiguousarray(page) for page in stored])[1].tobytes()
    for number, page in enumerate(pages, 1):
        decoded = read_image(data, max_pixels=LIMIT, page=number)
        np.testing.assert_array_equal(decoded.pixels, page)
        assert decoded.pages == 3
    with pytest.raises(DataError, match="no page 4: the file has 3"):
        read_image(data, max_pixels=LIMIT, page=4)


def test_each_page_is_judged_by_its_own_header(tmp_path):
    data = tiff(1, 2, 3, side=100)
    read_image(data, max_pixels=10_100, page=2)
    with pytest.raises(DataError, match=r"100 x 102 = 10,200 pixels, more than max_pixels"):
        read_image(data, max_pixels=10_100, page=3)


def test_a_chain_that_goes_round_ends(three):
    data = bytearray(three.read_bytes())
    (first,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[first : first + 2])
    at = first + 2 + 12 * count
    for follows, pages in ((first, 2), (2**32 - 1, 2), (0, 1)):
        data[at : at + 4] = struct.pack("<I", follows)
        three.write_bytes(data)
        assert pages_of(three) == (1 if pages == 2 else pages)
        assert set(read_image(bytes(data), max_pixels=LIMIT).pixels.flat) == {10}


def test_the_cache_sees_that_a_page_s_file_changed(three, tmp_path):
    names = [Path(f"{three}#{page}") for page in (1, 3)]

    def cached():
        return build_cache(names, SPEC, cache_dir=tmp_path / "c", max_pixels=LIMIT)

    assert [set(image.flat) for image in cached().images] == [{10}, {30}]
    three.write_bytes(tiff(11, 21, 31, 41))
    os.utime(three, (1, 1))
    again = cached()
    assert [set(image.flat) for image in again.images] == [{11}, {31}]
    assert again.broken == ()
    three.unlink()
    assert [broken.reason for broken in cached().broken] == ["no such file"] * 2


def paged_set(folder, files=6):
    for label in ("ok", "hole"):
        (folder / label).mkdir(parents=True)
        for n in range(files):
            level = 40 * n + (100 if label == "ok" else 0)
            (folder / label / f"{n}.tif").write_bytes(tiff(level % 250, level % 250 + 1, 3))
    (folder / "ok" / "one.tif").write_bytes(tiff(7))
    return folder


def test_a_folder_takes_first_pages_or_all(tmp_path):
    folder = paged_set(tmp_path / "set")
    first = read_manifest(folder)
    assert len(first) == 13
    every = read_manifest(folder, pages="all")
    names = every["image"].tolist()
    assert len(names) == 37
    assert names[:4] == ["hole/0.tif#1", "hole/0.tif#2", "hole/0.tif#3", "hole/1.tif#1"]
    assert names[-1] == "ok/one.tif"
    assert every["path"].tolist()[1] == str(folder / "hole" / "0.tif#2")
    assert set(every["label"]) == {"ok", "hole"}
    config = DataConfig(cache_dir=tmp_path / "c", pages="all", size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_inspection_set(folder, config, seed=0)
    file = found.table["image"].str.replace(r"#\d+$", "", regex=True)
    assert found.table.groupby(file)["split"].nunique().max() == 1
    assert set(found.table["split"]) == {"train", "val", "test"}
    with pytest.warns(UserWarning, match=r"12 images .* with several pages: only the first"):
        load_inspection_set(folder, config.model_copy(update={"pages": "first"}), seed=0)


def test_too_many_pages_are_not_cut_off_without_a_word(tmp_path, monkeypatch):
    folder = paged_set(tmp_path / "set", 1)
    monkeypatch.setattr("recame.data.image_folder.MOST_PAGES", 3)
    with pytest.raises(DataError, match="has 3 pages or more"):
        read_manifest(folder, pages="all")


def test_a_table_names_pages(tmp_path):
    paged_set(tmp_path / "set")
    rows = [
        {"image": f"set/{label}/{n}.tif#{page}", "label": label}
        for label in ("ok", "hole")
        for n in range(6)
        for page in (2, 3)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    found = load_inspection_set(
        tmp_path / "m.csv", DataConfig(cache_dir=tmp_path / "c", size=16), seed=3
    )
    assert found.table["image"].tolist() == [row["image"] for row in rows]
    file = found.table["image"].str.replace(r"#\d+$", "", regex=True)
    assert found.table.groupby(file)["split"].nunique().max() == 1
    assert set(found.cache.images[found.table["row"][1]].flat) == {3}


def test_pages_and_groups_stay_together():
    table = pd.DataFrame(
        {"image": ["a#1", "a#2", "b#1", "b#2", "c", "d"], "lot": [1, 2, 2, 3, 4, 5]}
    )
    joined = groups_of(table, "lot")
    assert joined.nunique() == 3
    assert len(set(joined[:4])) == 1
    assert groups_of(table, None).tolist() == ["a", "a", "b", "b", "c", "d"]
    # One page of a file stands alone, as an image does.
    alone = table.iloc[[0, 2, 4, 5]]
    assert groups_of(alone, None) is None
    assert groups_of(alone, "lot").tolist() == [1, 2, 4, 5]
    # The file itself is its first page.
    assert len(set(groups_of(pd.DataFrame({"image": ["a", "a#2"]}), None))) == 1


def test_given_splits_that_part_a_file_are_told():
    images = [f"{n}.tif#{page}" for n in range(4) for page in (1, 2)]
    table = pd.DataFrame({"image": images, "label": "x", "split": ["train", "val"] * 4})
    with pytest.warns(
        UserWarning, match="4 values of 'file of a page or box' are in more than one"
    ):
        complete_splits(table, val_fraction=0.1, test_fraction=0.1, group_by=None, seed=0)


def test_sources_of_a_prediction_may_name_pages(three):
    assert list_image_names([f"{three}#2"]) == [f"{three}#2"]
    assert list_image_names([str(three.parent)]) == [str(three)]
    with pytest.raises(DataError, match=r"No image at .*no file matches it"):
        list_image_names([f"{three.with_name('none.tif')}#2"])
    with pytest.raises(DataError, match=r"No image at .*: no page 0: pages are counted from 1"):
        list_image_names([f"{three}#0"])


def test_equal_pages_of_one_file_are_not_equal_files(three):
    one, other, again = content_digests([f"{three}#1", f"{three}#2", f"{three}#1"])
    assert one == again != other
