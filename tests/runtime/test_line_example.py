"""The example that watches a folder for the line: the gravest image decides, nothing is lost."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recame
from recame.decisions.document import save_policy
from recame.decisions.drift import DriftMonitor
from recame.decisions.limits import Limits
from recame.decisions.scored import Scored, logits_of
from recame.decisions.tune import tune
from recame.runtime.bundle import open_bundle
from recame.runtime.opening import answers_of

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "line.py"
CLASSES = ("ok", "crack", "NA")

Pictures = tuple[Path, np.ndarray]


@pytest.fixture(scope="module")
def tuned(bundle: Path, pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that releases some of the pictures, as if it called all of them rightly."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("line") / "bundle"))
    found = recame.load(copy).predict(pictures[0])
    probabilities = np.stack([each.probabilities for each in found])
    called = probabilities.argmax(1)
    images = [each.image for each in found]
    limits = Limits.from_dict({"escape": 0.2})
    policy = tune(Scored(logits_of(probabilities), called, images), CLASSES, "ok", limits)
    drift = DriftMonitor.of(called, probabilities.max(1), CLASSES)
    answers = answers_of(open_bundle(copy))
    save_policy(copy / "decisions.json", policy, limits, answers, "", drift, [], None)
    return copy


@pytest.fixture
def decide() -> Any:
    return runpy.run_path(str(EXAMPLE))["decide"]


def test_the_gravest_image_decides_and_images_move(
    tuned: Path, pictures: Pictures, decide: Any, tmp_path: Path
) -> None:
    model = recame.load(tuned)
    by_action = {each.action: Path(each.image) for each in model.predict(pictures[0])}
    good, bad = by_action["release"], by_action["automatic"]
    incoming, done = tmp_path / "incoming", tmp_path / "done"
    incoming.mkdir()
    for name, source in {"a_1": good, "a_2": good, "b_1": good, "b_2": bad, "c_1": good}.items():
        shutil.copy(source, incoming / f"{name}.png")
    shutil.copy(good, incoming / "d_1.png")
    (incoming / "d_2.png").write_bytes(b"no image")
    told: dict[str, str] = {}

    def tell(part: str, action: str, why: str) -> None:
        told[part] = action
        assert why

    assert decide(model, incoming, done, 2, 60.0, tell) == 3
    assert told == {"a": "release", "b": "automatic", "d": "unreadable"}
    assert sorted(path.name for path in incoming.iterdir()) == ["c_1.png"]  # its second may come
    assert sorted(path.name for path in (done / "release").iterdir()) == ["a_1.png", "a_2.png"]
    old = time.time() - 100
    os.utime(incoming / "c_1.png", (old, old))
    assert decide(model, incoming, done, 2, 60.0, tell) == 1
    assert told["c"] == "review"
    assert [*incoming.iterdir()] == []
    assert len([*done.rglob("*.png")]) == 7


def test_without_decisions_nothing_is_released(bundle: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(bundle), str(tmp_path), str(tmp_path / "done")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "run `recame tune` first" in done.stderr
