import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recame.contracts import PreprocessSpec
from recame.data import cache as cache_module
from recame.data.cache import build_cache
from recame.errors import DataError

SPEC = PreprocessSpec(6, 6, 1, 8, 255.0, (0.5,), (0.5,))


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    paths = []
    for number in range(5):
        paths.append(folder / f"{number}.png")
        Image.fromarray(np.full((6, 6), 40 * number, np.uint8)).save(paths[-1])
    paths[3].write_bytes(b"")
    return paths


@pytest.fixture
def build(tmp_path, files, monkeypatch):
    decoded = []
    real = cache_module.decode_image

    def counting(data, spec, *, max_pixels):
        decoded.append(1)
        return real(data, spec, max_pixels=max_pixels)

    monkeypatch.setattr(cache_module, "decode_image", counting)

    def call(paths=None, spec=SPEC, **options):
        decoded.clear()
        cache = build_cache(
            paths or files, spec, cache_dir=tmp_path / "cache", max_pixels=10_000, **options
        )
        return cache, len(decoded)

    return call


def stored(tmp_path, suffix):
    return sorted((tmp_path / "cache").glob(f"*{suffix}"))


def test_rows_broken_files_and_duplicates(build, files):
    seen = []
    asked = [files[4], files[0], files[3], files[4], files[1].parent / "none.png"]
    cache, _ = build(asked, on_progress=lambda _, done, total: seen.append((done, total)))
    assert cache.images.shape == (2, 6, 6, 1)
    assert not cache.images.flags.writeable
    assert (cache.row_of >= 0).tolist() == [True, True, False, True, False]
    assert cache.row_of[0] == cache.row_of[3]
    assert [int(cache.images[row, 0, 0, 0]) for row in cache.row_of[:2]] == [160, 0]
    assert [(Path(b.path).name, b.reason) for b in cache.broken] == [
        ("3.png", "empty file (0 bytes)"),
        ("none.png", "no such file"),
    ]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_second_start_decodes_nothing(build):
    first, decoded = build()
    assert decoded == 5
    second, decoded = build()
    assert decoded == 0
    np.testing.assert_array_equal(first.images, second.images)
    assert first.fingerprint == second.fingerprint
    assert first.broken == second.broken


def test_a_changed_file_and_another_spec_are_noticed(build, files):
    first, _ = build()
    Image.fromarray(np.full((6, 6), 99, np.uint8)).save(files[0])
    os.utime(files[0], ns=(1, 1))
    second, decoded = build()
    assert decoded == 5
    assert second.images[second.row_of[0], 0, 0, 0] == 99
    assert second.fingerprint != first.fingerprint
    wide = PreprocessSpec(6, 8, 1, 8, 255.0, (0.5,), (0.5,))
    assert build(spec=wide)[0].images.shape == (4, 6, 8, 1)
    normalised = PreprocessSpec(6, 6, 1, 8, 255.0, (0.1,), (0.2,))
    assert build(spec=normalised)[1] == 0


def test_fingerprint_follows_contents_not_paths(build, files, tmp_path):
    first, _ = build()
    moved = tmp_path / "moved"
    files[0].parent.rename(moved)
    second, _ = build([moved / path.name for path in reversed(files)])
    assert second.fingerprint == first.fingerprint


@pytest.mark.parametrize("damage", ["short_pixels", "no_pixels", "edited_index", "cut_index"])
def test_damaged_caches_are_made_again(build, tmp_path, damage):
    first, _ = build()
    expected = np.array(first.images)
    (pixels,), (index,) = stored(tmp_path, ".pixels"), stored(tmp_path, ".json")
    if damage == "short_pixels":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "no_pixels":
        pixels.unlink()
    elif damage == "edited_index":
        document = json.loads(index.read_text())
        document["body"]["broken"] = []
        index.write_text(json.dumps(document))
    else:
        index.write_bytes(index.read_bytes()[:30])
    again, decoded = build()
    assert decoded == 5
    np.testing.assert_array_equal(again.images, expected)


def test_an_interrupted_build_leaves_nothing_that_is_used(build, tmp_path):
    def interrupt(_, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(on_progress=interrupt)
    assert stored(tmp_path, "") == []
    assert build()[1] == 5


def test_full_disk_says_how_much_and_where(build, monkeypatch, tmp_path):
    usage = cache_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DataError, match=r"need 180 bytes.*data.cache_dir.*RECAME_CACHE"):
        build()


def test_disk_that_fills_up_while_writing(build, monkeypatch, tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left .* 180 bytes"):
        build()
    assert stored(tmp_path, "") == []


def test_a_folder_that_cannot_be_written(files, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written .*data.cache_dir"):
        build_cache(files, SPEC, cache_dir=tmp_path / "file" / "cache", max_pixels=100)


def test_a_file_that_could_not_be_opened_is_tried_again(build, files, monkeypatch):
    real = cache_module.read_source

    def refused(path):
        if path == files[2]:
            raise DataError("cannot be opened: Permission denied")
        return real(path)

    monkeypatch.setattr(cache_module, "read_source", refused)
    assert len(build()[0].broken) == 2
    monkeypatch.setattr(cache_module, "read_source", real)
    assert len(build()[0].broken) == 1


def test_unused_caches_are_deleted(build, files, tmp_path):
    build()
    (old,) = stored(tmp_path, ".json")
    month_ago = time.time() - 31 * 86_400
    foreign = tmp_path / "cache" / "notes.json"
    foreign.write_text("{}")
    killed = tmp_path / "cache" / "0.pixels.part"
    killed.write_text("half")
    for path in (old, foreign, killed):
        os.utime(path, (month_ago, month_ago))
    build(files[:2])
    assert not old.exists()
    assert not old.with_suffix(".pixels").exists()
    assert not killed.exists()
    assert foreign.exists()


def test_default_folder_and_only_broken_files(files, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAME_CACHE", str(tmp_path / "by_variable"))
    cache = build_cache([files[3]], SPEC, max_pixels=100)
    assert cache.images.shape == (0, 6, 6, 1)
    assert cache.row_of.tolist() == [-1]
    assert len(list((tmp_path / "by_variable").iterdir())) == 2


def test_too_many_pixels_are_a_reason(files, tmp_path):
    cache = build_cache(files[:1], SPEC, cache_dir=tmp_path / "c", max_pixels=35)
    assert cache.broken[0].reason == "6 x 6 = 36 pixels, more than max_pixels (35)"
