"""Mean ranks by hand, what counts as a block, and which methods ranks tell apart."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.bench_figures import rank_figure
from recame.bench.tables.contest import Contest
from recame.bench.tables.ranks import Ranks, critical_difference, mean_ranks

NAMES = ("a", "b", "c")
METHODS = {name: Method(name, name.upper(), "here") for name in NAMES}


def contest(rows: list[dict[str, Any]], **plan: Any) -> Contest:
    values = {
        "name": "p",
        "title": "Three",
        "data": {"chips": {}, "boards": {}},
        "methods": list(NAMES),
        "seeds": [0, 1, 2, 3],
    }
    frame = pd.DataFrame(rows).assign(split="test")
    return Contest(frame, METHODS, Plan.model_validate(values | plan))


def runs(data: str, seeds: int, *, anew: bool, **scores: float) -> list[dict[str, Any]]:
    return [
        {
            "data": data,
            "method": name,
            "seed": seed,
            "fingerprint": f"{seed if anew else 'same'}",
            "balanced_accuracy": score + seed / 100,
        }
        for name, score in scores.items()
        for seed in range(seeds)
    ]


def test_ranks_count_seeds_with_images_of_their_own_and_sets() -> None:
    rows = runs("chips", 4, anew=True, a=0.5, b=0.6, c=0.5)
    rows += runs("boards", 4, anew=False, a=0.9, b=0.8, c=0.7)
    found = mean_ranks(contest(rows))
    assert found is not None
    assert found.blocks == 5  # four of chips, one of the boards
    assert found.mean.to_dict() == pytest.approx({"b": 6 / 5, "a": 11 / 5, "c": 13 / 5})
    assert list(found.mean.index) == ["b", "a", "c"]
    assert found.distance == critical_difference(3, 5)
    # Friedman's statistic: (36 + 121 + 169) / 5 - 60 = 5.2, and with four ties 5.2 / 0.8.
    assert found.p == pytest.approx(math.exp(-6.5 / 2))


def test_no_ranks_of_few_blocks_or_of_a_block_that_lacks_a_method() -> None:
    rows = runs("chips", 4, anew=True, a=0.5, b=0.6, c=0.4)
    assert mean_ranks(contest(rows)) is None
    rows += runs("boards", 4, anew=True, a=0.5, b=0.6)
    assert mean_ranks(contest(rows)) is None
    again = {"chips": {}, "boards": {"of": "chips"}}
    rows = runs("chips", 4, anew=True, a=0.5, b=0.6, c=0.4)
    rows += runs("boards", 4, anew=True, a=0.5, b=0.6, c=0.4)
    assert mean_ranks(contest(rows)) is not None
    assert mean_ranks(contest(rows, data=again)) is None


def test_bars_join_what_is_not_told_apart() -> None:
    mean = pd.Series({"a": 1.0, "b": 1.8, "c": 2.9})
    ranks = Ranks("balanced_accuracy", mean, 9, 0.01, 1.2)
    assert ranks.cliques() == [(0, 1), (1, 2)]
    assert Ranks("balanced_accuracy", mean, 9, 0.01, 2.0).cliques() == [(0, 2)]
    assert Ranks("balanced_accuracy", mean, 9, 0.01, 0.5).cliques() == []
    axes = rank_figure(ranks, contest([])).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["A", "B", "C"]
    assert len(axes.collections) == 3  # the dots and two bars
