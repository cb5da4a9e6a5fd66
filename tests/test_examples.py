"""The examples do what their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recame.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "own"),
    [("own_loss", "own_loss.Smoothed"), ("own_backbone", "own_backbone.stripe_net")],
)
def test_a_part_of_ones_own_trains(name: str, own: str, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = RunFolder.open(tmp_path / "run", finished=True).load_config()
    named = config.objective.loss if name == "own_loss" else config.model.backbone_from
    assert named is not None
    assert (named.class_path, named.package) == (own, None)
