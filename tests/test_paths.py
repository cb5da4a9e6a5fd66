"""An image passes few files on its way to a decision, and `objective.tau` few to the loss."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests" / "fixtures" / "before"


@pytest.fixture(scope="module")
def paths() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paths", ROOT / "benchmarks/structure/paths.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["paths"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_an_image_passes_few_files(paths: ModuleType) -> None:
    entrances = paths.files_of_an_image(KEPT / "run", KEPT / "images" / "ok" / "00.png")
    assert {"runtime/predictor.py", "data/decode.py", "inference/forward.py"} <= entrances.keys()
    # Two of them for images that are seen in tiles, one for the columns of every table, one for
    # what people cannot see of its lots, one for what an answer is.
    assert len(entrances) <= 19
    often = {name: e.callers for name, e in entrances.items() if len(e.callers) > 2}
    assert often == {}


def test_tau_passes_few_files(paths: ModuleType) -> None:
    known = paths.files_that_know("tau")
    assert {"config/objective.py", "training/planner.py", "losses/objective.py"} <= set(known)
    assert len(known) <= 7
