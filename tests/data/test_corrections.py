"""Labels that people have corrected: what is applied, what is listed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from recame.config import Config, DataConfig
from recame.data.corrections import corrected, read_corrections, told_corrections
from recame.data.dataset import load_inspection_set
from recame.errors import DataError

SET = pd.DataFrame(
    {
        "image": ["a.png", "b.png", "c.png", "d.png"],
        "label": ["ok", "ok", "dent", "scratch"],
        "split": ["train", "test", "train", "val"],
    }
)


@pytest.fixture
def correct(tmp_path: Path) -> Callable[[str], DataConfig]:
    """Settings that name a table of corrections of this text."""

    def make(text: str) -> DataConfig:
        path = tmp_path / "corrections.csv"
        path.write_text(text, encoding="utf-8")
        return DataConfig(corrections=path)

    return make


def test_labels_change_and_images_go(correct: Callable[[str], DataConfig]) -> None:
    settings = correct(
        "image,label,corrected_label\na.png,ok,dent\nb.png,ok,scratch\nc.png,dent,-\nd.png,,\n"
    )
    table, changes = corrected(SET, settings)
    assert table["image"].tolist() == ["a.png", "b.png", "d.png"]
    assert table["label"].tolist() == ["dent", "scratch", "scratch"]
    assert table.index.tolist() == [0, 1, 2]
    assert changes.to_dict("list") == {
        "image": ["a.png", "b.png", "c.png"],
        "split": ["train", "test", "train"],
        "was": ["ok", "ok", "dent"],
        "is": ["dent", "scratch", "-"],
    }
    assert settings.corrections is not None
    told = told_corrections(changes, settings.corrections)
    assert told[0] == f"2 labels corrected and 1 image left out by {settings.corrections}"
    assert told[1].startswith("1 image of them is in test: do not compare")
    again, none = corrected(table, settings, left_out=["c.png"])
    assert again.equals(table)
    assert none.empty
    assert "nothing" in told_corrections(none, settings.corrections)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,ok,hole", r"row 1 below the header: a\.png is corrected to hole, but the data set"),
        ("a.png,ok,scrach", r"scrach \(did you mean scratch\?\)"),
        ("e.png,ok,dent\nf.png,ok,ok", r"2 images that the data set does not hold: e\.png"),
        ("a.png,ok,dent\na.png,ok,scratch", r"a\.png is dent in row 1 .* but scratch in row 2"),
        ("a.png,dent,scratch", r"from dent to scratch, but its label is ok now"),
    ],
)
def test_what_contradicts_is_refused(
    correct: Callable[[str], DataConfig], text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        corrected(SET, correct(f"image,label,corrected_label\n{text}\n"))


def test_tables_as_spreadsheets_save_them(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    text = "image;corrected_label\r\nmaß.png;dent\r\n'=a.png; - \r\nc.png;\r\n"
    path.write_bytes(text.encode("cp1252"))
    found = read_corrections(path)
    assert {name: each.now for name, each in found.items()} == {"maß.png": "dent", "=a.png": "-"}
    path.write_text("image,label\na.png,ok\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'corrected_label', so it corrects nothing"):
        read_corrections(path)
    with pytest.raises(DataError, match=r"no table of corrections at .*nowhere\.csv"):
        read_corrections(tmp_path / "nowhere.csv")
    path.write_text("image,corrected_label\na.png,-\n", encoding="utf-8")
    dashes = SET.assign(label=["ok", "-", "dent", "scratch"])
    with pytest.raises(DataError, match="has a class with that name"):
        corrected(dashes, DataConfig(corrections=path))


def test_a_correction_moves_no_image_to_another_split(
    defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "c.csv"
    rows = [f"ok/{number:03d}.png,scratch" for number in range(12)] + ["hole/000.png,-"]
    path.write_text("\n".join(["image,corrected_label", *rows, ""]), encoding="utf-8")
    settings = tiny_config().data
    before = load_inspection_set(defects, settings, seed=0)
    after = load_inspection_set(defects, settings.model_copy(update={"corrections": path}), seed=0)
    split, now = (found.table.set_index("image")["split"] for found in (before, after))
    assert now.equals(split.drop("hole/000.png"))
    assert len(after.corrections) == 13
    assert after.table["label"].value_counts().to_dict() == {
        "ok": 48, "scratch": 36, "dent": 12, "hole": 5
    }  # fmt: skip
    assert after.fingerprint != before.fingerprint
