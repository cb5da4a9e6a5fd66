"""What means hide: frontiers by hand, recalls by count, shares of the classes, and the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.behaviour import (
    SHIFTS,
    TAUS,
    Behaviour,
    behaviour,
    by_count,
    frontier_of,
    shifted,
)
from recame.bench.tables.behaviour_figures import behaviour_figure
from recame.bench.tables.board import boards
from recame.bench.tables.contest import Contest
from recame.bench.tables.results import collect
from recame.files import csv_text, write_json

METHODS = {name: Method(name, name.title(), "here") for name in ("plain", "other")}
PLAN = Plan.model_validate(
    {"name": "p", "title": "Two", "data": {"boards": {}}, "methods": list(METHODS), "seeds": [0, 1]}
)
CLASSES = [("ok", 1000, 0.9), ("dent", 100, 0.6), ("hole", 10, 0.3)]


def test_a_tail_is_bought_by_taking_the_prior_off() -> None:
    # One image of each class; the rare one's probability is short by the factor of its count.
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4]])
    target, counts, tail = np.array([0, 1]), np.array([8.0, 2.0]), np.array([False, True])
    table = frontier_of(probabilities, target, counts, tail).set_index("tau")
    assert list(table.index) == list(TAUS)
    assert table.loc[0].tolist() == [0.0, 1.0]
    # 0.6 : 0.4 turns at tau = log 1.5 / log 4 = 0.29, and 0.8 : 0.2 at tau = 1.
    assert table.loc[0.25, "tail"] == 0.0
    assert table.loc[0.5].tolist() == [1.0, 1.0]
    assert table.loc[1.25].tolist() == [1.0, 0.0]
    empty = frontier_of(probabilities[:1], target[:1], counts, tail)
    assert empty["tail"].isna().all()


def recalls() -> pd.DataFrame:
    rows = [
        {
            "data": "boards",
            "split": "test",
            "method": method,
            "seed": seed,
            "class": name if seed == 0 else f"{name}'",  # another seed, other classes
            "train_images": images + seed,
            "images": 50,
            "recall": recall - (0.1 if method == "other" else 0.0) + seed / 50,
        }
        for method in METHODS
        for seed in (0, 1)
        for name, images, recall in CLASSES
    ]
    return pd.DataFrame(rows)


def test_recalls_are_joined_by_rank() -> None:
    table = by_count(recalls()).set_index(["method", "rank"])
    assert table.loc[("plain", 0)].tolist() == pytest.approx([1000.5, 0.91])
    assert table.loc[("other", 2)].tolist() == pytest.approx([10.5, 0.21])


def test_other_shares_weigh_the_recalls() -> None:
    table = shifted(recalls()).set_index(["method", "shift"])["accuracy"]
    assert len(table) == 2 * len(SHIFTS)
    assert table["plain", 1.0] == pytest.approx(0.61)
    shares = np.array([1, 50**-0.5, 1 / 50])
    forward = (shares / shares.sum()) @ [0.91, 0.61, 0.31]
    backward = (shares / shares.sum()) @ [0.31, 0.61, 0.91]
    assert table["plain", 50.0] == pytest.approx(forward)
    assert table["plain", 1 / 50] == pytest.approx(backward)
    assert table["other", 50.0] == pytest.approx(forward - 0.1)


def write_results(path: Path, *methods: str) -> None:
    split = {
        "balanced_accuracy": {"value": 0.6},
        "tail_recall": {"value": 0.3},
        "per_class": [
            {"class": name, "train_images": images, "images": 50, "recall": recall}
            for name, images, recall in CLASSES
        ],
    }
    costs = {"epochs": 1, "images_seen": 9, "train_s": 1.0, "evaluate_s": 1.0}
    for method in methods:
        for seed in (0, 1):
            keys = {"schema": 1, "data": "boards", "method": method, "seed": seed}
            file = path / "runs" / "boards" / method / f"seed{seed}" / "result.json"
            file.parent.mkdir(parents=True)
            write_json(file, {**keys, **costs, "fingerprint": "f", "splits": {"test": split}})


def test_runs_are_read_and_what_was_kept_stands_for_them(tmp_path: Path) -> None:
    write_results(tmp_path, "plain")
    frame = collect(tmp_path)
    found = behaviour(tmp_path, frame)
    assert len(found.recalls) == 2 * 3
    assert found.recalls["recall"].tolist() == [0.9, 0.6, 0.3] * 2
    assert found.frontier.empty  # no predictions
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "recalls.csv").write_text(csv_text(found.recalls, index=False), encoding="utf-8")
    again = behaviour(kept, frame)
    pd.testing.assert_frame_equal(again.recalls, found.recalls, check_dtype=False)


def test_runs_made_elsewhere_bring_what_was_kept_of_them(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write_results(here, "plain")
    write_results(there, "plain", "other", "unplanned")
    kept = behaviour(there, collect(there)).recalls.assign(recall=0.5)
    (there / "recalls.csv").write_text(csv_text(kept, index=False), encoding="utf-8")
    frame = collect(there).query("method != 'unplanned'")
    found = behaviour(here, frame, [there]).recalls.set_index("method")
    assert found.loc["plain", "recall"].tolist() == [0.9, 0.6, 0.3] * 2  # its own runs
    assert found.loc["other", "recall"].tolist() == [0.5] * 6
    assert set(found.index) == {"plain", "other"}


def test_the_picture_draws_each_method_and_its_point(tmp_path: Path) -> None:
    write_results(tmp_path, *METHODS)
    contest = Contest(collect(tmp_path), METHODS, PLAN)
    (board,) = boards(contest)
    assert behaviour_figure(board, contest) is None
    frontier = pd.DataFrame(
        [
            {
                "data": "boards",
                "split": "test",
                "method": method,
                "seed": seed,
                "tau": tau,
                "tail": 0.5 + tau / 10,
                "others": 0.8 - tau / 10,
            }
            for method in METHODS
            for seed in (0, 1)
            for tau in TAUS
        ]
    )
    figure = behaviour_figure(board, replace(contest, behaviour=Behaviour(recalls(), frontier)))
    assert figure is not None
    by_images, shares, trade = figure.axes
    assert len(trade.lines) == len(shares.lines) == 2
    assert trade.collections[0].get_offsets().tolist() == [[80.0, 50.0]]
    assert by_images.lines[0].get_xdata().tolist() == [1000.5, 100.5, 10.5]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"Other", "Plain"}
    without = replace(contest, behaviour=Behaviour(recalls()))
    assert len(behaviour_figure(board, without).axes) == 2  # type: ignore[union-attr]
