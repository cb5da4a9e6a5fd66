"""A factorial plan: a method with each of some parts on or off, in all combinations or in half."""

from __future__ import annotations

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

#: Between the parts' names in a method's name.
JOINER = "+"

#: Characters of a method's name: it is a folder's, and part of a lock's.
_LONGEST = 120

#: Half of so few combinations cannot tell one factor from another.
_LEAST_IN_HALF = 3


class Factor(Section):
    """A part that a method has or lacks."""

    settings: dict[str, Any] = Field(
        min_length=1, description="section.key -> value, over the base's where the factor is on"
    )
    title: str = ""
    within: str | None = Field(
        None, description="another factor; this one exists only where that one is on"
    )


@dataclass(frozen=True)
class Term:
    """An effect that the runs of a factorial plan can tell.

    Attributes:
        factors: one, or the two that interact.
        kind: `factor`: of a crossed one; `nested`: of one within another; `interaction`.
        within: the factor that is on in all the runs which tell a nested one; else empty.
        aliased: factors whose common interaction these runs cannot tell from this effect.
    """

    factors: tuple[str, ...]
    kind: Literal["factor", "nested", "interaction"]
    within: str = ""
    aliased: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As files name it: `a`, `a:b`."""
        return ":".join(self.factors)


class Factorial(Section):
    """Which parts are on or off, upon which method.

    Crossed factors are those without `within`. All their combinations are run, or half of them:
    the fraction whose defining relation is I = the product of all crossed factors, on being +1 and
    off -1 (Box, Hunter and Hunter, Statistics for Experimenters, 2005, chapter 6). So the
    combination of all is always in it, and that of none where the crossed factors are even in
    number. A nested factor is off and on in each combination that has the one it lies within.
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
        """Names of the factors that are on or off whatever the others are."""
        return tuple(name for name, factor in self.factors.items() if factor.within is None)

    @property
    def resolution(self) -> int | None:
        """Of the half fraction: factors in its defining relation; None where all is run."""
        return None if self.fraction == "1" else len(self.crossed)

    def cells(self) -> dict[str, tuple[str, ...]]:
        """The combinations that are run: name of the method -> the factors that are on, in order.

        In the order of Yates: the first factor changes fastest.
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
        """The effects that can be told: every factor's, then the interactions of crossed pairs.

        In a half fraction an effect is aliased with the interaction of all other crossed factors.
        A pair whose alias is a single factor is left out, and of two pairs that are each other's
        alias the later one.
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
        """The effects' columns, so that a least-squares coefficient is the effect.

        A factor is 1/2 where it is on and -1/2 where it is off, a nested one 0 where it does not
        exist; an interaction is the product of its factors, so that its coefficient is by how much
        more the one brings where the other is on than where that is off.

        Returns:
            (T, P): a row a method of `cells`, a column an effect of `terms`.
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
        """What a factor brings without and with each that lies within it.

        Its main effect is the mean of both, which may describe neither.

        Returns:
            `a without n` and `a with n` -> (P,) weights of the effects of `terms`, whose sum it is.
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
        """A factor as tables print it."""
        return self.factors[name].title or name.replace("_", " ")


def expand(factorial: Factorial, base: Method) -> dict[str, Method]:
    """The methods of a factorial plan, by name; the base is the one without any factor.

    Each is the base with the settings of the factors that are on laid over it, in their order.

    Args:
        factorial: of the plan.
        base: the method that it names.

    Raises:
        ConfigError: a factor's name cannot be a folder's, lies within what is no crossed factor,
            or two contradict each other; or half of the combinations tell nothing.
    """
    _check_names(factorial)
    _check_settings(factorial)
    num_crossed = len(factorial.crossed)
    if factorial.fraction == "1/2" and num_crossed < _LEAST_IN_HALF:
        raise ConfigError(
            f"fraction=1/2 of {num_crossed} crossed factors: their effects could not be told from "
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
                "letters, digits, _ and -, and say the rest in its title."
            )
        if factor.within is not None and factor.within not in crossed:
            raise ConfigError(
                f"{name} lies within {factor.within!r}, which is no crossed factor, so there are "
                "no runs in which it could be on or off: name a factor that has no `within` itself."
            )
    if len(longest := max(factorial.cells(), key=len)) > _LONGEST:
        raise ConfigError(
            f"a method would be called {longest!r}, {len(longest)} characters, and its name "
            f"becomes a folder's: give the factors shorter names, {_LONGEST} together."
        )


def _check_settings(factorial: Factorial) -> None:
    """Refuse two factors that would set the same key to different values."""
    for (one, first), (other, second) in combinations(factorial.factors.items(), 2):
        for key in first.settings.keys() & second.settings.keys():
            if first.settings[key] != second.settings[key]:
                raise ConfigError(
                    f"{one} sets {key}={first.settings[key]!r} and {other} sets "
                    f"{key}={second.settings[key]!r}: where both are on, the one would undo the "
                    "other, and neither's effect would be told. Let one factor set it, or make "
                    "them one."
                )


def check_distinct(methods: Mapping[str, Method], protocol: Config) -> None:
    """Refuse combinations that are the same run under two names.

    Args:
        methods: of `expand`.
        protocol: the settings that they are laid over.

    Raises:
        ConfigError: a factor changes nothing, or a method's settings are wrong.
    """
    seen: dict[str, str] = {}
    for name, method in methods.items():
        settings = method.configure(protocol).model_dump_json()
        if (other := seen.setdefault(settings, name)) != name:
            raise ConfigError(
                f"{other} and {name} have the same settings, so a factor changes nothing there and "
                "its effect would be 0 by construction: correct its settings, or leave it out."
            )
