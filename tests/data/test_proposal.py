"""What the first sample misses is mended or named once all files are decoded."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recame.config import DataConfig
from recame.data.dataset import InspectionSet, load_inspection_set
from recame.data.proposal import MOST_ELONGATED, candidate_sizes, shaped, working_side

#: Not one of the 64 files that are looked at first among 200.
BEYOND = 102


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(cache_dir=tmp_path / "cache", size=16)


def write(folder: Path, pixels: dict[int, np.ndarray], usual: np.ndarray) -> Path:
    """200 files in two classes, all as usual but those given."""
    for number in range(200):
        path = folder / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels.get(number, usual))
    return folder


def load(source: Path, config: DataConfig) -> tuple[InspectionSet, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_inspection_set(source, config, seed=0)
    told = [str(item.message) for item in caught if "val" not in str(item.message)[:12]]
    return loaded, [line for line in told if "cop" not in line]  # the files are equal


GREY8 = np.full((16, 16), 90, np.uint8)
GREY10 = np.full((16, 16), 1000, np.uint16)


def test_a_set_that_the_sample_tells_rightly_gets_no_word(tmp_path: Path, config: DataConfig):
    loaded, told = load(write(tmp_path / "in", {}, GREY8), config)
    assert told == []
    assert (loaded.spec.channels, loaded.spec.bit_depth) == (1, 8)


def test_brighter_pixels_beyond_the_sample_raise_the_white(tmp_path: Path, config: DataConfig):
    bright = GREY10.copy()
    bright[3, 3] = 3000
    source = write(tmp_path / "in", {BEYOND: bright}, GREY10)
    loaded, (told,) = load(source, config)
    assert loaded.spec.scale == 4095.0
    assert "1 image (" in told
    assert "/a/102.png) with values above 1023: white is 4095" in told
    row = int(loaded.table.loc[loaded.table["image"] == "a/102.png", "row"].iloc[0])
    assert float(loaded.images(np.array([row])).max()) == pytest.approx(3000 / 4095)
    # The cache that was made before the scale was known serves: nothing is decoded twice.
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1


def test_a_coloured_image_beyond_the_sample_keeps_its_colour(tmp_path: Path, config: DataConfig):
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[..., 0] = 200  # OpenCV's blue
    source = write(tmp_path / "in", {BEYOND: colour}, GREY8)
    loaded, (told,) = load(source, config)
    assert loaded.spec.channels == 3
    assert len(loaded.spec.mean) == 3
    assert "a/102.png) in colour: all images keep 3 channels" in told
    row = int(loaded.table.loc[loaded.table["image"] == "a/102.png", "row"].iloc[0])
    assert loaded.cache.images[row, 0, 0].tolist() == [0, 0, 200]
    again, told_again = load(source, config)
    assert (again.spec, told_again) == (loaded.spec, [told])
    assert again.fingerprint == loaded.fingerprint


def test_grey_that_was_asked_for_is_not_remarked_on(tmp_path: Path, config: DataConfig):
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[..., 0] = 200
    source = write(tmp_path / "in", {BEYOND: colour}, GREY8)
    loaded, told = load(source, config.model_copy(update={"channels": 1}))
    assert (loaded.spec.channels, told) == (1, [])


def test_deep_files_beyond_the_sample_keep_their_depth(tmp_path: Path, config: DataConfig):
    full = np.full((16, 16), 65_000, np.uint16)
    source = write(tmp_path / "in", {BEYOND: full}, GREY8)
    loaded, (told,) = load(source, config)
    assert (loaded.spec.bit_depth, loaded.spec.scale) == (16, 65535.0)
    assert "a/102.png) with 16 bits: all images are decoded to 16 bits" in told


def test_fewer_bits_than_the_others_are_named_as_near_black(tmp_path: Path, config: DataConfig):
    source = write(tmp_path / "in", {BEYOND: GREY10, 154: GREY10}, GREY8)
    loaded, (mended, dark) = load(source, config)
    assert loaded.spec.scale == 65535.0
    assert "with 16 bits" in mended
    assert dark.startswith("2 images (")
    assert "with fewer bits per channel than the others: white is 65535 here" in dark
    asked = config.model_copy(update={"bit_depth": 8})
    loaded, (dark,) = load(source, asked)
    assert (loaded.spec.bit_depth, dark.startswith("2 images (")) == (8, True)


def test_a_model_s_own_specification_is_kept_and_its_losses_named(
    tmp_path: Path, config: DataConfig
):
    loaded, _ = load(write(tmp_path / "train", {}, GREY10), config)
    brighter = write(tmp_path / "other", {3: GREY10 * 4, 5: GREY10 * 3}, GREY10)
    with pytest.warns(UserWarning, match=r"2 images .*values above 1023.*up to 100.0% of an image"):
        judged = load_inspection_set(
            brighter, config, seed=0, spec=loaded.spec, label_space=loaded.label_space
        )
    assert judged.spec == loaded.spec


def test_further_pages_are_named(tmp_path: Path, config: DataConfig):
    source = write(tmp_path / "in", {}, GREY8)
    pages = [Image.fromarray(GREY8 + n) for n in range(3)]
    pages[0].save(source / "a" / "x.tif", save_all=True, append_images=pages[1:])
    _, (told,) = load(source, config)
    assert told.startswith("1 image (")
    assert "a/x.tif) with several pages: only the first page of each file is used" in told


class TestSizes:
    @pytest.mark.parametrize(
        ("native", "first"),
        [
            ((200, 5000), (64, 320)),
            ((8000, 2000), (256, 64)),
            ((1080, 1920), (96, 160)),
            ((45, 90), (32, 96)),
            ((1000, 1490), (128, 128)),  # nearly square: as ever
            ((30, 20), (64, 64)),
        ],
    )
    def test_what_is_taken_comes_first(
        self, native: tuple[int, int], first: tuple[int, int]
    ) -> None:
        assert candidate_sizes(native)[0] == first

    @given(st.integers(16, 9000), st.integers(16, 9000))
    def test_candidates_have_the_images_shape(self, height: int, width: int) -> None:
        native, found = (height, width), candidate_sizes((height, width))
        side = working_side(native)
        assert found[0] == shaped(side, native)
        assert len(found) == len(set(found))
        for sides in found:
            assert all(value % 32 == 0 and value >= 32 for value in sides)
            assert max(sides) <= MOST_ELONGATED * min(sides)
            if sides[0] != sides[1]:
                assert (sides[0] < sides[1]) == (height < width)
        assert 0.6 <= found[0][0] * found[0][1] / side**2 <= 1.5
        if max(native) < 1.5 * min(native):
            assert all(a == b for a, b in found)

    def test_a_shape_of_nobodys_choice_is_the_images_own(self, tmp_path: Path) -> None:
        source = write(tmp_path / "set", {}, np.zeros((40, 200), np.uint8))
        loaded, _ = load(source, DataConfig(cache_dir=tmp_path / "cache"))
        assert (loaded.spec.height, loaded.spec.width) == (40, 200)
