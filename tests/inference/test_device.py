from __future__ import annotations

from pathlib import Path

import pytest

from recame.config import Config
from recame.inference.device import judging_precision
from recame.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("began_on", "precision", "place", "expected"),
    [
        ("cuda", "bf16", "cuda", "bf16"),
        ("cuda", "bf16", "cuda:1", "bf16"),
        ("cuda", "bf16", "cpu", "32"),  # half precision was a GPU's
        ("cuda", "32", "cuda", "32"),
        ("cpu", "bf16", "cpu", "bf16"),  # as it was asked
        ("cpu", "32", "cuda", "32"),
    ],
)
def test_a_run_is_judged_in_what_it_trained_in(
    began_on: str, precision: str, place: str, expected: str, tmp_path: Path
) -> None:
    config = Config().updated({"run.precision": precision})
    folder = RunFolder.free(tmp_path / "run")
    folder.begin(tmp_path, "f00d", config, device=began_on)
    assert judging_precision(folder, config, place) == expected
