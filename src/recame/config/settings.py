"""Every setting of a run, one section for each stage. Imports no torch.

`recame.training.planner` decides each `"auto"` from the data and the device before training; the
run's saved `config.yaml` holds what was decided.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from recame.config.allowed import allowed, choices
from recame.config.data import AugmentConfig, DataConfig
from recame.config.distill import DistillConfig
from recame.config.model import ModelConfig
from recame.config.objective import ObjectiveConfig
from recame.config.phases import FinetuneConfig, ProbeConfig, RetrainConfig
from recame.config.renamed import by_present_names, present_name
from recame.config.run import EvaluationConfig, RunConfig
from recame.config.section import Section
from recame.errors import ConfigError, did_you_mean

CONFIG_SCHEMA = 1

#: How an error shows a value: short values whole, long ones cut.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20
_SHORT.maxlevel = 2


class Config(Section):
    """Every setting of a run.

    Raises:
        ConfigError: a setting is unknown or ill-typed; the error names it and what is allowed.
    """

    schema_version: int = CONFIG_SCHEMA
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    probe: ProbeConfig = ProbeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    retrain: RetrainConfig = RetrainConfig()
    distill: DistillConfig = DistillConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()

    def __init__(self, **sections: Any) -> None:
        """Check the sections, each a dictionary or an object of its class."""
        try:
            super().__init__(**sections)
        except ValidationError as error:
            raise ConfigError(f"The settings: {_explained(error)}") from error

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.schema_version > CONFIG_SCHEMA:
            raise ValueError(
                f"the settings have schema {self.schema_version}, but this version reads up to "
                f"{CONFIG_SCHEMA}: update recame"
            )
        if not (self.probe.enabled or self.finetune.enabled):
            raise ValueError(
                "probe.enabled and finetune.enabled are both false, so there is nothing to train: "
                "set one of them to true"
            )
        if self.run.keep == "joined" and not self.judges_joined:
            raise ValueError(
                "run.keep=joined makes an ensemble of an expert of each phase, but one phase is "
                "switched off: enable probe and finetune, or choose another run.keep"
            )
        taus, experts = self.objective.tau, self.model.num_experts
        if isinstance(taus, tuple) and experts != "auto" and len(taus) != experts:
            raise ValueError(
                f"objective.tau has {len(taus)} values for model.num_experts={experts}: "
                "give one value, or one value for each expert"
            )
        return self

    @property
    def judges_joined(self) -> bool:
        """Whether the ensemble of an expert of each phase is a candidate to keep."""
        return (
            self.run.keep in {"best_on_val", "joined"}
            and self.probe.enabled
            and self.finetune.enabled
        )

    @property
    def learns_heads_alone(self) -> bool:
        """Whether a run ends with its probe."""
        return self.probe.enabled and not (self.finetune.enabled or self.retrain.enabled)

    def updated(self, changes: dict[str, Any]) -> Config:
        """A copy with `section.key` settings changed, validated as a whole.

        Args:
            changes: dotted names to values.

        Raises:
            ConfigError: an unknown name or an ill-typed value.
        """
        values = self.model_dump()
        for asked, value in changes.items():
            dotted = present_name(asked, "the settings")
            if dotted is None:
                continue
            section, _, key = dotted.partition(".")
            if not key or not isinstance(values.get(section), dict):
                raise ConfigError(
                    f"Unknown setting {dotted!r}: write section.key, with a section of "
                    f"{', '.join(k for k, v in values.items() if isinstance(v, dict))}."
                )
            values[section][key] = value
        return parse_config(values)


def parse_config(
    values: object, source: str = "the settings", *, warn_of_old_names: bool = True
) -> Config:
    """Validate nested settings.

    Args:
        values: what a YAML file held.
        source: where the settings came from, as an error names it.
        warn_of_old_names: whether a setting under its former name causes a warning.

    Raises:
        ConfigError: a setting is unknown or ill-typed; the error names it and what is allowed.
    """
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} must hold sections of settings, but holds {type(values).__name__}: "
            "start from a file of configs/, or from what recame settings prints."
        )
    values = by_present_names(values, source, warn=warn_of_old_names)
    try:
        return Config(**{str(name): value for name, value in values.items()})
    except ConfigError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        raise ConfigError(f"{source}: {_explained(error.__cause__)}") from error.__cause__


def _explained(error: ValidationError) -> str:
    """One clause for each wrong setting: what it may be, and what it was."""
    wrong: dict[str, list[Any]] = {}
    for item in error.errors():
        wrong.setdefault(".".join(str(part) for part in item["loc"][:2]), []).append(item)
    listed = []
    for name, items in wrong.items():
        lists = [item["input"] for item in items if isinstance(item["input"], list | tuple)]
        # A rule, and a value that several rules refuse, is shown once.
        told: dict[str, dict[str, None]] = {}
        for item in items:
            if any(item["input"] in whole for whole in lists):
                continue
            told.setdefault(_given(item, name), {})[_rule(item, name, items)] = None
        first, *others = told.values()
        if all(other == first for other in others):
            text = "; else ".join(first) + _joined(told)
        else:
            text = "; else ".join(
                f"{'; else '.join(rules)}{_joined([given])}" for given, rules in told.items()
            )
        listed.append(f"{name}: {text}" if name else text)
    return "; ".join(listed)


def _rule(item: Any, name: str, items: list[Any]) -> str:
    """What a wrong setting may be, from one of the errors about it."""
    if item["type"] == "extra_forbidden":
        where = [str(part) for part in item["loc"]]
        known = _known_names(where[0] if len(where) > 1 else None)
        meant = did_you_mean(where[-1], known)
        return f"unknown{meant and f'; {meant}'} (known here: {', '.join(known)})"
    if item["type"] == "model_type" and len(item["loc"]) == 1:
        return "must be a section of settings (name: value)"
    schema = _schema(name)
    if any(other["type"] == "value_error" for other in items):  # it has rules of its own
        text = str(item["msg"]).removeprefix("Value error, ")
        return re.sub("^Input should be (?=')", "must be ", text)
    return str(item["msg"]) if schema is None else f"must be {allowed(schema, sentence=True)}"


def _given(item: Any, name: str) -> str:
    """The refused value, and the choice that looks like it."""
    value = item["input"]
    if item["type"] == "extra_forbidden" or isinstance(value, dict | BaseModel):  # a whole section
        return ""
    known = [str(choice) for choice in choices(_schema(name) or {})]
    meant = did_you_mean(value, known)
    return f"got {_SHORT.repr(value)}" + (meant and f"; {meant}")


def _joined(given: Iterable[str]) -> str:
    text = " or ".join(filter(None, given))
    return f", {text}" if text else ""


def _schema(name: str) -> dict[str, Any] | None:
    """The JSON schema of the setting `section.key`; None where there is none."""
    section, _, key = name.partition(".")
    if section not in Config.model_fields or not key:
        return None
    schema = Config.model_json_schema()
    described = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]
    found: dict[str, Any] | None = described["properties"].get(key)
    return found


def _known_names(section: str | None) -> list[str]:
    if section is None:
        return list(Config.model_fields)
    annotation = Config.model_fields[section].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel)
    return list(annotation.model_fields)
