"""Mean ranks of methods over blocks, and which of them differ significantly.

Source: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recame.bench.tables.contest import Contest
from recame.metrics.registry import LOWER_IS_BETTER

#: With fewer blocks or methods, ranks show next to nothing.
LEAST_BLOCKS, LEAST_METHODS = 5, 3

_ALPHA = 0.05


@dataclass(frozen=True)
class Ranks:
    """Methods by their mean rank.

    Attributes:
        metric: the metric that ranks them.
        mean: method -> mean rank, the best first. 1 is first on every block; ties share a rank.
        blocks: number of blocks.
        p: of Friedman's test of equal methods.
        distance: Nemenyi's critical difference of two mean ranks, 5 % for all pairs together.
    """

    metric: str
    mean: pd.Series[float]
    blocks: int
    p: float
    distance: float

    def cliques(self) -> list[tuple[int, int]]:
        """First and last place of each longest series of methods without significant difference."""
        values = self.mean.to_numpy()
        last = np.searchsorted(values, values + self.distance, side="left") - 1
        found = [(at, int(end)) for at, end in enumerate(last) if end > at]
        return [one for n, one in enumerate(found) if n == 0 or one[1] > found[n - 1][1]]


def mean_ranks(contest: Contest, metric: str = "balanced_accuracy") -> Ranks | None:
    """Rank all methods on every block.

    If each seed has images of its own, a block is a seed. If all seeds see the same images, a block
    is the data set, and the runs are averaged: they do not show how methods do on other images.
    Sets that repeat another one (`of`) and blocks that lack a method are left out.

    Args:
        contest: the results; the first split of each set counts.
        metric: the metric that ranks.

    Returns:
        None with fewer than five blocks or three methods, or for a search or a factorial plan.
    """
    plan, frame = contest.plan, contest.shown
    if plan.factorial is not None or plan.search is not None or metric not in frame:
        return None
    tables = []
    for name, entry in plan.data.items():
        own = frame[(frame["data"] == name) & (frame["split"] == entry.splits[0])]
        if entry.of is not None or own.empty:
            continue
        anew = len(set(own.groupby("seed")["fingerprint"].first())) > 1
        block = own["seed"].astype(str) if anew else pd.Series("all", own.index)
        tables.append(
            own.assign(block=name + "/" + block).pivot_table(
                index="block", columns="method", values=metric
            )
        )
    if not tables:
        return None
    names = [name for name in contest.methods if name in set(frame["method"])]
    values = pd.concat(tables).reindex(columns=names).dropna()
    if len(values) < LEAST_BLOCKS or len(names) < LEAST_METHODS:
        return None
    places = values.rank(axis=1, ascending=metric in LOWER_IS_BETTER)
    from scipy.stats import friedmanchisquare

    p = float(friedmanchisquare(*values.to_numpy().T).pvalue)
    return Ranks(
        metric,
        places.mean().sort_values(kind="stable"),
        len(values),
        p,
        critical_difference(len(names), len(values)),
    )


def critical_difference(methods: int, blocks: int) -> float:
    """Nemenyi's critical difference: mean ranks that differ by less do not differ significantly.

    Args:
        methods: number of ranked methods.
        blocks: number of blocks.

    Examples:
        >>> round(critical_difference(4, 14), 2)  # Demsar 2006, section 3.2.2: 1.25
        1.25
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - _ALPHA, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))
