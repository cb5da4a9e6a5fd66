"""What decisions did with labelled images, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recame.decisions.outcome import Outcome, outcome_of
from recame.metrics.statistics import wilson_interval

NAMES = ("ok", "open", "short")
#: action, called, labelled: what each row is, stands beside it.
ROWS = [
    ("release", 0, 0),
    ("release", 0, 0),
    ("release", 0, 1),  # escapes
    ("automatic", 1, 1),
    ("automatic", 1, 2),  # misclassified
    ("automatic", 2, 0),  # overkill, and misclassified
    ("review", 0, 0),  # overkill
    ("review", 0, 2),
    ("unknown", 1, 1),
    ("unreadable", 0, 1),
    ("release", 0, -1),  # nobody knows
]


def found(normal: int | None = 0) -> Outcome:
    actions, called, target = zip(*ROWS, strict=True)
    return outcome_of(actions, np.array(called), np.array(target), NAMES, normal)


def test_shares_are_counted() -> None:
    counts = {(s.what, s.of): (s.number, s.images) for s in found().shares}
    assert counts == {
        ("release", ""): (3, 10),
        ("automatic", ""): (3, 10),
        ("review", ""): (4, 10),
        ("misclassified", ""): (2, 3),
        ("escape", ""): (1, 6),
        ("overkill", ""): (2, 4),
        ("escape", "open"): (1, 4),
        ("escape", "short"): (0, 2),
    }


def test_without_a_normal_class_nothing_escapes() -> None:
    free = found(None)
    assert {share.what for share in free.shares} == {
        *("release", "automatic", "review", "misclassified")
    }
    assert free.share("automatic").number == 6
    assert free.share("escape").images == 0
    assert len(free.sentences()) == 1


def test_a_defect_that_is_called_normal_without_a_policy_escapes() -> None:
    plain = outcome_of(["automatic"] * 2, np.array([0, 0]), np.array([0, 1]), NAMES, 0)
    assert plain.share("escape").number == 1
    assert plain.share("automatic").number == 0


def test_words_and_json() -> None:
    told = found()
    low, high = wilson_interval(1, 6)
    first, of_open, last = told.sentences()
    assert first == (
        f"1 of 6 (16.67%, {low:.2%} to {high:.2%}) defects are released as ok; "
        "2 of 4 (50.00%, 15.00% to 85.00%) normal images are not."
    )
    assert of_open.startswith("open: 1 of 4 (25.00%")
    assert "4 of 10 (40.00%" in last
    assert "3 images are classified automatically, of which 2 of 3" in last
    values = told.to_dict()
    assert values["escape"]["interval"] == pytest.approx([low, high])
    assert values["escape_by_class"]["short"]["value"] == 0
    assert outcome_of([], np.zeros(0, int), np.zeros(0, int), NAMES, 0).to_dict()["escape"] == {
        "number": 0,
        "images": 0,
        "value": None,
        "interval": [0.0, 1.0],
    }
