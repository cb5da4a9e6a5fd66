"""A factorial plan: a method with parts on or off, in all combinations or in half of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from recame.bench.plan.method import Method
from recame.config import Config, Section
from recame.contracts import FloatArray
from recame.errors import ConfigError

#: Joins the parts' names to a method's name.
JOINER = "+"

#: Most characters of a method's name, which names a folder and a lock file.
_LONGEST = 120

#: Least number of crossed factors for a half: with fewer, main effects are aliased with each other.
_LEAST_IN_HALF = 3


class Factor(Section):
    """A part that a method has or lacks."""

    settings: dict[str, Any] = Field(
        min_length=1, description="section.key -> value; override the base's if the factor is on"
    )
    title: str = ""
    within: str | None = Field(
        None, description="another factor; this one exists only if that one is on"
    )


@dataclass(frozen=True)
class Term:
    """An effect that the runs of a factorial plan can estimate.

    Attributes:
        factors: one, or the two that interact.
        kind: `factor`: effect of a crossed factor; `nested`: of a factor within another;
            `interaction`.
        within: for a nested factor, the factor that it is nested in; else empty.
        aliased: factors whose common interaction is aliased with this effect.
    """

    factors: tuple[str, ...]
    kind: Literal["factor", "nested", "interaction"]
    within: str = ""
    aliased: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in files: `a`, `a:b`."""
        return ":".join(self.factors)


