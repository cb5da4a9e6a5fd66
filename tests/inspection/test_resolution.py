from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.config import DataConfig
from recame.data.manifest import read_manifest
from recame.inspection import Inspection, inspect_set
from recame.inspection.checks.resolution import Resolution


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 256 px; `grid` has columns of one pixel, of which nothing is left at 128 px."""
    folder, rng = tmp_path_factory.mktemp("data") / "fine", np.random.default_rng(0)
    for name, count in {"plain": 16, "grid": 12}.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.normal(120, 3, (256, 256))
            image[:, :: 2 if name == "grid" else 256] += 40
            image[:, 1 :: 2 if name == "grid" else 256] -= 40
            pixels = np.clip(image, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def inspected(source: Path | pd.DataFrame, out: Path, **data: object) -> Inspection:
    settings = DataConfig.model_validate({"cache_dir": out / "cache", **data})
    return inspect_set(source, data=settings, out=out)


@pytest.fixture(scope="module")
def shrunk(fine: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Inspection, Path]:
    out = tmp_path_factory.mktemp("shrunk")
    return inspected(fine, out), out


def test_what_a_small_size_loses_is_told_with_how_it_is_known(
    shrunk: tuple[Inspection, Path],
) -> None:
    inspection, out = shrunk
    check = inspection[Resolution]
    assert [one.size for one in check.tried] == [(128, 128), (192, 192), (256, 256)]
    (told,) = [finding for finding in inspection.findings() if finding.key == "resolution"]
    assert told.level == "warn"
    assert told.title == "128 x 128 pixels lose details that distinguish the classes"
    assert "about 256 x 256 pixels (height x width) are resized to 128 x 128" in told.text
    assert "out of sample on 28 images: 0." in told.text
    assert "1.00 at 256 x 256" in told.text
    assert "--size 192;" in told.action or "--size 256;" in told.action
    document = json.loads((out / "inspection.json").read_text())
    assert [row["size"] for row in document["resolution"]] == [128, 192, 256]
    assert document["resolution"][0]["balanced_accuracy"] < 0.9


def test_a_surer_answer_alone_is_a_hint(
    shrunk: tuple[Inspection, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = shrunk[0][Resolution]
    first, *larger = check.tried
    alike = replace(larger[0].judged, right=first.judged.right, loss=first.judged.loss / 2)
    monkeypatch.setattr(check, "tried", (first, replace(larger[0], judged=alike)))
    monkeypatch.setattr(check, "better", 1)
    (told,) = check.say()
    assert told.level == "note"
    assert told.title == "More than 128 x 128 pixels may distinguish the classes better"
    loss = first.judged.mean_loss
    assert f"(Brier score {loss / 2:.2f} instead of {loss:.2f})" in told.text
    assert "--size 192;" in told.action


def test_the_page_shows_images_as_a_network_sees_them(shrunk: tuple[Inspection, Path]) -> None:
    inspection, out = shrunk
    pictures = inspection[Resolution].pictures
    assert [pixels.shape for _, *pair in pictures for pixels in pair] == [
        (256, 256, 1),
        (128, 128, 1),
    ] * 6
    assert inspection.table["label"].iloc[pictures[0][0]] == "grid"  # the rare class first
    page = (out / "inspection.html").read_text()
    assert page.count("128 x 128, as a network sees it") == 6


def test_a_size_that_shows_all_is_good(fine: Path, tmp_path: Path) -> None:
    inspection = inspected(fine, tmp_path, size=224)
    (told,) = [finding for finding in inspection.findings() if finding.key == "resolution"]
    assert (told.level, told.action) == ("good", "")
    assert told.title == "224 x 224 pixels show the classes as well as more pixels would"


def test_nothing_is_asked_where_nothing_shrinks(
    tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    source = write_images(tmp_path / "small", {"ok": 8, "scratch": 6})
    inspection = inspected(source, tmp_path / "out")
    assert inspection[Resolution].tried == ()
    assert len(inspection[Resolution].pictures) == 6
    assert "resolution" not in [finding.key for finding in inspection.findings()]


def test_images_of_test_choose_no_size(fine: Path, tmp_path: Path) -> None:
    table = read_manifest(fine)
    table["split"] = np.where(np.arange(len(table)) % 2, "test", "train")
    inspection = inspected(table, tmp_path)
    check = inspection[Resolution]
    assert len(check.tried[0].judged.target) == 14
    assert {inspection.table["split"].iloc[row] for row, *_ in check.pictures} == {"train"}
