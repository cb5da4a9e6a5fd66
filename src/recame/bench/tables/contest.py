"""What a bench has found, with all that its tables need to tell it."""

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
        frame: of `recame.bench.tables.results.collect`, a row a run and split.
        methods: by name, in the plan's order; runs of others are not shown.
        plan: what was compared.
        costs: what `costs.json` holds; `{}` where nothing was measured.
        command: that runs the bench again.
        behaviour: of each run; empty where nothing is kept of it.
    """

    frame: pd.DataFrame
    methods: Mapping[str, Method]
    plan: Plan
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""
    behaviour: Behaviour = field(default_factory=Behaviour)

    @property
    def reference(self) -> str:
        """The method that differences are taken to: the plan's, else its first."""
        return self.plan.reference or next(iter(self.methods))

    @property
    def shown(self) -> pd.DataFrame:
        """The rows of the plan's methods, data sets and seeds: it may have had others before."""
        frame = self.frame
        return frame[
            frame["method"].isin(list(self.methods))
            & frame["data"].isin(list(self.plan.data))
            & frame["seed"].isin(self.plan.seeds)
        ]

    def again(self, root: str) -> list[str]:
        """A data set and those of the plan that are the same images under other settings."""
        return [name for name, entry in self.plan.data.items() if root in (name, entry.of)]

    def without_ablations(self) -> Contest:
        """The same without ablations but the reference; all where nothing else would be left."""
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
        """Whether a split is the one that a data set's costs stand beside."""
        return split == self.plan.data[data].splits[0]
