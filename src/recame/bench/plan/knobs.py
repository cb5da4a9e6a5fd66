"""What may be set otherwise of a method, within which range, and how trials draw from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from recame.config import Section


class Knob(Section):
    """One number, or one of some values, that a search draws anew for each trial."""

    keys: tuple[str, ...] = Field(
        min_length=1, description="section.key settings that all get the value"
    )
    low: float | None = Field(None, description="of a range, together with `high`")
    high: float | None = None
    log: bool = Field(default=False, description="whether the range is drawn by its logarithm")
    choices: Annotated[tuple[Any, ...], Field(min_length=2)] | None = Field(
        None, description="values instead of a range"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Knob:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError(
                "a knob is a range, low and high, or choices: give one of the two, and only one"
            )
        if self.low is not None and self.high is not None:
            least = math.ulp(0.0) if self.log else -math.inf
            if not least <= self.low < self.high:
                above = ", above 0 with log" if self.log else ""
                raise ValueError(f"low={self.low} is not below high={self.high}{above}")
        return self

    def at(self, share: float) -> Any:
        """The value at a share of the range, in [0, 1); numbers have three significant digits.

        Examples:
            >>> Knob(keys=("finetune.lr",), low=1e-4, high=1e-2, log=True).at(0.5)
            0.001
            >>> Knob(keys=("augment.mixup",), choices=(0, 0.4)).at(0.7)
            0.4
        """
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        assert self.low is not None
        assert self.high is not None
        if self.log:
            value = math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
        else:
            value = self.low + share * (self.high - self.low)
        return float(f"{value:.3g}")


def drawn(knobs: Mapping[str, Knob], number: int, seed: int, owner: str) -> list[dict[str, Any]]:
    """Settings for some trials, each knob's range filled evenly.

    A Latin hypercube (McKay, Beckman and Conover, Technometrics 1979): a range is cut into as many
    parts as there are trials, each trial draws from another part, and the parts' order is each
    knob's own. A knob's draws depend on seed, owner and its name alone, so that they stay where
    another knob comes or goes.

    Args:
        knobs: by name.
        number: of trials.
        seed: of the search.
        owner: a method's name, or empty for what all methods draw alike.

    Returns:
        `section.key` -> value, one for each trial.
    """
    trials: list[dict[str, Any]] = [{} for _ in range(number)]
    for name, knob in knobs.items():
        words = f"{seed}/{owner}/{name}".encode()
        generator = np.random.default_rng(list(hashlib.sha256(words).digest()))
        shares = (generator.permutation(number) + generator.random(number)) / number
        for trial, share in zip(trials, shares.tolist(), strict=True):
            trial |= dict.fromkeys(knob.keys, knob.at(share))
    return trials
