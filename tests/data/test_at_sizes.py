from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recame.contracts import PreprocessSpec
from recame.data import at_sizes
from recame.data.at_sizes import decode_at_sizes
from recame.data.decode import decode_image

SPEC = PreprocessSpec(32, 32, 1, 8, 255.0, (0.5,), (0.5,))
SIZES = [(32, 32), (16, 48)]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    found = [tmp_path / f"{number}.png" for number in range(40)]
    for path in found:
        Image.fromarray(rng.integers(0, 255, (40, 60), np.uint8)).save(path)
    return found


def test_each_size_is_what_the_cache_would_hold(paths: list[Path]) -> None:
    found = decode_at_sizes(paths[:5], SPEC, SIZES, max_pixels=10**6)
    assert [images.shape for images in found.images] == [(5, 32, 32, 1), (5, 16, 48, 1)]
    flat = PreprocessSpec(16, 48, 1, 8, 255.0, (0.5,), (0.5,))
    for number, path in enumerate(paths[:5]):
        alone = decode_image(path, flat, max_pixels=10**6)
        np.testing.assert_array_equal(found.images[1][number], alone)


def test_what_cannot_be_read_is_left_out(paths: list[Path]) -> None:
    paths[1].write_bytes(b"no image")
    found = decode_at_sizes(paths[:3], SPEC, SIZES, max_pixels=10**6)
    assert found.positions.tolist() == [0, 2]
    assert len(found.images[0]) == 2
    none = decode_at_sizes(paths[1:2], SPEC, SIZES, max_pixels=10**6)
    assert [len(images) for images in none.images] == [0, 0]


def test_time_and_memory_leave_out_the_end(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = decode_at_sizes(paths, SPEC, SIZES, max_pixels=10**6, most_s=0.0)
    assert hurried.positions.tolist() == list(range(16))
    monkeypatch.setattr(at_sizes, "MOST_BYTES", 7 * (32 * 32 + 16 * 48))
    assert len(decode_at_sizes(paths, SPEC, SIZES, max_pixels=10**6).positions) == 7
