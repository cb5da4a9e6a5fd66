"""Sets in memory: a DataFrame, pairs, a run; kept as the table that every stage reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recame.data.manifest import read_manifest
from recame.datasets.given import given_path
from recame.errors import DataError
from recame.runs.folder import RunFolder


def test_a_path_is_itself(tmp_path: Path) -> None:
    with given_path(str(tmp_path), tmp_path / "kept") as path:
        assert path == tmp_path
    assert not (tmp_path / "kept").exists()


def test_a_table_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {
        "image": [Path("a.png"), tmp_path / "b.png", "c.png"],
        "label": ["NA", "01", "NA"],
        "lot": ["007", None, "8"],
        "score": [1, 2.5, 3],
    }
    table = pd.DataFrame(rows, index=[7, 8, 9])
    with given_path(table, tmp_path / "kept") as path:
        assert path.parent == tmp_path / "kept"
        read = read_manifest(path)
    assert read["path"].tolist() == [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    assert read["label"].tolist() == ["NA", "01", "NA"]
    assert read["lot"].tolist()[0] == "007"
    assert read["score"].tolist() == [1, 2.5, 3]
    with given_path(table, tmp_path / "kept") as again:
        assert again == path  # called by its content
    assert isinstance(table["image"].iloc[0], Path)  # the caller's own stays


def test_pairs_and_other_tables(tmp_path: Path) -> None:
    class Other:
        def to_pandas(self) -> pd.DataFrame:
            return pd.DataFrame({"image": ["/a.png", "/b.png"], "label": ["x", "y"]})

    for given in ([("/a.png", "x"), (Path("/b.png"), "y")], Other()):
        with given_path(given, tmp_path) as path:  # type: ignore[arg-type]
            read = read_manifest(path)
        assert read["label"].tolist() == ["x", "y"]
        assert [Path(each).name for each in read["path"]] == ["a.png", "b.png"]


def test_a_run_means_its_images_with_their_splits(finished: Path, tmp_path: Path) -> None:
    with given_path(RunFolder(finished), tmp_path) as path:
        read = read_manifest(path)
    recorded = pd.read_csv(finished / "manifest.csv")
    assert read["path"].tolist() == recorded["path"].tolist()
    assert read["split"].tolist() == recorded["split"].tolist()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "holds no image"),
        (["a.png", "b.png"], "Item 0 of the list is 'a.png'"),
        ([("a.png", "x"), (3, "y")], "Item 1 of the list"),
        (7, "given as int"),
        (pd.DataFrame([["a", "b"]], columns=["image", "image"]), "several columns with one name"),
    ],
)
def test_what_is_no_set_is_refused(given: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told), given_path(given, tmp_path / "kept"):
        pass
    assert not (tmp_path / "kept").exists()


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    pairs = [("a.png", "x"), ("b.png", "y")]
    with pytest.raises(ZeroDivisionError), given_path(pairs, tmp_path / "kept"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "kept").exists()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "run.json").touch()  # a run has begun
    with pytest.raises(ZeroDivisionError), given_path(pairs, tmp_path / "kept"):
        1 / 0  # noqa: B018
    assert len(list((tmp_path / "kept").glob("given-*.parquet"))) == 1
