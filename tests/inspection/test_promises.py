from __future__ import annotations

import json
from pathlib import Path

import pytest

from recame.config import DataConfig
from recame.decisions.exact import images_needed, smallest_limit
from recame.decisions.promises import risk_of_each
from recame.inspection import Inspection, inspect_set
from recame.label_space import likely_normal


def inspected(out: Path, **counts: int) -> Inspection:
    """A table of files that nobody opens."""
    out.mkdir()
    lines = ["image,label"]
    for name, number in counts.items():
        lines += [f"{name}/{place}.png,{name}" for place in range(number)]
    (out / "set.csv").write_text("\n".join(lines))
    return inspect_set(out / "set.csv", data=DataConfig(), decode=False, out=out / "page")


def test_what_a_fifth_could_promise_is_told_by_counting(tmp_path: Path) -> None:
    found = inspected(tmp_path / "set", good=4000, bridge=900, open=400, spur=40)
    (told,) = [finding for finding in found.findings() if finding.key == "promises"]
    risk = risk_of_each(0.95, promises=3)
    assert smallest_limit(180, 0, risk) <= 0.05 < smallest_limit(80, 0, risk) <= 0.1
    assert (
        "can promise escapes of at most 5% of 1 of 3, and 10% of 2 of 3 defect classes"
    ) in told.text
    assert f"2% needs {images_needed(0.02, risk)} images of each class" in told.text
    assert "data.normal_class=good" in told.action
    document = json.loads((tmp_path / "set" / "page" / "inspection.json").read_text())
    kept = document["promises"]
    assert kept["calibrating"] == {"bridge": 180, "open": 80, "spur": 8}
    assert kept["smallest_limit"]["bridge"] == pytest.approx(smallest_limit(180, 0, risk))


def test_nothing_is_told_where_no_class_looks_normal(tmp_path: Path) -> None:
    found = inspected(tmp_path / "set", bridge=900, open=450)
    assert "promises" not in {finding.key for finding in found.findings()}


def test_names_that_look_normal() -> None:
    assert likely_normal(["scratch", "No defect"]) == "No defect"
    assert likely_normal(["normal", "OK"]) == "OK"
    assert likely_normal(["goods", "abnormal"]) is None
