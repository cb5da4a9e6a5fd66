"""Comparisons with the best: against scipy, tables of Dunnett, and formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recame.bench.tables.best import against_the_best, differences, dunnett_quantile, fit

RUNS = pd.DataFrame(
    {0: [0.90, 0.91, 0.93, 0.80], 1: [0.92, 0.90, 0.94, 0.83], 2: [0.91, 0.93, 0.95, 0.82]},
    index=["a", "b", "c", "d"],
)


@pytest.mark.parametrize(
    ("others", "freedom", "known"),  # Dunnett 1955, table 1a
    [(1, 5, 2.02), (2, 10, 2.15), (5, 5, 2.98), (4, 20, 2.30), (9, 20, 2.60)],
)
def test_quantiles_are_those_of_dunnett_s_table(others: int, freedom: int, known: float) -> None:
    assert dunnett_quantile(others, freedom) == pytest.approx(known, abs=0.011)


def test_quantiles_agree_with_scipy_s_multivariate_t() -> None:
    shape = 0.5 + 0.5 * np.eye(3)
    draws = stats.multivariate_t(np.zeros(3), shape, df=8, seed=0).rvs(200_000)
    share = (draws.max(1) <= dunnett_quantile(3, 8)).mean()
    assert share == pytest.approx(0.95, abs=0.002)


def test_without_blocks_the_error_is_that_of_a_one_way_analysis() -> None:
    found = fit(RUNS, blocked=False)
    assert found is not None
    rows = RUNS.to_numpy()
    between = 3 * ((rows.mean(1) - rows.mean()) ** 2).sum() / 3
    assert between / found.sd**2 == pytest.approx(stats.f_oneway(*rows).statistic)
    assert (found.freedom, found.blocked) == (8, False)
    table = differences(found, "a")
    half = stats.t.ppf(0.975, 8) * found.sd * math.sqrt(2 / 3)
    assert table.loc["c"].tolist() == pytest.approx([0.03, 0.03 - half, 0.03 + half])
    assert list(table.index) == ["b", "c", "d"]


def test_with_blocks_what_a_seed_does_to_all_is_taken_out() -> None:
    moved = RUNS + np.array([0.0, 0.2, -0.1])
    found = fit(moved, blocked=True)
    assert found is not None
    rest = moved.sub(moved.mean(axis=1), axis=0).sub(moved.mean() - moved.to_numpy().mean())
    assert found.freedom == 6
    assert found.sd == pytest.approx(math.sqrt((rest**2).sum().sum() / 6))
    assert found.means == pytest.approx(moved.mean(axis=1).to_numpy())
    assert found.variances[0, 1] == pytest.approx(2 / 3)
    # Two methods: the paired t test.
    two = fit(moved.loc[["a", "c"]], blocked=True)
    assert two is not None
    paired = stats.ttest_rel(moved.loc["c"], moved.loc["a"]).confidence_interval(0.95)
    assert differences(two, "a").loc["c", ["low", "high"]].tolist() == pytest.approx([*paired])


def test_a_relative_error_is_that_of_shares_of_errors() -> None:
    wild = pd.DataFrame({0: [0.90, 0.30], 1: [0.92, 0.50], 2: [0.91, 0.40]}, index=["a", "b"])
    found = fit(wild, blocked=False, relative=True)
    assert found is not None
    means, errors = np.array([0.91, 0.40]), np.array([0.09, 0.60])
    rest = (wild.to_numpy() - means[:, None]) / errors[:, None]
    assert found.means == pytest.approx(means)
    assert found.sd == pytest.approx(math.sqrt((rest**2).sum() / 4))
    assert found.variances[0, 1] == pytest.approx((errors**2).sum() / 3)
    # What is wrong six times as often no longer hides what the others differ by.
    third = pd.concat([wild, pd.DataFrame([[0.87, 0.88, 0.89]], index=["c"])])
    pooled, apart = (fit(third, blocked=False, relative=by) for by in (False, True))
    assert pooled is not None
    assert apart is not None
    assert against_the_best(pooled).loc["c", "high"] > 0
    tables = [against_the_best(one) for one in (pooled, apart)]
    wide, narrow = (table.loc["c", "distance"] - table.loc["c", "low"] for table in tables)
    assert narrow < wide / 2


def test_a_missing_run_is_reckoned_by_its_seed() -> None:
    moved = RUNS + np.array([0.0, 0.2, -0.1])
    moved.loc["d", 1] = np.nan  # its best seed: the mean of the others would be low
    found = fit(moved, blocked=True)
    assert found is not None
    assert found.freedom == 5
    others = moved.loc[["a", "b", "c"]]
    ease = others.to_numpy().mean() - others[[0, 2]].to_numpy().mean()
    assert found.means[3] == pytest.approx(moved.loc["d"].mean() + ease)
    assert found.variances[0, 3] > found.variances[0, 1]


def test_intervals_against_the_best_are_hsu_s() -> None:
    found = fit(RUNS, blocked=False)
    assert found is not None
    table = against_the_best(found)
    half = dunnett_quantile(3, 8) * found.sd * math.sqrt(2 / 3)
    means = RUNS.mean(axis=1)
    assert table["distance"].tolist() == pytest.approx(
        [means[one] - means[best] for one, best in zip("abcd", "ccbc", strict=True)]
    )
    for name in ("a", "b", "d"):
        distance = means[name] - means["c"]
        assert table.loc[name, "low"] == pytest.approx(min(0, distance - half))
        assert table.loc[name, "high"] == pytest.approx(max(0, distance + half))
    assert table.loc["d", "high"] == 0  # not the best
    assert table.loc["c", "low"] <= 0 < table.loc["c", "high"]
    sure = against_the_best(fit(RUNS.loc[["c", "d"]], blocked=False))  # type: ignore[arg-type]
    assert sure["low"].tolist() == pytest.approx([0.0, sure.loc["d", "distance"] - _half(RUNS)])
    assert sure.loc["c", "high"] > 0.1
    worse = against_the_best(found, lower_is_better=True)
    assert worse.loc["d", "low"] == 0
    assert worse.loc["c", "high"] == 0


def _half(runs: pd.DataFrame) -> float:
    found = fit(runs.loc[["c", "d"]], blocked=False)
    assert found is not None
    return dunnett_quantile(1, found.freedom) * found.sd * math.sqrt(2 / 3)


def test_the_intervals_hold_together_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    truth = np.array([0.0, 0.0, -0.5, -2.0])
    right, rounds = 0, 150
    best_other = [np.delete(truth, at).max() for at in range(4)]
    for _ in range(rounds):
        runs = pd.DataFrame(truth[:, None] + generator.normal(size=(4, 5)), index=list("abcd"))
        found = fit(runs, blocked=False)
        assert found is not None
        table = against_the_best(found)
        distances = truth - best_other
        inside = (table["low"] <= distances + 1e-12) & (distances <= table["high"] + 1e-12)
        right += bool(inside.all())
    assert right / rounds >= 0.92


def test_what_cannot_be_compared_gives_nothing() -> None:
    assert fit(RUNS[[0]], blocked=False) is None  # one seed
    assert fit(RUNS.loc[["a"]], blocked=False) is None  # one method
    apart = pd.DataFrame(
        {0: [1.0, np.nan], 1: [1.1, np.nan], 2: [np.nan, 1.0], 3: [np.nan, 1.2]}, index=["a", "b"]
    )
    assert fit(apart, blocked=True) is None
    found = fit(apart, blocked=False)
    assert found is not None
    assert found.freedom == 2
