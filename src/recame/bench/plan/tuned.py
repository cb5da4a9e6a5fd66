"""The result of a search: a file that may be committed, and that another plan reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import Field, ValidationError

from recame.bench.plan.method import Method
from recame.bench.plan.search import Search, expand_trials, trial_name
from recame.config import Section
from recame.errors import ConfigError
from recame.files import write_text
from recame.metrics.registry import BY_NAME

TUNED_FILE = "tuned.yaml"
TUNED_SCHEMA = 1


class Trial(Section):
    """The settings of one trial and its scores."""

    settings: dict[str, Any] = Field({}, description="override the method's own; empty: none")
    scores: dict[str, float] = Field(description="data set -> mean over the seeds")


class TunedMethod(Section):
    """All trials of a method and the best of them."""

    sha256: str = Field(description="of the method before it was tuned")
    chosen: dict[str, int] = Field(description="data set -> number of its best trial")
    overall: int = Field(description="best mean over the data sets, for sets not searched on")
    trials: tuple[Trial, ...]


class Tuned(Section):
    """What a search found."""

    schema_version: int = TUNED_SCHEMA
    plan: str
    metric: str
    split: str
    trials: int
    search_seed: int
    seeds: tuple[int, ...]
    data: tuple[str, ...]
    settings: dict[str, Any] = Field({}, description="common settings of all methods")
    methods: dict[str, TunedMethod]

    def other_protocol(self, settings: Mapping[str, Any]) -> list[str]:
        """Names of common settings in which a plan differs; `run` and `evaluation` may differ."""
        return sorted(
            key
            for key in {*self.settings, *settings}
            if key.partition(".")[0] not in {"run", "evaluation"}
            and self.settings.get(key) != settings.get(key)
        )


def found_by_search(
    plan_name: str,
    search: Search,
    frame: pd.DataFrame,
    methods: Mapping[str, Method],
    data: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> Tuned:
    """Choose each method's best trial, for each data set and over all.

    The best trial has the highest mean over the seeds (the lowest if less is better). If trials
    tie, the first counts, so a method keeps its own settings unless a trial is better.

    Args:
        plan_name: of the search's plan.
        search: its section.
        frame: of `recame.bench.tables.results.collect`.
        methods: the plan's methods before they became trials.
        data: its sets.
        seeds: its seeds.
        settings: its common settings of all methods.

    Returns:
        The methods whose trials all have a result on each set and seed; others are left out.
    """
    sign = -1.0 if BY_NAME[search.metric].lower_is_better else 1.0
    rows = frame[frame["data"].isin(data) & frame["seed"].isin(seeds) & (frame["split"] == "val")]
    table = rows.pivot_table(index="method", columns=["data", "seed"], values=search.metric)
    wanted = pd.MultiIndex.from_product([data, sorted(seeds)])
    table = table.reindex(columns=wanted)
    found = {}
    for name, method in methods.items():
        trials = [trial_name(name, number) for number in range(search.trials)]
        scores = table.reindex(trials)
        if scores.isna().to_numpy().any():
            continue
        by_seed = scores.to_numpy(np.float64).reshape(len(trials), len(data), len(seeds))
        means = by_seed.mean(axis=2)
        drawn = _drawn_settings(search, method)
        found[name] = TunedMethod(
            sha256=method.sha256,
            chosen={one: int((sign * means[:, at]).argmax()) for at, one in enumerate(data)},
            overall=int((sign * means.mean(axis=1)).argmax()),
            trials=tuple(
                Trial(
                    settings=own,
                    scores={one: round(float(means[n, at]), 6) for at, one in enumerate(data)},
                )
                for n, own in enumerate(drawn)
            ),
        )
    return Tuned(
        plan=plan_name,
        metric=search.metric,
        split="val",
        trials=search.trials,
        search_seed=search.seed,
        seeds=tuple(seeds),
        data=tuple(data),
        settings=dict(settings),
        methods=found,
    )


def _drawn_settings(search: Search, method: Method) -> list[dict[str, Any]]:
    own = method.settings or {}
    return [
        {k: v for k, v in (trial.settings or {}).items() if k not in own or own[k] != v}
        for trial in expand_trials(search, {method.name: method}).values()
    ]


def write_tuned(path: Path, tuned: Tuned) -> None:
    """Write the result of a search as YAML; no half-written file is left behind."""
    head = (
        "# What `recame bench` found by a search: every trial of each method with its mean score.\n"
        "# A plan reads it with `tuned: FILE`.\n"
    )
    write_text(path, head + yaml.safe_dump(tuned.model_dump(mode="json"), sort_keys=False))


def read_tuned(path: Path) -> Tuned:
    """Read the result of a search.

    Raises:
        ConfigError: the file is missing or has an unknown entry.
    """
    advice = "Give the tuned.yaml that recame bench wrote for a plan with `search`."
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"tuned={path} cannot be read ({error}). {advice}") from error
    try:
        tuned = Tuned.model_validate(values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"tuned={path} is not a search's result ({told}). {advice}") from error
    if tuned.schema_version > TUNED_SCHEMA:
        raise ConfigError(
            f"tuned={path} has schema {tuned.schema_version}, this version reads up to "
            f"{TUNED_SCHEMA}: update recame."
        )
    for name, method in tuned.methods.items():
        if {*method.chosen.values(), method.overall} - {*range(len(method.trials))}:
            raise ConfigError(f"tuned={path}: {name} chose a trial that is not listed. {advice}")
    return tuned


def at_its_best(method: Method, tuned: Tuned, data: Mapping[str, str]) -> Method:
    """A method with the settings that a search chose: on each data set those of its best trial.

    A set that was not part of the search gets the trial with the best mean over those that were.

    Args:
        method: from its file and the plan.
        tuned: the result of the search.
        data: the plan's data sets -> the set whose images they have.

    Raises:
        ConfigError: the search did not try the method, or tried another one of that name.
    """
    name = method.name
    if name not in tuned.methods:
        raise ConfigError(
            f"Method {name} is not one of those that {tuned.plan} has tried "
            f"({', '.join(tuned.methods)}), and comparing it with tuned ones would be unfair: "
            "search for it too, or give it `tuned: false`, which the table then says."
        )
    found = tuned.methods[name]
    if found.sha256 != method.sha256:
        raise ConfigError(
            f"Method {name} is not what {tuned.plan} has tried: its settings or its code have "
            "changed since (SHA-256 "
            f"{found.sha256[:12]} then, {method.sha256[:12]} now). Search again."
        )
    numbers = {one: found.chosen.get(root, found.overall) for one, root in data.items()}
    told = "; ".join(
        f"{one}: {_told(found.trials[numbers[one]].settings)}"
        for one in dict.fromkeys(data.values())
    )
    how = f"tuned: the best of {tuned.trials} settings on `{tuned.split}` of {tuned.plan}"
    return replace(
        method,
        settings_by_data={one: found.trials[number].settings for one, number in numbers.items()},
        deviations=(*method.deviations, f"{how}; {told}"),
    )


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "its own"
