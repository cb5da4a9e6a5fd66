"""Images however people hold them: the pixels are those of the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recame.data.given_images import given_images
from recame.errors import DataError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack([GREY, GREY + 1, GREY + 2], -1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_what_a_file_is(file: Path) -> None:
    content = file.read_bytes()
    assert given_images(str(file)) == [str(file)]
    assert given_images(file) == [file]
    assert given_images(file.parent) == [str(file)]
    assert given_images([content, bytearray(content), io.BytesIO(content)]) == [content] * 3
    with file.open("rb") as stream:
        assert given_images(stream) == [content]
    assert given_images(pd.DataFrame({"image": [file], "lot": [1]})) == [str(file)]
    assert given_images(pd.Series([str(file)] * 2)) == [str(file)] * 2
    assert given_images(path for path in (file, file)) == [file, file]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GREY, [GREY]),
        (np.stack([COLOUR, COLOUR]), [COLOUR, COLOUR]),
        (torch.from_numpy(GREY), [GREY]),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), [COLOUR]),
        (torch.from_numpy(COLOUR), [COLOUR]),
        (torch.from_numpy(COLOUR).permute(2, 0, 1)[None], [COLOUR]),
        (Image.fromarray(GREY), [GREY]),
        (Image.fromarray(COLOUR), [COLOUR]),
        (Image.fromarray(COLOUR).convert("RGBA"), [COLOUR]),
        (Image.fromarray(GREY > 20), [np.where(GREY > 20, 255, 0)]),
        (Image.fromarray(GREY.astype(np.uint16) * 300), [GREY.astype(np.uint16) * 300]),
        (Image.fromarray(GREY.astype(np.int32) * 300), [GREY.astype(np.uint16) * 300]),
        ([GREY, Image.fromarray(COLOUR)], [GREY, COLOUR]),
    ],
)
def test_pixels_stay_what_they_are(given: Any, expected: list[np.ndarray]) -> None:
    found = given_images(given)
    assert len(found) == len(expected)
    for image, pixels in zip(found, expected, strict=True):
        assert isinstance(image, np.ndarray)
        assert image.dtype in (np.uint8, np.uint16)
        assert np.array_equal(image, pixels)


def test_an_image_of_pil_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    (found,) = given_images(Image.open(tmp_path / "turned.png"))
    assert np.array_equal(found, np.rot90(COLOUR, -1))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.zeros(3, 6, 8), r"before ToTensor and Normalize"),
        (torch.zeros(5, dtype=torch.uint8), r"shape \(5,\) is not an image"),
        (Image.fromarray(GREY.astype(np.float32)), "mode 'F'"),
        (Image.fromarray(GREY.astype(np.int32) - 1), "from -1 to 46"),
        (io.StringIO("a"), "opened as text"),
        (pd.DataFrame({"file": ["a.png"]}), "so it names no images; its columns are file"),
        (3.5, "builtins.float is not an image"),
        ({"image": "a.png"}, "builtins.dict is not an image"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        given_images(given)
