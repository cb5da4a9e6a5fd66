"""The examples do what their first lines say."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import recame
from recame.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize(
    ("name", "own"),
    [("own_loss", "own_loss.Smoothed"), ("own_backbone", "own_backbone.stripe_net")],
)
def test_a_part_of_ones_own_trains(name: str, own: str, tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLES / f"{name}.py"), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = RunFolder.open(tmp_path / "run", finished=True).load_config()
    named = config.objective.loss if name == "own_loss" else config.model.backbone_from
    assert named is not None
    assert (named.class_path, named.package) == (own, None)


@pytest.mark.slow
def test_the_method_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = EXAMPLES / "own_loop.py"
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 60
    judged = runpy.run_path(str(page))["main"](tmp_path / "set", epochs=1, images=300)
    assert isinstance(judged, recame.Evaluation)
    assert 0 < judged["balanced_accuracy"].value <= 1
    assert capsys.readouterr().out.startswith("epoch 0: base ")


def test_predictions_in_pandas(finished: Path, defects: Path, tmp_path: Path) -> None:
    summary = recame.predict(finished, defects, out=tmp_path / "found.csv")
    views = runpy.run_path(str(EXAMPLES / "read_predictions.py"))["main"](str(summary.out))
    assert views["images of each class"]["images"].sum() == 102
    assert views["what is done with them"]["images"].sum() == 102
    assert views["the least confident images"]["confidence"].is_monotonic_increasing
    assert len(summary.to_frame()) == 102
    assert str(summary).startswith("102 images: ")
