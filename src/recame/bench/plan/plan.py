"""The plan of a bench: methods x data sets x seeds, from one YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from recame.bench.plan.data_entry import DataEntry, resolved
from recame.bench.plan.factorial import Factorial, check_distinct, expand
from recame.bench.plan.method import PLAIN, Group, Method, check_taught, load_method
from recame.bench.plan.refusals import explained
from recame.bench.plan.search import Search, expand_trials
from recame.bench.plan.tuned import at_its_best, read_tuned
from recame.bench.tables.results import METRICS
from recame.config import Config, Section
from recame.errors import ConfigError
from recame.files import file_name, read_json


class MethodEntry(Section):
    """A method of a plan, or a variation of one."""

    method: str
    name: str | None = None
    title: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    group: Group | None = None
    tuned: bool = Field(
        default=True,
        description="in a plan with `tuned`: whether it gets the settings that the search chose",
    )


class Plan(Section):
    """A comparison under one protocol: methods share all settings that they do not set."""

    name: str
    title: str
    description: str = ""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    data: Annotated[dict[str, DataEntry], Field(min_length=1)]
    methods: Annotated[tuple[MethodEntry, ...], Field(min_length=1)]
    reference: str | None = Field(None, description="the method that others are compared with")
    settings: dict[str, Any] = Field({}, description="for every method; a method's own override")
    equal: Literal["epochs", "time"] = Field(
        "epochs",
        description="time: finetune.epochs are those of the method `pace`; every other method sees "
        "as many images as it can in the same time, at its measured speed",
    )
    pace: str | None = Field(None, description="for equal=time: the method that sets the time")
    factorial: Factorial | None = Field(
        None, description="parts that are on or off; each combination becomes a method"
    )
    search: Search | None = Field(
        None, description="try each method at several settings, evaluated on val"
    )
    tuned: Path | None = Field(
        None, description="a search's tuned.yaml with each method's settings, relative to the plan"
    )
    endpoints: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("balanced_accuracy", "tail_recall"),
        description="of a factorial plan: metrics whose effects are estimated, the primary first",
    )

    def methods_on(self, data: str, methods: Iterable[str]) -> list[str]:
        """Select those of the methods that run on a data set."""
        only = self.data[data].methods
        return [name for name in methods if only is None or name in only]

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [{"method": item} if isinstance(item, str) else item for item in value]
        return value


@dataclass(frozen=True)
class Job:
    """One run of the bench."""

    data: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Name of the job, and its folder."""
        return f"{self.data}/{self.method}/seed{self.seed}"


@dataclass(frozen=True)
class Bench:
    """A plan with its folder, methods and data.

    Attributes:
        path: the folder that holds runs, costs and tables.
        plan: the plan.
        methods: by name, in the plan's order.
        sources: data set and seed -> absolute path of the manifest or folder that `recame.train`
            reads; the same for all seeds unless the set is made anew for each.
    """

    path: Path
    plan: Plan
    methods: dict[str, Method]
    sources: dict[tuple[str, int], Path]

    @property
    def data(self) -> list[str]:
        """The available data sets, in the plan's order."""
        return list(dict.fromkeys(name for name, _ in self.sources))

    def jobs(self) -> list[Job]:
        """Every run, seed by seed, so that early results already compare all methods."""
        return [
            Job(data, method, seed)
            for seed in self.plan.seeds
            for data in self.data
            for method in self.plan.methods_on(data, self.methods)
        ]

    def run_dir(self, job: Job) -> Path:
        """Path of a job's run folder."""
        return self.path / "runs" / job.key

    def result_path(self, job: Job) -> Path:
        """Path of a job's result. It is written last: a job is done if it exists."""
        return self.run_dir(job) / "result.json"

    @property
    def costs_path(self) -> Path:
        """Path of the methods' costs, measured side by side on this machine."""
        return self.path / "costs.json"

    def costs(self) -> dict[str, Any]:
        """The content of `costs.json`; empty if nothing is measured.

        Raises:
            ConfigError: the file is damaged.
        """
        return read_costs(self.costs_path) if self.costs_path.exists() else {}

    def config(self, data: str, method: str, seed: int = 0, *, of_teacher: bool = False) -> Config:
        """Settings of a run, before equal time is applied.

        Those of the plain network, overridden by the plan's, then the method's, then the set's.

        Args:
            data: the data set.
            method: its name.
            seed: of the run.
            of_teacher: whether of the run of the method's teacher.

        Raises:
            ConfigError: the plan's, the method's or the set's settings are wrong.
        """
        plan, chosen = self.plan, self.methods[method].on(data)
        last = {**plan.data[data].settings, "run.seed": seed}
        if of_teacher:
            chosen = chosen.of_teacher()
            last["evaluation.weighting"] = "mean"  # a teacher answers batch by batch
        try:
            config = chosen.configure(Config().updated({**PLAIN, **plan.settings})).updated(last)
            if chosen.teacher is not None:
                check_taught(method, config, self.config(data, method, seed, of_teacher=True))
            return config
        except ConfigError as error:
            raise ConfigError(f"Plan {plan.name}, {method} on {data}: {error}") from error


