"""Which methods may be the best: multiple comparisons with the best, with one pooled error.

Source: Hsu, Constrained simultaneous confidence intervals for multiple comparisons with the best,
Annals of Statistics 1984; for unequal errors, Hsu, Multiple Comparisons, 1996, chapter 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from recame.contracts import FloatArray

#: Simultaneous confidence of all intervals of a table.
CONFIDENCE = 0.95

#: Least share of errors: a method without errors still varies a little.
_LEAST_ERRORS = 0.005

_NODES = 64


@dataclass(frozen=True)
class Fit:
    """Means of methods on one data set, and the pooled error of their differences.

    Attributes:
        methods: M names; those with two runs or more.
        means: (M,); where seeds are blocks, adjusted as if all methods had the same seeds.
        variances: (M, M) variances of the differences of means, in units of `sd` squared.
        sd: pooled standard deviation of one run; if relative, as a factor of a method's share of
            errors.
        freedom: degrees of freedom of `sd`.
        blocked: whether the mean effect of each seed was removed.
    """

    methods: tuple[str, ...]
    means: FloatArray
    variances: FloatArray
    sd: float
    freedom: int
    blocked: bool


def fit(table: pd.DataFrame, *, blocked: bool, relative: bool = False) -> Fit | None:
    """Estimate means and error by least squares.

    If the seeds see different images, some seeds are easier than others for all methods, and each
    seed gets a term of the model. If they see the same images, pairing removes nothing and costs
    degrees of freedom: the error is then the pooled spread within the methods.

    Args:
        table: one row for each method, one column for each seed; NaN without a run.
        blocked: whether seeds are terms.
        relative: whether a method's deviation is modelled as its share of errors (1 - mean) times
            one common factor. A method that is wrong five times as often varies about five times
            as much; pooled without this scaling, it would hide differences of the good methods.

    Returns:
        None with fewer than two methods that have two runs, or if the methods have too few seeds
        in common to be compared.
    """
    table = table[table.count(axis=1) > 1]
    if len(table) < 2:
        return None
    cells = table.to_numpy(np.float64)
    row, column = np.nonzero(~np.isnan(cells))
    values, terms = cells[row, column], [np.eye(len(table))[row]]
    if blocked:
        shown = np.unique(column)
        seeds = np.eye(table.shape[1])[column][:, shown[1:]]
        terms.append(seeds - 1 / len(shown))  # so that means are those of an average seed
    scale = np.ones(len(table))
    if relative:
        scale = np.maximum(1 - np.nanmean(cells, axis=1), _LEAST_ERRORS)
    design, values = np.hstack(terms) / scale[row, None], values / scale[row]
    freedom = len(values) - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    inverse = np.linalg.inv(design.T @ design)
    estimates = inverse @ (design.T @ values)
    squares = float(((values - design @ estimates) ** 2).sum())
    number = len(table)
    own = inverse[:number, :number]
    spread = np.diag(own)
    return Fit(
        tuple(map(str, table.index)),
        estimates[:number],
        spread[:, None] + spread[None] - 2 * own,
        math.sqrt(squares / freedom),
        freedom,
        blocked,
    )


@cache
def dunnett_quantile(others: int, freedom: int, confidence: float = CONFIDENCE) -> float:
    """One-sided quantile of the largest of several t statistics with a common control.

    Dunnett, JASA 1955, with correlations of 1/2: the x with P(max T <= x) = `confidence`.

    Args:
        others: number of statistics.
        freedom: degrees of freedom of their common variance.
        confidence: in (0.5, 1).

    Examples:
        >>> round(dunnett_quantile(1, 10), 2), round(dunnett_quantile(4, 20), 2)
        (1.81, 2.3)
    """
    from scipy.optimize import brentq
    from scipy.special import chdtri, ndtr

    normal, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    # Ratio of estimated to true deviation, at equally likely points.
    shares = (np.arange(4 * _NODES) + 0.5) / (4 * _NODES)
    scale = np.sqrt(chdtri(freedom, shares) / freedom)

    def lacking(x: float) -> float:
        below = ndtr(normal[:, None] + math.sqrt(2) * x * scale[None])
        return float((weights @ below**others).mean()) - confidence

    return float(brentq(lacking, 0.0, 100.0, xtol=1e-6))


def against_the_best(found: Fit, *, lower_is_better: bool = False) -> pd.DataFrame:
    """Each method's distance to the best of the others, with constrained intervals.

    The intervals are simultaneous: with 95 % confidence all of them hold together. An interval
    with upper end 0 says that the method is not the best; one with lower end 0 that it is.

    Args:
        found: means and error.
        lower_is_better: the lowest mean is the best, and distances are those of negated means.

    Returns:
        Indexed by method: `distance` (above 0 only for the first), `low`, `high`.
    """
    values = found.means * (-1 if lower_is_better else 1)
    number = len(values)
    half = dunnett_quantile(number - 1, found.freedom) * found.sd * np.sqrt(found.variances)
    differences = values[:, None] - values[None]
    others = ~np.eye(number, dtype=np.bool_)
    distance = np.where(others, differences, np.inf).min(1)
    high = np.maximum(0.0, np.where(others, differences + half, np.inf).min(1))
    rivals = (high > 0)[None] & others
    low = np.where(rivals, differences - half, np.inf).min(1)
    low = np.where(rivals.any(1), np.minimum(0.0, low), 0.0)
    columns = {"distance": distance, "low": low, "high": high}
    return pd.DataFrame(columns, index=list(found.methods))


def differences(found: Fit, reference: str) -> pd.DataFrame:
    """Each method's difference to the reference, with the t interval from the pooled error.

    Args:
        found: means and error.
        reference: one of its methods.

    Returns:
        Indexed by method, without the reference: `difference`, `low`, `high`.
    """
    from scipy.special import stdtrit

    at = found.methods.index(reference)
    value = found.means - found.means[at]
    quantile = float(stdtrit(found.freedom, (1 + CONFIDENCE) / 2))
    half = quantile * found.sd * np.sqrt(found.variances[at])
    columns = {"difference": value, "low": value - half, "high": value + half}
    return pd.DataFrame(columns, index=list(found.methods)).drop(index=reference)
