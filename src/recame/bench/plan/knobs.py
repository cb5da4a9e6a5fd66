"""Knobs: the settings that a search varies, their ranges, and how trials draw from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from recame.config import Section


class Knob(Section):
    """A number or a choice that a search draws anew for each trial."""

    keys: tuple[str, ...] = Field(
        min_length=1, description="settings (section.key) that all get the drawn value"
    )
    low: float | None = Field(None, description="lower end of a range, together with `high`")
    high: float | None = None
    log: bool = Field(default=False, description="whether to draw by the logarithm")
    choices: Annotated[tuple[Any, ...], Field(min_length=2)] | None = Field(
        None, description="values instead of a range"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Knob:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError(
                "a knob has either a range (low and high) or choices: give one of the two"
            )
        if self.low is not None and self.high is not None:
            least = math.ulp(0.0) if self.log else -math.inf
            if not least <= self.low < self.high:
                above = ", above 0 with log" if self.log else ""
                raise ValueError(f"low={self.low} is not below high={self.high}{above}")
        return self

    def at(self, share: float) -> Any:
        """The value at a share of the range; share in [0, 1), value with three significant digits.

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
    """Draw settings for trials so that each knob's range is filled evenly.

    A Latin hypercube (McKay, Beckman and Conover, Technometrics 1979): a range is cut into as many
    parts as there are trials, and each trial draws from another part, in an order that is random
    for each knob. A knob's draws depend only on seed, owner and its name, so they do not change
    when other knobs are added or removed.

    Args:
        knobs: by name.
        number: of trials.
        seed: of the search.
        owner: a method's name; empty for knobs that all methods draw alike.

    Returns:
        `section.key` -> value, one mapping for each trial.
    """
    trials: list[dict[str, Any]] = [{} for _ in range(number)]
    for name, knob in knobs.items():
        words = f"{seed}/{owner}/{name}".encode()
        generator = np.random.default_rng(list(hashlib.sha256(words).digest()))
        shares = (generator.permutation(number) + generator.random(number)) / number
        for trial, share in zip(trials, shares.tolist(), strict=True):
            trial |= dict.fromkeys(knob.keys, knob.at(share))
    return trials