def read_costs(path: Path) -> dict[str, Any]:
    """Read a `costs.json`: `machine`, and `rows` of `DATA/METHOD` -> measured costs.

    Raises:
        ConfigError: the file is damaged.
    """
    advice = (
        "It was edited or damaged. Put it back from a copy, or delete it: recame bench then "
        "measures again. Runs at equal time by it need the old figures, or a new "
        "--out."
    )
    costs = read_json(path, advice=advice, error=ConfigError)
    rows = costs.get("rows")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ConfigError(f"{path} holds no rows of measured costs. {advice}")
    return costs


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ConfigError: the file is missing, is not YAML, or has an unknown entry.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"No plan at {path}: check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({error}): correct the file.") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} is not a plan: it needs name, title, data and methods (docs/bench.md)."
        )
    values.setdefault("name", path.stem)
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"Plan {path}: {explained(error, Plan)}") from error
    if not all(name.replace("-", "_").isidentifier() for name in plan.data):
        raise ConfigError(
            f"Plan {path}: data sets are called {', '.join(plan.data)}; their names become "
            "folders, so use letters, digits, _ and -."
        )
    _check_folders(plan, "data set", plan.data)
    _check_endpoints(plan)
    return plan.model_copy(update={"data": resolved(plan.name, plan.data)})


def _check_endpoints(plan: Plan) -> None:
    """Refuse metrics that no result has, and endpoints of a plan that is not factorial."""
    if unknown := [name for name in plan.endpoints if name not in METRICS]:
        raise ConfigError(
            f"Plan {plan.name}: endpoints names {unknown[0]!r}, which no result has: choose "
            f"from {', '.join(METRICS)}."
        )
    if len(set(plan.endpoints)) < len(plan.endpoints):
        raise ConfigError(
            f"Plan {plan.name}: endpoints names a metric twice ({', '.join(plan.endpoints)}): name "
            "each once, the primary first."
        )
    if plan.factorial is None and "endpoints" in plan.model_fields_set:
        raise ConfigError(
            f"Plan {plan.name}: endpoints={list(plan.endpoints)} names the metrics of a factorial "
            "plan's effects, and this one has no `factorial`: leave it out."
        )


def _check_folders(plan: Plan, what: str, names: Iterable[str]) -> None:
    """Refuse names that cannot be folders on every system."""
    if refused := [name for name in names if file_name(name) != name or name.startswith(".")]:
        raise ConfigError(
            f"Plan {plan.name}: a {what} is called {refused[0]!r}, and its name becomes a folder. "
            "Some systems do not allow this name (/ or :, a dot at the end, a device name of "
            "Windows such as con) or hide it (a dot at the beginning): choose another name."
        )


def plan_methods(plan: Plan, folder: Path) -> dict[str, Method]:
    """The plan's methods and variations, then those of its factorial.

    Args:
        plan: the plan.
        folder: paths of method files are relative to it.

    Raises:
        ConfigError: a method is unknown, wrong, or named twice.
    """
    methods: dict[str, Method] = {}
    for entry in plan.methods:
        method = load_method(entry.method, folder)
        changes: dict[str, Any] = {
            key: word for key in ("name", "title", "group") if (word := getattr(entry, key))
        }
        if entry.settings:  # a variation needs a name of its own
            if entry.name is None:
                raise ConfigError(
                    f"Plan {plan.name}: a variation of {entry.method} has no name: give it one."
                )
            changes = {
                "title": entry.name.replace("_", " "),
                "group": "ablation",
                **changes,
                "settings": {**(method.settings or {}), **entry.settings},
                "deviations": (),
            }
        method = replace(method, **changes)
        if method.name in methods:  # their runs would have the same folders
            raise ConfigError(f"Two methods are called {method.name!r}: rename one.")
        methods[method.name] = method
    if plan.factorial is not None:
        _cross(plan, plan.factorial, methods)
    if plan.tuned is not None:
        methods = _tuned(plan, plan.tuned, folder, methods)
    if plan.search is not None:
        methods = _searched(plan, plan.search, methods)
    _check_folders(plan, "method", methods)
    _check_only(plan, methods)
    for role in ("reference", "pace"):
        name = getattr(plan, role)
        if name is not None and name not in methods:
            raise ConfigError(
                f"Plan {plan.name}: {role}={name!r} is not one of its methods: "
                f"{', '.join(methods)}."
            )
    taught = [name for name, method in methods.items() if method.teacher is not None]
    if plan.equal == "time" and taught:
        raise ConfigError(
            f"Plan {plan.name}: equal=time does not know what a teacher takes, and "
            f"{', '.join(taught)} has one: leave that method out, or compare at equal epochs."
        )
    if plan.equal == "time" and plan.pace is None:
        raise ConfigError(
            f"Plan {plan.name}: equal=time needs pace, the method whose time all others get."
        )
    return methods


