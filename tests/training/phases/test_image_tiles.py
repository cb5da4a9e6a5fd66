from __future__ import annotations

import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recame.config import Config
from recame.data.manifest import read_manifest
from recame.training.begin import _as_asked
from recame.training.phases import image_tiles
from recame.training.phases.image_tiles import NUM_TILES, TILE_SIDE, Tiles, settle_tiles

CPU = torch.device("cpu")
COUNTS = {"ok": 24, "dark": 20}


@pytest.fixture(autouse=True)
def smaller_images_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tiles, "LARGE", 200)


@pytest.fixture(scope="module")
def small_marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes of 256 px, as wide as it happens; on some a mark of 6 px that is hardly darker."""
    folder, rng = tmp_path_factory.mktemp("data") / "marks", np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            wide, offset = rng.integers(6, 12), rng.integers(12)
            stripes = 120 + 50 * ((np.arange(256) + offset) // wide % 2)
            stripes = stripes + rng.normal(0, 3, (256, 256))
            if name == "dark":
                y, x = rng.integers(10, 236, 2)
                stripes[y : y + 6, x : x + 6] = 70
            pixels = np.clip(stripes, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number:03d}.png"), pixels)
    return folder


def settled(source: Path, **changes: object) -> Tiles:
    changes = {"data.size": 32, **{k.replace("__", "."): v for k, v in changes.items()}}
    config = Config().updated(changes)
    return settle_tiles(read_manifest(source), config, CPU, started=time.monotonic())


def test_small_marks_on_large_images_are_worth_tiles(small_marks: Path) -> None:
    found = settled(small_marks)
    assert (found.number, found.size) == (NUM_TILES, TILE_SIDE)
    assert found.why is not None
    assert "better beyond chance" in found.why
    assert "whole at 32" in found.why
    assert "ms of a core" in found.why


def test_images_that_differ_everywhere_stay_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            level = 90 if name == "dark" else 130
            image = np.clip(rng.normal(level, 20, (256, 256)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{number:03d}.png"), image)
    found = settled(tmp_path, data__size=96)
    assert (found.number, found.size) == (0, 96)
    assert found.why is not None
    assert "must be better beyond chance" in found.why


def test_an_unreadable_file_is_not_taken_for_missing_time(
    small_marks: Path, tmp_path: Path
) -> None:
    for name in COUNTS:  # fewer than the trial asks of a larger set
        (tmp_path / name).mkdir()
        for number in range(15):
            shutil.copy(small_marks / name / f"{number:03d}.png", tmp_path / name)
    torn = tmp_path / "ok" / "003.png"
    torn.write_bytes(torn.read_bytes()[:100])
    found = settled(tmp_path)
    assert "balanced accuracy of classifiers" in str(found.why)


def test_what_time_does_not_allow_is_said(
    small_marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = settled(small_marks, run__time_budget_s=8.0)
    assert hurried.number == 0
    assert "time is too short" in str(hurried.why)
    monkeypatch.setattr(image_tiles, "_FINDING_SHARE", 1e-6)
    long = settled(small_marks)
    assert long.number == 0
    assert "finding the tiles of 44 images would take" in str(long.why)


def test_small_and_narrow_images_are_not_asked(
    small_marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_tiles, "LARGE", 300)
    assert settled(small_marks) == Tiles(0, 32)
    monkeypatch.setattr(image_tiles, "LARGE", 200)
    monkeypatch.setattr(image_tiles, "TILE_SIDE", 200)
    assert settled(small_marks) == Tiles(0, 32)


@pytest.mark.parametrize(
    ("asked", "size", "tiles"),
    [
        ({"data.size": 48}, 48, 0),
        ({"data.tiles": 3}, TILE_SIDE, 3),
        ({"data.tiles": 3, "data.size": 48}, 48, 3),
        ({"data.tiles": 0, "data.size": 48}, 48, 0),
    ],
)
def test_what_was_asked_is_taken(asked: dict[str, object], size: int, tiles: int) -> None:
    config, reasons = _as_asked(Config().updated(asked))
    assert [reason.split(" = ")[0] for reason in reasons] == (
        ["data.size"] if "data.size" not in asked else []
    )
    assert (config.data.size, config.data.tiles) == (size, tiles)
