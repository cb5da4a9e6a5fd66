"""Effects of the parts of a factorial plan, with intervals, from its finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recame.bench.plan.factorial import Factorial
from recame.bench.tables.contest import Contest
from recame.contracts import FloatArray

#: Two-sided level of the intervals, of a single test and of a family of tests.
ALPHA = 0.05
#: Probability with which a detectable effect is found.
POWER = 0.8

#: Columns of a table of effects.
COLUMNS = (
    *("effect", "kind", "within", "aliased", "estimate", "se", "freedom"),
    *("low", "high", "p", "p_holm", "detectable"),
)


@dataclass(frozen=True)
class Effects:
    """The effects on one metric of one split of a data set.

    Attributes:
        data: the data set's name.
        split: the split of the numbers.
        metric: one of `recame.bench.tables.results.METRICS`.
        blocks: the complete seeds: each of their runs has a value.
        lacking: incomplete seeds of the plan, which are left out -> number of runs without a value.
        runs: runs in a block, the number of methods of the plan.
        table: one row for each effect, in the order of `Factorial.terms`: `effect` (`a`, `a:b`),
            `kind`, `within`, `aliased` (`b:c`), `estimate`, `se`, `freedom`, `low`, `high` (95 %),
            `p`, `p_holm` (of factors; else NaN), `detectable`. In the metric's own units. Without
            a complete block all are NaN; without a degree of freedom all but the estimates. Then
            the simple effects of a factor that has another nested in it, `a without n` and
            `a with n`.
    """

    data: str
    split: str
    metric: str
    blocks: tuple[int, ...]
    lacking: dict[int, int]
    runs: int
    table: pd.DataFrame

    @property
    def parts(self) -> pd.DataFrame:
        """The rows of factors, which are one family."""
        return self.table[self.table["kind"].isin(["factor", "nested"])]

    @property
    def simple(self) -> pd.DataFrame:
        """The rows of factors without and with what lies within them."""
        return self.table[self.table["kind"] == "simple"]

    @property
    def pairs(self) -> pd.DataFrame:
        """The rows of interactions."""
        return self.table[self.table["kind"] == "interaction"]


def all_effects(contest: Contest) -> list[Effects]:
    """Effects on each data set, split and endpoint that has a run, in the plan's order."""
    plan, frame = contest.plan, contest.shown
    if plan.factorial is None:
        return []
    return [
        effects(frame, plan.factorial, metric, data=data, split=split, seeds=plan.seeds)
        for data, entry in plan.data.items()
        for split in entry.splits
        if ((frame["data"] == data) & (frame["split"] == split)).any()
        for metric in plan.endpoints
    ]


def effects(
    frame: pd.DataFrame,
    factorial: Factorial,
    metric: str,
    *,
    data: str,
    split: str,
    seeds: Sequence[int],
) -> Effects:
    """The effect of each factor, each nested one and each pair of crossed ones on a metric.

    A block is a seed. Its runs share the seed of the training, and the images if the set is made
    anew for each seed. So blocks are a random factor, and every effect is a difference within
    blocks. The model is additive in blocks: least squares with an intercept for each block and a
    column for each effect (`Factorial.matrix`). The effect of a factor is the mean with it minus
    the mean without it, averaged over the settings of the other factors with equal weight. The
    effect of a nested factor is taken over the runs that have the factor it is nested in. A factor
    with another one nested in it also has two simple effects, without and with that one, because
    its mean effect may describe neither. The standard error comes from the residual mean square,
    which contains the variation of effects between blocks and the interactions of three and more
    factors. Only complete blocks count, so all effects rest on the same blocks.

    The factors' p-values of one metric are one family and are adjusted together (Holm, Scandinavian
    Journal of Statistics 1979); other p-values are not adjusted. The detectable effect is
    (t(0.975) + t(0.8)) standard errors (Bloom, Evaluation Review 1995).

    Args:
        frame: of `recame.bench.tables.results.collect`, one row for each run and split.
        factorial: of the plan.
        metric: a column of the frame.
        data: the data set.
        split: the split of the numbers.
        seeds: of the plan.
    """
    names = list(factorial.cells())
    own = frame[(frame["data"] == data) & (frame["split"] == split) & frame["method"].isin(names)]
    values = own.pivot_table(index="seed", columns="method", values=metric, aggfunc="mean")
    values = values.reindex(index=list(seeds), columns=names)
    lacking = values.isna().sum(axis=1)
    whole = values[lacking == 0]
    terms, simple = factorial.terms(), factorial.simple()
    table = pd.DataFrame(
        {
            "effect": [*(term.name for term in terms), *simple],
            "kind": [*(term.kind for term in terms), *["simple"] * len(simple)],
            "within": [*(term.within for term in terms), *[""] * len(simple)],
            "aliased": [*(":".join(term.aliased) for term in terms), *[""] * len(simple)],
        }
    )
    fitted, covariance, freedom = least_squares(whole.to_numpy(np.float64), factorial.matrix())
    sums = np.array([*np.eye(len(terms)), *simple.values()])
    error = np.sqrt(np.einsum("ei,ij,ej->e", sums, covariance, sums))
    table = table.assign(**_judged(sums @ fitted, error, freedom))
    table["p_holm"] = np.nan
    is_part = table["kind"].isin(["factor", "nested"]).to_numpy()
    table.loc[is_part, "p_holm"] = holm(table["p"].to_numpy(np.float64)[is_part])
    return Effects(
        data,
        split,
        metric,
        tuple(int(seed) for seed in whole.index),
        {s: n for s, n in zip(seeds, lacking.tolist(), strict=True) if n},
        len(names),
        table[[*COLUMNS]],
    )


