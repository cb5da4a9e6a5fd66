"""Files that the system does not give now are tried again; those that it never gives are told."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recame.contracts import PreprocessSpec
from recame.data import decode
from recame.data.decode import Reader

Pictures = tuple[Path, np.ndarray]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of open files")


@pytest.fixture(scope="module")
def grey() -> PreprocessSpec:
    return PreprocessSpec(6, 5, 1, 8, 255.0, (0.5,), (0.2,))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """A folder with a grey PNG file, and its pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(1).integers(0, 256, (1, 6, 5, 1), dtype=np.uint8)
    Image.fromarray(pixels[0, ..., 0]).save(folder / "000.png")
    return folder, pixels


@contextmanager
def no_more_files() -> Iterator[Callable[[], None]]:
    """The system opens no file (EMFILE) until the function is called, or the block ends."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open("rb") as stream:
        lowest = stream.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))

    def again() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    try:
        yield again
    finally:
        again()


def test_what_passes_is_waited_for(grey: PreprocessSpec, pictures: Pictures) -> None:
    path = pictures[0] / "000.png"
    reader = Reader(grey, 1000)
    with no_more_files() as again:
        timer = threading.Timer(0.2, again)
        timer.start()
        pixels, sha256, _ = reader.read(path, checksum=True)
        timer.join()
    assert isinstance(pixels, np.ndarray)
    np.testing.assert_array_equal(pixels, pictures[1][0])
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_stays_away_is_told_and_soon_not_waited_for(
    grey: PreprocessSpec, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(decode.time, "sleep", waited.append)
    reader = Reader(grey, 1000)
    with no_more_files():
        found = [reader.read(pictures[0] / "000.png", checksum=True) for _ in range(20)]
    assert {(str(item.pixels).partition(":")[0], item.sha256) for item in found} == {
        ("cannot be opened", None)
    }
    # Eight files had their three tries more; then the place itself is away.
    assert len(waited) == 8 * 3
    assert isinstance(reader.read(pictures[0] / "000.png")[0], np.ndarray)
    with no_more_files():
        reader.read(pictures[0] / "000.png")
    assert len(waited) == 9 * 3


def test_a_missing_or_broken_file_is_not_waited_for(
    grey: PreprocessSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode.time, "sleep", lambda _: pytest.fail("waited"))
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    reader = Reader(grey, 1000)
    assert reader.read(tmp_path / "none.png", checksum=True) == ("no such file", None, {})
    reason, sha256, _ = reader.read(tmp_path / "torn.png", checksum=True)
    assert "damaged" in str(reason)
    assert sha256 is not None
    assert "cannot be opened" in str(reader.read(tmp_path)[0])
