"""The disk full at every write call: an error that says so, nothing lost, and it goes on later."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import recame
from recame.config import Config

sys.path.insert(0, str(Path(__file__).parent))
from killed_verb import Killer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("faulty_system")]

Verb = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def full_disk(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Verb:
    """`full_disk(folder, number, words...)`: the exit code and words of a verb whose writes below
    the folder fail from the given one on; None: none fails."""
    log = tmp_path_factory.mktemp("told") / "log.txt"

    def run(folder: Path, number: int | None, *words: object) -> tuple[int, str]:
        log.write_text("")
        faults = {}
        if number is not None:
            faults = {"RECAME_FULL_BELOW": str(folder), "RECAME_FULL_FROM": str(number)}
        code = Killer(0, environment | faults, log).end(*words)
        return code, log.read_text()

    return run


def failing_calls(
    tell: Callable[[str], None],
    full_disk: Verb,
    folder: Path,
    start: Callable[[], tuple[object, ...]],
    check: Callable[[], None],
) -> int:
    """Let each write fail, beginning with the first, until the verb does without; how many."""
    for number in range(1, 5000):
        code, told = full_disk(folder, number, *start())
        if code == 0 and "No space left" not in told and "disk is full" not in told:
            check()
            tell(f"{start()[0]}: {number - 1} writes that failed, one at a time")
            return number - 1
        assert "Traceback" not in told, f"write {number}: {told[-3000:]}"
        if code != 0:
            # 1: the figures stand, the report could not be drawn.
            assert code in (1, 2), f"write {number}: {code}: {told[-3000:]}"
            assert "No space left" in told or "disk is full" in told, f"write {number}: {told}"
        code, told = full_disk(folder, None, *start())
        assert code == 0, f"after write {number}: {told[-3000:]}"
        check()
    raise AssertionError("it writes for ever")


def test_training(
    tell: Callable[[str], None],
    full_disk: Verb,
    defects: Path,
    tiny_words: list[str],
    room: Path,
    tmp_path: Path,
) -> None:
    asked = [*tiny_words, "--set", "probe.steps=2"]
    full_disk(room, None, "train", defects, "--out", tmp_path / "whole", *asked)
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    run = room / "run"
    new = True

    def start() -> tuple[object, ...]:
        nonlocal new
        if new:
            shutil.rmtree(run, ignore_errors=True)
        new = not new
        if (run / "run.json").exists():
            return "train", "--out", run, "--resume"
        return "train", defects, "--out", run, *asked

    def check() -> None:
        assert (run / "model.safetensors").read_bytes() == expected
        assert {p.name for p in run.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}

    assert failing_calls(tell, full_disk, room, start, check) > 10


def test_judging(tell: Callable[[str], None], full_disk: Verb, trained: Path, room: Path) -> None:
    run = Path(shutil.copytree(trained, room / "run"))
    full_disk(room, None, "evaluate", run)
    expected = (run / "metrics.json").read_bytes()
    table = (run / "evaluation" / "test" / "predictions.parquet").read_bytes()

    def check() -> None:
        assert (run / "metrics.json").read_bytes() == expected
        assert (run / "evaluation" / "test" / "predictions.parquet").read_bytes() == table

    assert failing_calls(tell, full_disk, room, lambda: ("evaluate", run), check) > 5


def test_predicting(
    tell: Callable[[str], None], full_disk: Verb, trained: Path, defects: Path, room: Path
) -> None:
    out = room / "table.csv"
    full_disk(room, None, "predict", trained, defects, "-o", out)
    expected = out.read_bytes()

    def check() -> None:
        assert out.read_bytes() == expected
        out.unlink()

    def start() -> tuple[object, ...]:
        return "predict", trained, defects, "-o", out

    assert failing_calls(tell, full_disk, room, start, check) > 3


def test_exporting(
    tell: Callable[[str], None],
    full_disk: Verb,
    trained: Path,
    defects: Path,
    tiny_config: Callable[..., Config],
    room: Path,
) -> None:
    asked = [str(path) for path in sorted(defects.rglob("*5.png"))]
    bundle = room / "bundle"
    full_disk(room, None, "export", trained, "--out", bundle)
    expected = np.stack([found.probabilities for found in recame.load(bundle).predict(asked)])

    def start() -> tuple[object, ...]:
        return "export", trained, "--out", bundle, "--force"

    def check() -> None:
        found = [found.probabilities for found in recame.load(bundle).predict(asked)]
        assert np.array_equal(np.stack(found), expected)
        assert [path.name for path in room.iterdir()] == ["bundle"]

    assert failing_calls(tell, full_disk, room, start, check) >= 3
