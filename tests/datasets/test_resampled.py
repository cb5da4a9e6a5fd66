"""Training images drawn anew by their groups; whatever judges stays as it is."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from recame.datasets.public.resampled import resample_groups
from recame.errors import DataError


def written(folder: Path, boards: int = 12, rare: int = 3) -> Path:
    """Each board has two images of `ok`; the first few also one of `rare`."""
    rows = [
        {
            "image": f"images/{board}_{n}.png",
            "label": "ok",
            "board": f"{board:03}",
            "split": "train",
        }
        for board in range(boards)
        for n in range(2)
    ]
    rows += [
        {"image": f"images/r{board}.png", "label": "rare", "board": f"{board:03}", "split": "train"}
        for board in range(rare)
    ]
    rows += [
        {"image": f"images/t{n}.png", "label": label, "board": "900", "split": "test"}
        for n, label in enumerate(("ok", "rare"))
    ]
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def test_whole_boards_are_drawn_and_the_test_split_stays(tmp_path: Path) -> None:
    manifest = written(tmp_path / "set")
    drawn = {}
    for seed in (0, 1):
        path = resample_groups(manifest, tmp_path / f"seed{seed}", "board", seed)
        drawn[seed] = table = pd.read_csv(path, dtype=str)
        train = table[table["split"] == "train"]
        assert (path.parent / table["image"][0]).resolve().parent == tmp_path / "set" / "images"
        # A board comes as often as it was drawn, with all its images.
        times = train.groupby("board")["image"].value_counts().groupby("board").nunique()
        assert (times == 1).all()
        boards = train[train["label"] == "ok"].groupby("board").size() / 2
        assert boards.sum() == 12
        assert len(boards) < 12
        assert "rare" in set(train["label"])
        assert table[table["split"] == "test"]["label"].tolist() == ["ok", "rare"]
    assert not drawn[0].equals(drawn[1])
    again = resample_groups(manifest, tmp_path / "seed0", "board", 0)
    pd.testing.assert_frame_equal(pd.read_csv(again, dtype=str), drawn[0])


def test_what_gives_no_other_draw_is_refused(tmp_path: Path) -> None:
    manifest = written(tmp_path / "set")
    with pytest.raises(DataError, match="has no column lot"):
        resample_groups(manifest, tmp_path / "a", "lot", 0)
    resample_groups(manifest, tmp_path / "b", "board", 0)
    with pytest.raises(DataError, match=r"prepared differently \(seed 0 and not 1\)"):
        resample_groups(manifest, tmp_path / "b", "board", 1)
    single = written(tmp_path / "single", boards=300, rare=0)
    table = pd.read_csv(single, dtype=str)
    names = [f"c{n}" for n in range(300)]  # a class a board: no draw has them all
    table.loc[table["image"].str.endswith("_0.png"), "label"] = names
    table.to_csv(single, index=False)
    with pytest.raises(DataError, match="1000 draws of its 300 values of board each lacked"):
        resample_groups(single, tmp_path / "c", "board", 0)