def least_squares(values: FloatArray, terms: FloatArray) -> tuple[FloatArray, FloatArray, int]:
    """Least-squares coefficients and their covariance, with an intercept for each block.

    Args:
        values: (B, T): one row for each block, one column for each combination.
        terms: (T, P), of full rank together with a constant.

    Returns:
        (P,) coefficients, their (P, P) covariance from the residual mean square, and its degrees of
        freedom, B (T - 1) - P. The covariance is NaN without a degree of freedom; both are NaN
        without a block.
    """
    num_blocks, num_runs = values.shape
    if num_blocks == 0:
        number = terms.shape[1]
        return np.full(number, np.nan), np.full((number, number), np.nan), 0
    intercepts = np.kron(np.eye(num_blocks), np.ones((num_runs, 1)))
    design = np.hstack([intercepts, np.tile(terms, (num_blocks, 1))])
    target = values.ravel()
    coefficients, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    assert rank == design.shape[1], "the effects are not all estimable"
    freedom = len(target) - design.shape[1]
    left = target - design @ coefficients
    variance = left @ left / freedom if freedom else np.nan
    covariance = variance * np.linalg.inv(design.T @ design)
    return coefficients[num_blocks:], covariance[num_blocks:, num_blocks:], freedom


def _judged(estimate: FloatArray, error: FloatArray, freedom: int) -> dict[str, Any]:
    """Intervals, p-values and detectable effects of (P,) estimates."""
    from scipy.special import stdtr, stdtrit

    degrees = float(freedom) if freedom else np.nan
    half = stdtrit(degrees, 1 - ALPHA / 2) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(degrees, -np.abs(estimate / error))
    return {
        "estimate": estimate,
        "se": error,
        "freedom": freedom,
        "low": estimate - half,
        "high": estimate + half,
        "p": p,
        "detectable": detectable(error, freedom),
    }


def detectable(error: FloatArray, freedom: int) -> FloatArray:
    """The smallest true effects that a test finds with probability `POWER`.

    Args:
        error: (P,) standard errors.
        freedom: degrees of freedom of the residual mean square; with 0 the result is NaN.

    Returns:
        (t(1 - ALPHA / 2) + t(POWER)) errors, (P,); Bloom, Evaluation Review 1995.
    """
    from scipy.special import stdtrit

    degrees = float(freedom) if freedom else np.nan
    return np.asarray((stdtrit(degrees, 1 - ALPHA / 2) + stdtrit(degrees, POWER)) * error)


def holm(p: FloatArray) -> FloatArray:
    """Adjusted p-values of a family, step down (Holm, Scandinavian Journal of Statistics 1979).

    Args:
        p: (M,).

    Returns:
        (M,): for each p-value, the maximum over all ranks j up to its own of (M - j + 1) times the
        j-th smallest; at most 1.

    Examples:
        >>> holm(np.array([0.02, 0.01, 0.04])).round(2).tolist()
        [0.04, 0.03, 0.04]
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def effects_table(found: Sequence[Effects]) -> pd.DataFrame:
    """All effects as one table, the content of `effects.csv`.

    Returns:
        One row for each data set, split, metric and effect: `data, split, metric`, the `COLUMNS`,
        `blocks` (number of complete ones) and `left_out` (number of incomplete seeds).
    """
    order = ["data", "split", "metric", *COLUMNS, "blocks", "left_out"]
    tables = [
        one.table.assign(
            data=one.data,
            split=one.split,
            metric=one.metric,
            blocks=len(one.blocks),
            left_out=len(one.lacking),
        )[order]
        for one in found
    ]
    return pd.concat(tables, ignore_index=True)
