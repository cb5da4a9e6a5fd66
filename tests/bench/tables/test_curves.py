"""Learning curves: the same set at several lengths."""

from __future__ import annotations

import pandas as pd
import pytest

from recame.bench.plan.data_entry import resolved
from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.contest import Contest
from recame.bench.tables.curves import curves_figure, learning_curves
from recame.bench.tables.results import METRICS, RUN_COSTS

METHODS = {name: Method(name, name.upper(), "here") for name in ("a", "b")}
PLAN = Plan.model_validate(
    {
        "name": "p",
        "title": "Lengths",
        "data": {"chips": {}, "chips_long": {"of": "chips", "methods": ["a"]}},
        "methods": list(METHODS),
        "seeds": [0, 1],
    }
)
CONTEST = Contest(
    pd.DataFrame(), METHODS, PLAN.model_copy(update={"data": resolved("p", PLAN.data)})
)


def contest(*lengths: tuple[str, str, int]) -> Contest:
    rows = [
        {
            **dict.fromkeys((*METRICS, *RUN_COSTS), float("nan")),
            "data": data,
            "split": "test",
            "method": method,
            "seed": seed,
            "images_seen": seen,
            "balanced_accuracy": seen / 1000 + seed / 10,
        }
        for data, method, seen in lengths
        for seed in (0, 1)
    ]
    return Contest(pd.DataFrame(rows), METHODS, CONTEST.plan)


def test_lengths_of_one_set_are_joined() -> None:
    found = contest(("chips_long", "a", 300), ("chips", "a", 100), ("chips", "b", 100))
    table = learning_curves(found, "chips")
    own = table[table["metric"] == "balanced_accuracy"]
    assert own["method"].tolist() == ["a", "b", "a"]
    assert own["images_seen"].tolist() == [100, 100, 300]
    assert own["mean"].tolist() == pytest.approx([0.15, 0.15, 0.35])
    figure = curves_figure(found, "chips")
    assert figure is not None
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines if len(line.get_xdata())]
    assert lines == [
        [[100, pytest.approx(15)], [300, pytest.approx(35)]],
        [[100, pytest.approx(15)]],
    ]


def test_one_length_is_no_curve() -> None:
    assert curves_figure(contest(("chips", "a", 100), ("chips", "b", 100)), "chips") is None
    assert learning_curves(contest(("chips", "a", 100)), "boards").empty
