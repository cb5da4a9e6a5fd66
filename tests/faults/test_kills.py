"""300 kills at random moments (SIGKILL): each verb ends as if nothing had happened.

Weights are the same bit for bit, each image stands in the table exactly once, what is read in
between is the old or the new, and nothing is left lying about. The bench's kills are in
`test_bench_kills.py`. A kill keeps what was written; a power cut does not: `test_power_cut.py`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import recame
from recame.config import Config
from recame.errors import CheckpointError
from recame.export.export import export

sys.path.insert(0, str(Path(__file__).parent))
from killed_verb import Killer

pytestmark = pytest.mark.slow

#: Of 308; the other 48 are the bench's.
KILLS = {"train": 80, "distil": 40, "predict": 50, "evaluate": 40, "export": 50}


@pytest.fixture(scope="module")
def killer(
    environment: dict[str, str],
    tell: Callable[[str], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Killer]:
    log = tmp_path_factory.mktemp("told") / "log.txt"
    log.touch()
    killer = Killer(2510, environment, log)
    yield killer
    tell(f"{killer.kills} kills")


def rounds(killer: Killer, kills: int) -> Iterator[int]:
    """Numbers, until so many more kills were made."""
    wanted, number = killer.kills + kills, 0
    while killer.kills < wanted:
        yield number
        number += 1


def begun(run: Path) -> bool:
    return (run / "run.json").exists()


def assert_equal_runs(run: Path, expected: Path) -> None:
    for name in ("model.safetensors", "metrics.json", "config.yaml", "manifest.csv"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    one, other = (pd.read_csv(path / "history.csv") for path in (run, expected))
    pd.testing.assert_frame_equal(
        one.drop(columns="seconds", errors="ignore"), other.drop(columns="seconds", errors="ignore")
    )
    assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}


def test_training(killer: Killer, defects: Path, tiny_words: list[str], tmp_path: Path) -> None:
    words = ["--set", "finetune.epochs=4"]
    killer.run("train", defects, "--out", tmp_path / "once", *tiny_words, *words)
    whole = killer.run("train", defects, "--out", tmp_path / "whole", *tiny_words, *words)
    run = tmp_path / "run"

    def start() -> tuple[object, ...]:
        if begun(run):
            return "train", "--out", run, "--resume"
        return "train", defects, "--out", run, *tiny_words, *words

    for _ in rounds(killer, KILLS["train"]):
        shutil.rmtree(run, ignore_errors=True)
        killer.until_done(whole, start)
        assert_equal_runs(run, tmp_path / "whole")


def test_distillation(
    killer: Killer, trained: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    stock = write_images(tmp_path / "stock", {"unknown": 20}, seed=8)
    words = ["--set", "finetune.epochs=3", "--unlabelled", stock]
    killer.run("distill", trained, "--out", tmp_path / "once", *words)
    whole = killer.run("distill", trained, "--out", tmp_path / "whole", *words)
    run = tmp_path / "run"

    def start() -> tuple[object, ...]:
        if begun(run):
            return "distill", "--out", run, "--resume"
        return "distill", trained, "--out", run, *words

    for _ in rounds(killer, KILLS["distil"]):
        shutil.rmtree(run, ignore_errors=True)
        killer.until_done(whole, start)
        assert_equal_runs(run, tmp_path / "whole")


def test_prediction(
    killer: Killer, trained: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    images = write_images(tmp_path / "line", {"ok": 1500, "hole": 500}, seed=3)
    out, expected = tmp_path / "out" / "table.csv", tmp_path / "expected.csv"
    killer.run("predict", trained, images, "-o", tmp_path / "once.csv")
    whole = killer.run("predict", trained, images, "-o", expected)
    for _ in rounds(killer, KILLS["predict"]):
        shutil.rmtree(out.parent, ignore_errors=True)
        killer.until_done(whole, lambda: ("predict", trained, images, "-o", out))
        assert out.read_bytes() == expected.read_bytes()
        assert pd.read_csv(out)["image"].is_unique
        assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_judging(killer: Killer, trained: Path, tmp_path: Path) -> None:
    killer.run("evaluate", shutil.copytree(trained, tmp_path / "once"))
    whole = killer.run("evaluate", shutil.copytree(trained, tmp_path / "whole"))
    expected = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    names = {path.name for path in (tmp_path / "whole" / "evaluation" / "test").iterdir()}
    run = tmp_path / "run"
    for _ in rounds(killer, KILLS["evaluate"]):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(trained, run)
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**metrics, "test": {"of": "another time"}}))

        def start() -> tuple[object, ...]:
            found = json.loads((run / "metrics.json").read_text())
            assert found == expected or found["test"] == {"of": "another time"}
            return "evaluate", run

        killer.until_done(whole, start)
        assert json.loads((run / "metrics.json").read_text()) == expected
        assert {path.name for path in (run / "evaluation" / "test").iterdir()} == names


def test_export(
    killer: Killer, trained: Path, defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    other = recame.train(defects, tiny_config(run__seed=9), out=tmp_path / "other").path
    asked = [str(path) for path in sorted(defects.rglob("*5.png"))]
    bundle, room = tmp_path / "room" / "bundle", tmp_path / "room"
    export(other, out=tmp_path / "old")
    killer.run("export", trained, "--out", tmp_path / "once")
    whole = killer.run("export", trained, "--out", tmp_path / "whole")
    answers = [answer(tmp_path / name, asked) for name in ("old", "whole")]
    for _ in rounds(killer, KILLS["export"]):
        shutil.rmtree(room, ignore_errors=True)
        shutil.copytree(tmp_path / "old", bundle)

        def start() -> tuple[object, ...]:
            assert any(np.array_equal(answer(bundle, asked), each) for each in answers)
            return "export", trained, "--out", bundle, "--force"

        killer.until_done(whole, start)
        assert np.array_equal(answer(bundle, asked), answers[1])
        # What a killed export had begun is hidden, and goes a day later: it might still grow.
        left = [path.name for path in room.iterdir() if not path.name.startswith(".bundle.")]
        assert left == ["bundle"]


def test_a_clock_set_back(
    faulty_system: None,
    killer: Killer,
    environment: dict[str, str],
    defects: Path,
    trained: Path,
    tiny_words: list[str],
    tmp_path: Path,
) -> None:
    """What one start left is taken up by one that believes to live a year before."""
    log = tmp_path / "log.txt"
    log.touch()
    earlier = Killer(1, environment | {"RECAME_CLOCK_SHIFT_S": "-31536000"}, log)
    whole = killer.run("train", defects, "--out", tmp_path / "whole", *tiny_words)
    run, out = tmp_path / "run", tmp_path / "table.csv"
    killer.begin(whole, run, "train", defects, "--out", run, *tiny_words)
    earlier.run("train", "--out", run, "--resume")
    assert_equal_runs(run, tmp_path / "whole")
    info = json.loads((run / "run.json").read_text())
    assert info["finished"] < info["started"]  # the clock was set, or this tests nothing
    whole = killer.run("predict", trained, defects, "-o", tmp_path / "whole.csv")
    killer.kill(whole, "predict", trained, defects, "-o", out)
    earlier.run("predict", trained, defects, "-o", out)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def answer(bundle: Path, asked: list[str]) -> np.ndarray:
    """(N, C) probabilities; a reader that comes between two renames may ask once more."""
    try:
        model = recame.load(bundle, threads=1)
    except CheckpointError:
        model = recame.load(bundle, threads=1)
    return np.stack([found.probabilities for found in model.predict(asked)])
