"""`tune`, `verify` and `compare` take what is in memory as they take paths."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import recame
from recame.decisions.document import last_tuning
from recame.errors import DataError

COUNTS = {"ok": 60, "scratch": 40, "dent": 40, "hole": 40}
LIMITS = {"escape": 0.2, "unknown_false_alarm": False}


def described(folder: Path) -> pd.DataFrame:
    paths = sorted(folder.glob("*/*.png"))
    return pd.DataFrame({"image": paths, "label": [path.parent.name for path in paths]})


@pytest.fixture(scope="module")
def images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("given") / "fresh", COUNTS, seed=7)


@pytest.fixture(scope="module")
def others(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("given") / "others", COUNTS, seed=8)


def tuned(finished: Path, run: Path, calibration: Any) -> tuple[Path, Any]:
    shutil.copytree(finished, run)
    return run, recame.tune(run, calibration, LIMITS, normal="ok")


def test_a_table_in_memory_tunes_as_its_folder_does(
    finished: Path, images: Path, others: Path, tmp_path: Path
) -> None:
    run, found = tuned(finished, tmp_path / "a", described(images))
    by_path, wanted = tuned(finished, tmp_path / "b", images)
    assert found.policy.to_dict() == wanted.policy.to_dict()
    assert [each.to_dict() for each in found.promises] == [p.to_dict() for p in wanted.promises]
    kept = (last_tuning(run / "decisions.json") or {})["calibration"]
    assert Path(kept).parent == run / "given"  # a bundle of this run is tuned by it again
    assert len(pd.read_parquet(kept)) == 180

    pairs = list(described(others).itertuples(index=False, name=None))
    assert str(recame.verify(run, pairs)) == str(recame.verify(by_path, others))
    with pytest.raises(recame.RecameError, match=r"^DataFrame of 180 rows holds the images that"):
        recame.verify(run, described(images))


def test_models_are_compared_by_a_table_in_memory(finished: Path, images: Path) -> None:
    table, console = described(images), Console(file=io.StringIO(), width=300)
    rules = {"escape_margin": 0.9}
    given: dict[str, Any] = {"rules": rules, "normal": "ok"}
    found = recame.compare(finished, finished, table, **given, console=console)
    wanted = recame.compare(finished, finished, images, **given)
    assert found.to_frame().equals(wanted.to_frame())
    assert found.sentence in console.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="DataFrame of 180 rows holds no labelled image"):
        recame.compare(finished, finished, table.assign(split="train"), normal="ok")
    with pytest.raises(recame.RecameError, match="The gate has no rule margin"):
        recame.compare(finished, finished, table, rules={"margin": 1})
