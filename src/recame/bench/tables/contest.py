"""The results of a bench, with all that its tables need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.behaviour import Behaviour


@dataclass(frozen=True)
class Contest:
    """The results so far of a plan.

    Attributes:
        frame: of `recame.bench.tables.results.collect`, one row for each run and split.
        methods: by name, in the plan's order; runs of other methods are not shown.
        plan: the plan.
        costs: the content of `costs.json`; `{}` if nothing was measured.
        command: the command that runs the bench again.
        behaviour: recall in detail; empty if the runs' files are not kept.
    """

    frame: pd.DataFrame
    methods: Mapping[str, Method]
    plan: Plan
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""
    behaviour: Behaviour = field(default_factory=Behaviour)

    @property
    def reference(self) -> str:
        """The method that all others are compared with: the plan's `reference`, else its first."""
        return self.plan.reference or next(iter(self.methods))

    @property
    def shown(self) -> pd.DataFrame:
        """The rows of the plan's methods, data sets and seeds; the folder may hold others."""
        frame = self.frame
        return frame[
            frame["method"].isin(list(self.methods))
            & frame["data"].isin(list(self.plan.data))
            & frame["seed"].isin(self.plan.seeds)
        ]

    def again(self, root: str) -> list[str]:
        """A data set, and the sets of the plan with its images under other settings (`of`)."""
        return [name for name, entry in self.plan.data.items() if root in (name, entry.of)]

    def without_ablations(self) -> Contest:
        """The results without ablations; the reference stays, and all if nothing else is left."""
        kept = {
            name: method
            for name, method in self.methods.items()
            if method.group != "ablation" or name == self.plan.reference
        }
        return replace(self, methods=kept or self.methods)

    def cost_rows(self) -> Mapping[str, Mapping[str, Any]]:
        """`DATA/METHOD` -> fields of `recame.bench.costs.measure.Costs`."""
        return self.costs.get("rows", {})

    def is_first_split(self, data: str, split: str) -> bool:
        """Whether a split is the data set's first, whose table shows the costs."""
        return split == self.plan.data[data].splits[0]