class Factorial(Section):
    """The parts that are on or off, and the method that they are added to.

    Crossed factors are those without `within`. All their combinations are run, or half of them:
    the fraction whose defining relation is I = the product of all crossed factors, with on = +1 and
    off = -1 (Box, Hunter and Hunter, Statistics for Experimenters, 2005, chapter 6). The half
    always has the combination with all factors on. It has the one with all factors off if the
    number of crossed factors is even. A nested factor is off and on in each combination that has
    the factor it is nested in.
    """

    base: str = Field(description="name of the plan's method in which all factors are off")
    factors: dict[str, Factor] = Field(min_length=1, max_length=10)
    fraction: Literal["1", "1/2"] = Field("1", description="of the crossed combinations")

    @field_validator("fraction", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return "1/2" if value == 0.5 else "1" if value == 1 else value

    @property
    def crossed(self) -> tuple[str, ...]:
        """Names of the factors that are on or off regardless of the others."""
        return tuple(name for name, factor in self.factors.items() if factor.within is None)

    @property
    def resolution(self) -> int | None:
        """Resolution of the half: factors in its defining relation; None if all is run."""
        return None if self.fraction == "1" else len(self.crossed)

    def cells(self) -> dict[str, tuple[str, ...]]:
        """The combinations that are run: name of the method -> the factors that are on, in order.

        They stand in Yates's order: the first factor changes fastest.
        """
        names, crossed = tuple(self.factors), set(self.crossed)
        found: dict[str, tuple[str, ...]] = {}
        for bits in product((False, True), repeat=len(names)):
            on = tuple(n for n, bit in zip(names, reversed(bits), strict=True) if bit)
            lacking = len(crossed) - len(crossed & {*on})
            if any(self.factors[name].within not in (None, *on) for name in on):
                continue
            if self.fraction == "1" or lacking % 2 == 0:
                found[JOINER.join(on) or self.base] = on
        return found

    def terms(self) -> tuple[Term, ...]:
        """The effects that can be estimated: of every factor, then of crossed pairs.

        In a half, an effect is aliased with the interaction of all other crossed factors. A pair
        whose alias is a single factor is left out. If two pairs are aliased with each other, the
        later one is left out.
        """
        crossed, halved = self.crossed, self.fraction != "1"

        def alias(*own: str) -> tuple[str, ...]:
            return tuple(name for name in crossed if name not in own) if halved else ()

        found = [
            Term((name,), "factor", aliased=alias(name))
            if factor.within is None
            else Term((name,), "nested", factor.within)
            for name, factor in self.factors.items()
        ]
        told: set[tuple[str, ...]] = set()
        for pair in combinations(crossed, 2):
            other = alias(*pair)
            if len(other) == 1 or (len(other) == 2 and other in told):
                continue
            told.add(pair)
            found.append(Term(pair, "interaction", aliased=other))
        return tuple(found)

    def matrix(self) -> FloatArray:
        """The design matrix; each least-squares coefficient is an effect.

        A factor is 1/2 where it is on and -1/2 where it is off; a nested one is 0 where it does not
        exist. An interaction is the product of its factors: its coefficient is how much larger the
        effect of the one is with the other on than with it off.

        Returns:
            (T, P): one row for each method of `cells`, one column for each effect of `terms`.
        """
        signs = {
            name: np.array(
                [
                    0.0 if factor.within not in (None, *on) else 0.5 if name in on else -0.5
                    for on in self.cells().values()
                ]
            )
            for name, factor in self.factors.items()
        }
        columns = [np.prod([signs[n] for n in term.factors], axis=0) for term in self.terms()]
        return np.column_stack(columns)

    def simple(self) -> dict[str, FloatArray]:
        """Simple effects of a factor, without and with each factor nested in it.

        The main effect is the mean of both and may describe neither.

        Returns:
            `a without n` and `a with n` -> (P,) weights. The simple effect is the weighted sum of
            the effects of `terms`.
        """
        names = [term.name for term in self.terms()]
        return {
            f"{factor.within} {word} {name}": np.array(
                [1.0 if n == factor.within else half if n == name else 0.0 for n in names]
            )
            for name, factor in self.factors.items()
            if factor.within is not None
            for word, half in (("without", -0.5), ("with", 0.5))
        }

    def factor_title(self, name: str) -> str:
        """Title of a factor in tables."""
        return self.factors[name].title or name.replace("_", " ")


def expand(factorial: Factorial, base: Method) -> dict[str, Method]:
    """The methods of a factorial plan, by name; the base is the one without any factor.

    Each has the settings of the base, overridden by those of its factors in their order.

    Args:
        factorial: of the plan.
        base: the method that it names.

    Raises:
        ConfigError: a factor's name cannot be part of a folder's name, a factor lies within one
            that is not crossed, two factors contradict each other, or there are too few crossed
            factors for half of the combinations.
    """
    _check_names(factorial)
    _check_settings(factorial)
    num_crossed = len(factorial.crossed)
    if factorial.fraction == "1/2" and num_crossed < _LEAST_IN_HALF:
        raise ConfigError(
            f"fraction=1/2 of {num_crossed} crossed factors: their effects would be aliased with "
            f"each other. Leave fraction out, or cross {_LEAST_IN_HALF} factors or more."
        )
    found: dict[str, Method] = {}
    for name, on in factorial.cells().items():
        settings = dict(base.settings or {})
        for part in on:
            settings |= factorial.factors[part].settings
        found[name] = (
            replace(
                base,
                name=name,
                title=" + ".join(map(factorial.factor_title, on)),
                group="ablation",
                settings=settings,
                deviations=(),
            )
            if on
            else base
        )
    return found


def _check_names(factorial: Factorial) -> None:
    crossed = factorial.crossed
    for name, factor in factorial.factors.items():
        if not name.replace("-", "_").isidentifier():
            raise ConfigError(
                f"a factor is called {name!r}, and its name becomes part of folders' names: use "
                "letters, digits, _ and -; its title may have any characters."
            )
        if factor.within is not None and factor.within not in crossed:
            raise ConfigError(
                f"{name} lies within {factor.within!r}, which is not a crossed factor, so there "
                "are no runs in which it could be on or off: name a factor without `within`."
            )
    if len(longest := max(factorial.cells(), key=len)) > _LONGEST:
        raise ConfigError(
            f"a method would be called {longest!r}, {len(longest)} characters, which is too long "
            f"for a folder: give the factors shorter names, {_LONGEST} characters together."
        )


def _check_settings(factorial: Factorial) -> None:
    """Refuse two factors that set the same key to different values."""
    for (one, first), (other, second) in combinations(factorial.factors.items(), 2):
        for key in first.settings.keys() & second.settings.keys():
            if first.settings[key] != second.settings[key]:
                raise ConfigError(
                    f"{one} sets {key}={first.settings[key]!r} and {other} sets "
                    f"{key}={second.settings[key]!r}: where both are on, one overrides the other, "
                    "so the effect of neither can be estimated. Let only one factor set it, or "
                    "make one factor of the two."
                )


def check_distinct(methods: Mapping[str, Method], protocol: Config) -> None:
    """Refuse combinations that are the same run under two names.

    Args:
        methods: of `expand`.
        protocol: the settings that theirs override.

    Raises:
        ConfigError: a factor changes nothing, or a method's settings are wrong.
    """
    seen: dict[str, str] = {}
    for name, method in methods.items():
        config = method.configure(protocol)
        values = config.model_dump(mode="json")
        if config.objective.loss is not None or method.make_loss() is not None:
            # A custom loss reads none of the others.
            values["objective"] = {n: values["objective"][n] for n in ("loss", "posthoc_tau")}
        settings = json.dumps(values)
        if (other := seen.setdefault(settings, name)) != name:
            raise ConfigError(
                f"{other} and {name} have the same settings, so a factor changes nothing there and "
                "its effect would always be 0: correct its settings, or leave it out."
            )
