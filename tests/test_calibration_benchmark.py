"""What `benchmarks/decisions/calibration.py` writes of a run, which nobody else runs in tests."""

from __future__ import annotations

import doctest
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from recame.files import read_json

FILE = Path(__file__).parents[1] / "benchmarks" / "decisions" / "calibration.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibration_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_its_examples_hold(script: ModuleType) -> None:
    assert doctest.testmod(script) == (0, 4)


def test_a_run_has_a_row_for_each_way(
    script: ModuleType,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["calibration.py", str(finished), "--out", str(out)])
    script.main()
    assert "balanced_log_loss" in capsys.readouterr().out
    (found,) = read_json(out)["runs"]
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["none", "plain", "temperature", "bias_corrected", "vector", "chosen"]
    kept = read_json(finished / "decisions.json")["calibration"]["temperature"]
    assert rows["plain"]["temperature"] == pytest.approx(kept, abs=1e-3)
    assert rows["plain"]["called_otherwise"] == rows["none"]["called_otherwise"] == 0
    assert rows["plain"]["balanced_accuracy"] == rows["none"]["balanced_accuracy"]
    assert rows["vector"]["method"] == "vector"
    assert {len(row) for row in found["rows"]} == {8}
    assert sum(found["test"]) > 0
