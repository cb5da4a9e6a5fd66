"""A search: every method of a plan at the same number of settings, evaluated on `val` alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from recame.bench.plan.knobs import Knob, drawn
from recame.bench.plan.method import Method
from recame.config import Section
from recame.errors import ConfigError
from recame.metrics.registry import BY_NAME

#: Stands between a method's name and the number of its trial.
TRIAL = "@"


class Search(Section):
    """How many settings to try for each method, and which knobs to draw for all of them."""

    trials: Annotated[int, Field(ge=2, le=1000)] = Field(
        8, description="settings tried for each method: its own first, the others drawn"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the draws")
    metric: str = Field("balanced_accuracy", description="metric on `val` that chooses the best")
    knobs: dict[str, Knob] = Field({}, description="for every method, drawn alike for all")


def trial_name(method: str, number: int) -> str:
    """Name of a trial as a method of the plan.

    Examples:
        >>> trial_name("ride", 3)
        'ride@3'
    """
    return f"{method}{TRIAL}{number}"


def expand_trials(search: Search, methods: Mapping[str, Method]) -> dict[str, Method]:
    """Replace every method by its trials: number 0 unchanged, the others with drawn settings.

    The search's knobs have the same values for all methods, trial by trial. The draws of a method's
    own knobs depend on its name.

    Args:
        search: the search.
        methods: by name.

    Raises:
        ConfigError: a metric is unknown, two knobs set the same setting, or a setting is unknown.
    """
    if search.metric not in BY_NAME:
        raise ConfigError(
            f"search.metric={search.metric!r} is unknown: choose from {', '.join(BY_NAME)}."
        )
    number = search.trials - 1
    shared = drawn(search.knobs, number, search.seed, "")
    found: dict[str, Method] = {}
    for name, method in methods.items():
        _check_knobs(name, search.knobs, method.knobs)
        own = drawn(method.knobs, number, search.seed, name)
        trials: list[dict[str, Any]] = [{}, *({**a, **b} for a, b in zip(shared, own, strict=True))]
        for index, settings in enumerate(trials):
            found[trial_name(name, index)] = replace(
                method,
                name=trial_name(name, index),
                title=f"{method.title}, trial {index}",
                settings={**(method.settings or {}), **settings},
            )
    return found


def _check_knobs(name: str, shared: Mapping[str, Knob], own: Mapping[str, Knob]) -> None:
    told: dict[str, str] = {}
    for knob, what in (*shared.items(), *own.items()):
        for key in what.keys:
            if key in told:
                raise ConfigError(
                    f"Method {name}: its knobs {told[key]} and {knob} both set {key}, so one of "
                    "them would have no effect: remove one, in the plan's search.knobs or in the "
                    "method's file."
                )
            told[key] = knob
