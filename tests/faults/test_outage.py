"""The share with the images goes away under a verb, and comes back: nothing is lost by it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from killed_verb import Killer

pytestmark = pytest.mark.slow


@pytest.fixture
def killer(environment: dict[str, str], tmp_path: Path) -> Killer:
    log = tmp_path / "log.txt"
    log.touch()
    return Killer(0, environment, log)


def test_a_share_gone_and_back_under_a_prediction(
    killer: Killer, trained: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    share, away = write_images(tmp_path / "share", {"ok": 3000}), tmp_path / "away"
    out, rows = tmp_path / "table.csv", tmp_path / "table.csv.partial" / "rows.sqlite-wal"
    killer.run("predict", trained, share, "-o", tmp_path / "whole.csv")

    def unplug() -> None:
        while not (rows.exists() and rows.stat().st_size > 100_000):  # some rows are kept
            time.sleep(0.001)
        share.rename(away)

    assert killer.end("predict", trained, share, "-o", out, meanwhile=unplug) == 3
    assert not out.exists()
    assert killer.end("predict", trained, share, "-o", out) != 0  # it is still away
    assert not out.exists()
    away.rename(share)
    killer.run("predict", trained, share, "-o", out)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert pd.read_csv(out)["image"].is_unique
    assert not rows.parent.exists()


def test_a_share_gone_and_back_under_training(
    killer: Killer, defects: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    share, away = tmp_path / "share", tmp_path / "away"
    shutil.copytree(defects, share)
    seconds = killer.run("train", share, "--out", whole, *tiny_words)
    killer.begin(seconds, run, "train", share, "--out", run, *tiny_words)
    share.rename(away)
    assert killer.end("train", "--out", run, "--resume") in (2, 3)
    away.rename(share)
    killer.run("train", "--out", run, "--resume")
    for name in ("model.safetensors", "metrics.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