def _check_only(plan: Plan, methods: Mapping[str, Method]) -> None:
    """Refuse `methods` of a data set that are unknown, or in a design that needs all methods."""
    for data, entry in plan.data.items():
        if entry.methods is None:
            continue
        if unknown := [name for name in entry.methods if name not in methods]:
            raise ConfigError(
                f"Plan {plan.name}: data set {data} names the method {unknown[0]!r}, which the "
                f"plan does not have. It has {', '.join(methods)}."
            )
        if whole := next((n for n in ("factorial", "search") if getattr(plan, n)), None):
            raise ConfigError(
                f"Plan {plan.name}: data set {data} is only for {', '.join(entry.methods)}, and "
                f"`{whole}` needs every method on every set: leave out `methods` there, or put the "
                "set in another plan."
            )


def _cross(plan: Plan, factorial: Factorial, methods: dict[str, Method]) -> None:
    """Add the methods of a factorial plan to those that the plan names.

    Raises:
        ConfigError: the factorial is wrong, a data set's settings override a factor, or one of the
            methods exists already.
    """
    where = f"Plan {plan.name}, factorial"
    if factorial.base not in methods:
        raise ConfigError(
            f"{where}: base={factorial.base!r} is not one of the plan's methods, "
            f"{', '.join(methods)}: name it among `methods` too."
        )
    for name, factor in factorial.factors.items():
        for data, entry in plan.data.items():
            if overruled := sorted(factor.settings.keys() & entry.settings.keys()):
                raise ConfigError(
                    f"{where}: the settings of data set {data} override those of every method and "
                    f"set {overruled[0]}, so the factor {name} would change nothing there: leave "
                    f"{overruled[0]} out of one of the two."
                )
    try:
        crossed = expand(factorial, methods[factorial.base])
        check_distinct(crossed, Config().updated({**PLAIN, **plan.settings}))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for name, method in crossed.items():
        if name in methods and name != factorial.base:
            raise ConfigError(
                f"{where}: it makes a method {name!r}, and the plan has one of that name: rename "
                "the factor, or the method."
            )
        methods[name] = method


def _tuned(plan: Plan, file: Path, folder: Path, methods: dict[str, Method]) -> dict[str, Method]:
    """The methods with the settings that a search has chosen.

    Raises:
        ConfigError: the file cannot be used, or a data set's settings override a chosen one.
    """
    try:
        tuned = read_tuned(folder / file)
        if other := tuned.other_protocol(plan.settings):
            raise ConfigError(
                f"{file} was found under other settings of all methods ({', '.join(other)}), and "
                "its best settings need not be the best here: search again with this plan's."
            )
        own = {entry.name or entry.method for entry in plan.methods if not entry.tuned}
        roots = {data: entry.of or data for data, entry in plan.data.items()}
        found = {
            name: method if name in own else at_its_best(method, tuned, roots)
            for name, method in methods.items()
        }
    except ConfigError as error:
        raise ConfigError(f"Plan {plan.name}: {error}") from error
    for name, method in found.items():
        for data, settings in method.settings_by_data.items():
            _check_not_overruled(plan, data, settings, f"what {file} has chosen for {name}")
    return found


def _searched(plan: Plan, search: Search, methods: dict[str, Method]) -> dict[str, Method]:
    """The trials of a search, which replace the methods.

    Raises:
        ConfigError: the search is wrong, or would be evaluated on other images than those of val.
    """
    where = f"Plan {plan.name}, search"
    clash = next((n for n in ("factorial", "tuned") if getattr(plan, n) is not None), None)
    if clash is not None or plan.equal == "time":
        raise ConfigError(
            f"{where}: it tries settings at equal epochs, and `{clash or 'equal: time'}` "
            "contradicts this: leave it out, and use it in a second plan that reads the result of "
            "the search."
        )
    for data, entry in plan.data.items():
        if entry.splits != ("val",):
            raise ConfigError(
                f"{where}: data set {data} is evaluated on {', '.join(entry.splits)}, and a search "
                "must not see the images of the final evaluation: give it `splits: [val]`."
            )
    try:
        trials = expand_trials(search, methods)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for name, method in methods.items():
        keys = {
            key for knob in (*search.knobs.values(), *method.knobs.values()) for key in knob.keys
        }
        for data in plan.data:
            _check_not_overruled(plan, data, keys, f"a knob of {name}")
    return trials


def _check_not_overruled(plan: Plan, data: str, keys: Iterable[str], what: str) -> None:
    """Refuse settings of a data set that override the settings that a search varies or chose."""
    if overruled := sorted({*keys} & plan.data[data].settings.keys()):
        raise ConfigError(
            f"Plan {plan.name}: the settings of data set {data} override those of every method and "
            f"set {overruled[0]}, so {what} would change nothing there: leave it out."
        )
