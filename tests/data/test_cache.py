import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recame.contracts import PreprocessSpec
from recame.data import cache as cache_module
from recame.data.cache import build_cache
from recame.data.cache_room import cache_limit
from recame.errors import ConfigError, DataError
from recame.files import hold

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
    real = cache_module.whole_file

    def counting(path, *, max_pixels):
        decoded.append(path)
        return real(path, max_pixels=max_pixels)

    monkeypatch.setattr(cache_module, "whole_file", counting)

    def call(paths=None, spec=SPEC, **options):
        decoded.clear()
        cache = build_cache(
            paths or files, spec, cache_dir=tmp_path / "cache", max_pixels=10_000, **options
        )
        return cache, len(decoded)

    return call


def stored(tmp_path, suffix):
    """Files of the caches: not the locks, nor the order of use."""
    found = sorted((tmp_path / "cache").glob(f"*{suffix}"))
    return [path for path in found if path.suffix != ".lock" and path.stem != "uses"]


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


@pytest.mark.parametrize(
    "damage",
    [
        "flipped_pixel",
        "flipped_last_pixel",
        "short_pixels",
        "no_pixels",
        "edited_index",
        "cut_index",
    ],
)
def test_damaged_caches_are_made_again(build, tmp_path, damage):
    first, _ = build()
    expected = np.array(first.images)
    (pixels,), (index,) = stored(tmp_path, ".pixels"), stored(tmp_path, ".json")
    if damage.startswith("flipped"):
        content = bytearray(pixels.read_bytes())
        content[-1 if "last" in damage else 7] ^= 1
        stat = pixels.stat()
        pixels.write_bytes(content)
        os.utime(pixels, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif damage == "short_pixels":
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
    real = cache_module.whole_file

    def refused(path, *, max_pixels):
        if path == files[2]:
            raise DataError("cannot be opened: Permission denied")
        return real(path, max_pixels=max_pixels)

    monkeypatch.setattr(cache_module, "whole_file", refused)
    assert len(build()[0].broken) == 2
    monkeypatch.setattr(cache_module, "whole_file", real)
    assert len(build()[0].broken) == 1


def test_another_version_of_a_decoder_decodes_anew(build, monkeypatch):
    first, _ = build()
    monkeypatch.setattr(cache_module, "decoders", lambda: "Pillow 99")
    second, decoded = build()
    assert decoded == 5
    assert second.fingerprint == first.fingerprint  # of the files, which are the same


def sized(build, tmp_path, values):
    """A cache for each value, 36 pixels each, in this order; their keys."""
    keys = []
    for value in values:
        path = tmp_path / "in" / f"v{value}.png"
        Image.fromarray(np.full((6, 6), value, np.uint8)).save(path)
        build([path])
        known = {path.stem for path in stored(tmp_path, ".json")}
        keys += sorted(known.difference(keys))
    return keys


def test_the_least_recently_used_go_beyond_a_limit(build, tmp_path, monkeypatch):
    one, two, three = sized(build, tmp_path, [1, 2, 3])
    for path in stored(tmp_path, ""):  # a clock that jumped
        os.utime(path, (0, 0) if path.stem == three else (2**33, 2**33))
    build([tmp_path / "in" / "v1.png"])  # used again, so that the second is oldest
    monkeypatch.setenv("RECAME_CACHE_LIMIT", "0.000108MB")
    sized(build, tmp_path, [4])
    left = {path.stem for path in stored(tmp_path, ".pixels")}
    assert len(left) == 3
    assert two not in left
    assert {one, three} < left
    assert {path.stem for path in stored(tmp_path, ".json")} == left
    # The one that is asked for stays, however large it is.
    monkeypatch.setenv("RECAME_CACHE_LIMIT", "0.00001MB")
    cache, decoded = build([tmp_path / "in" / "v1.png"])
    assert (decoded, int(cache.images[0, 0, 0, 0])) == (0, 1)
    assert [path.stem for path in stored(tmp_path, ".pixels")] == [one]


def test_a_full_disk_lets_old_caches_go_first(build, tmp_path, monkeypatch):
    one, two = sized(build, tmp_path, [1, 2])
    real = cache_module.shutil.disk_usage(tmp_path)
    free = iter([0, 1000])  # before something was removed, and after
    monkeypatch.setattr(
        cache_module.shutil, "disk_usage", lambda _: real._replace(free=next(free, 1000))
    )
    monkeypatch.setenv("RECAME_CACHE_LIMIT", "1TB")
    sized(build, tmp_path, [3])
    left = {path.stem for path in stored(tmp_path, ".pixels")}
    assert one not in left
    assert two in left


def test_a_cache_that_is_being_made_is_not_removed(build, tmp_path, monkeypatch):
    one, two = sized(build, tmp_path, [1, 2])
    monkeypatch.setenv("RECAME_CACHE_LIMIT", "0.000036MB")
    lock = hold(tmp_path / "cache" / f"{one}.lock")
    sized(build, tmp_path, [3])
    left = {path.stem for path in stored(tmp_path, ".pixels")}
    assert one in left
    assert two not in left
    lock.close()


def test_a_limit_that_is_no_size_is_refused(build, monkeypatch):
    for text in ("100", "many", "5 apples", "-3GB"):
        monkeypatch.setenv("RECAME_CACHE_LIMIT", text)
        with pytest.raises(ConfigError, match=rf"RECAME_CACHE_LIMIT='{text}' is not a size"):
            build()


def test_the_default_limit_is_a_share_of_the_disk(tmp_path, monkeypatch):
    usage = cache_module.shutil.disk_usage(tmp_path)
    for total, limit in ((4 * 10**9, 10**9), (10**13, 100 * 10**9)):
        big = usage._replace(total=total)
        monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _, big=big: big)
        assert cache_limit(tmp_path) == limit


def test_what_a_killed_process_left_is_removed(build, files, tmp_path):
    build()
    folder = tmp_path / "cache"
    foreign = folder / "notes.part"
    foreign.write_text("mine")
    killed, living = (folder / f".{n * 32}.pixels.abc.part" for n in "de")
    for path in (killed, living):
        path.write_text("half")
    lock = hold(folder / f"{'e' * 32}.lock")
    build(files[:2])
    assert not killed.exists()
    assert living.exists()
    assert foreign.exists()
    lock.close()


MAKING = """
import sys
from pathlib import Path
from recame.contracts import PreprocessSpec
from recame.data import cache
from recame.data.decode import decode_with_facts

def counting(data, spec, *, max_pixels):
    with open(sys.argv[3], "a") as stream:
        stream.write("decoded\\n")
    return decode_with_facts(data, spec, max_pixels=max_pixels)

cache.decode_with_facts = counting
spec = PreprocessSpec(6, 6, 1, 8, 255.0, (0.5,), (0.5,))
print("ready", flush=True)
sys.stdin.readline()
found = cache.build_cache(
    sorted(Path(sys.argv[1]).iterdir()), spec, cache_dir=Path(sys.argv[2]), max_pixels=10_000
)
print(found.fingerprint, found.images.sum())
"""


def test_processes_that_want_one_cache_decode_it_once(files, tmp_path):
    for number in range(60):
        Image.fromarray(np.full((6, 6), number, np.uint8)).save(files[0].parent / f"m{number}.png")
    words = [sys.executable, "-c", MAKING, str(files[0].parent), str(tmp_path / "cache")]
    words.append(str(tmp_path / "log"))
    makers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for maker in makers:
        assert maker.stdout.readline() == "ready\n"
    for maker in makers:
        maker.stdin.write("go\n")
        maker.stdin.flush()
    told = {maker.communicate()[0] for maker in makers}
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert len(told) == 1
    assert (tmp_path / "log").read_text().count("decoded") == 64
    assert len(stored(tmp_path, ".pixels")) == 1


def test_default_folder_and_only_broken_files(files, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAME_CACHE", str(tmp_path / "by_variable"))
    cache = build_cache([files[3]], SPEC, max_pixels=100)
    assert cache.images.shape == (0, 6, 6, 1)
    assert cache.row_of.tolist() == [-1]
    assert len(list((tmp_path / "by_variable").glob("*.pixels"))) == 1


def test_too_many_pixels_are_a_reason(files, tmp_path):
    cache = build_cache(files[:1], SPEC, cache_dir=tmp_path / "c", max_pixels=35)
    assert cache.broken[0].reason == "6 x 6 = 36 pixels, more than max_pixels (35)"
