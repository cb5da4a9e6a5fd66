"""A method of the bench: its settings for the common trainer, its source, its deviations.

A method is one file: YAML if settings suffice, Python if it has a loss of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from recame.bench.plan.knobs import Knob
from recame.config import Config, DistillConfig, Section
from recame.errors import ConfigError, did_you_mean

#: Kinds of methods, as tables name and order them.
Group = Literal["single network", "several experts", "recame", "ablation"]
GROUPS = get_args(Group)

_METHODS = resources.files("recame.bench.plan") / "methods"

#: The plain network, which a method's settings override: one network, cross-entropy on its last
#: stage, instance-balanced sampling.
PLAIN: dict[str, Any] = {
    "augment.mixup": 0,
    "augment.cutmix": 0,
    "model.num_experts": 1,
    "model.shared_stages": 0,
    "model.pooled_stages": 1,
    "model.attention": "none",
    "model.classifier": "linear",
    "model.standardise": False,
    "objective.base": "cross_entropy",
    "objective.tau": 1,
    "objective.hard_weight": 0,
    "objective.distillation_weight": 0,
    "objective.hard_distillation_weight": 0,
    "objective.contrastive_weight": 0,
    "objective.intra_weight": 0,
    "probe.enabled": False,
    "finetune.sampler": "instance",
    "finetune.freeze_batch_norm": False,
    "finetune.frozen_stages": 0,
    "evaluation.least_images_per_s": None,
    "finetune.lr": 2e-3,
    "run.keep": "last",
}


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: short name, for plans and folders.
        title: for tables.
        source: the paper.
        group: one of `GROUPS`.
        settings: `section.key` -> value; override the plan's.
        deviations: from the published recipe, a sentence each.
        code: Python source that defines `make_loss`, for a loss that settings cannot express.
        teacher: settings that override the method's own for a teacher, which is trained first; the
            method then trains the student. None: there is no teacher.
        knobs: what a search may vary, by name.
        settings_by_data: data set -> settings that a search has chosen; override the method's own.
    """

    name: str
    title: str
    source: str
    group: str = "single network"
    settings: dict[str, Any] | None = None
    deviations: tuple[str, ...] = ()
    code: str | None = None
    teacher: dict[str, Any] | None = None
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    settings_by_data: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def on(self, data: str) -> Method:
        """The method with its settings for one data set."""
        own = self.settings_by_data.get(data, {})
        return replace(self, settings={**(self.settings or {}), **own}, settings_by_data={})

    def configure(self, config: Config) -> Config:
        """The settings of a run of this method.

        Raises:
            ConfigError: names the method whose settings are wrong.
        """
        try:
            return config.updated(self.settings or {})
        except ConfigError as error:
            raise ConfigError(f"Method {self.name}: {error}") from error

    def of_teacher(self) -> Method:
        """The method that trains this one's teacher."""
        own = {k: v for k, v in (self.settings or {}).items() if not k.startswith("distill.")}
        return replace(self, settings={**own, **(self.teacher or {})}, teacher=None)

    @property
    def code_sha256(self) -> str:
        """SHA-256 of the Python source, without imported files; empty for a YAML method."""
        return "" if self.code is None else hashlib.sha256(self.code.encode()).hexdigest()

    @property
    def sha256(self) -> str:
        """SHA-256 of all that decides the method's runs: settings, the teacher's, and code."""
        decisive: list[Any] = [self.settings or {}, self.teacher, self.code_sha256]
        if self.settings_by_data:
            decisive.append(self.settings_by_data)
        return hashlib.sha256(
            json.dumps(decisive, sort_keys=True, default=str).encode()
        ).hexdigest()

    def make_loss(self) -> Any:
        """The loss factory of the method's Python file (`recame.losses.LossFactory`), or None.

        This runs the file.

        Raises:
            ConfigError: the file cannot be run.
        """
        return None if self.code is None else _run(self.code, self.name).get("make_loss")


class _MethodFile(Section):
    title: str
    source: str
    group: str = "single network"
    settings: dict[str, Any] = Field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    teacher: dict[str, Any] | None = None
    knobs: dict[str, Knob] = Field(default_factory=dict)


def method_names() -> list[str]:
    """Names of the methods that come with recame."""
    return sorted(
        p.name.removesuffix(".yaml") for p in _METHODS.iterdir() if p.name.endswith(".yaml")
    )


def load_method(name: str, folder: Path) -> Method:
    """Read a method that comes with recame, or a method file of the user.

    Args:
        name: a method's name, or the path of a `.yaml` or `.py` file.
        folder: the path is relative to it.

    Raises:
        ConfigError: there is no such method, or its file is wrong.
    """
    if not name.endswith((".py", ".yaml")):
        if name not in method_names():
            meant = did_you_mean(name, method_names())
            raise ConfigError(
                f"Unknown method {name!r}{meant and f' ({meant})'}: choose one of "
                f"{', '.join(method_names())}, or give the path of a .yaml or .py file "
                "(docs/bench.md)."
            )
        return _from_yaml(name, (_METHODS / f"{name}.yaml").read_text("utf-8"))
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The method's file {path} cannot be read ({error}).") from error
    return _from_python(path.stem, text) if path.suffix == ".py" else _from_yaml(path.stem, text)


def _from_yaml(name: str, text: str) -> Method:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"Method {name} is not YAML ({error}): correct its file.") from error
    return _checked(name, values, None)


def _from_python(name: str, text: str) -> Method:
    values = _run(text, name)
    fields = {key: values[key] for key in _MethodFile.model_fields if key in values}
    if not callable(values.get("make_loss")):
        raise ConfigError(
            f"Method {name}: its file defines no function make_loss(counts, num_experts, prior). "
            "A method without a loss of its own belongs in a .yaml file."
        )
    return _checked(name, fields, text)


def _checked(name: str, values: object, code: str | None) -> Method:
    try:
        made = _MethodFile.model_validate(values)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        known = ", ".join(_MethodFile.model_fields)
        raise ConfigError(
            f"Method {name}: {told}. A method's file may have {known}; it needs title and source."
        ) from error
    if made.group not in GROUPS:
        raise ConfigError(
            f"Method {name}: group={made.group!r} is unknown: choose one of {', '.join(GROUPS)}."
        )
    fields = {key: getattr(made, key) for key in _MethodFile.model_fields}
    method = Method(**fields, name=name, code=code)
    plain = Config().updated(PLAIN)
    config = method.configure(plain)
    if method.teacher is not None:
        check_taught(name, config, method.of_teacher().configure(plain))
    elif any(key.startswith("distill.") for key in made.settings):
        raise ConfigError(
            f"Method {name} sets distill.* and has no teacher, so this has no effect: add "
            "`teacher: {section.key: value}`, the settings in which its teacher differs."
        )
    return method


def check_taught(name: str, student: Config, teacher: Config) -> None:
    """Refuse settings that a student cannot have, before its teacher is trained.

    Args:
        name: of the method.
        student: the student's settings.
        teacher: the teacher's settings.

    Raises:
        ConfigError: a phase or a network that a student cannot have.
    """
    tuned = student.finetune.enabled and student.finetune.scope == "all"
    derived = ("teacher", "stages", "attention", "size")
    said = [k for k in derived if getattr(student.distill, k) != getattr(DistillConfig(), k)]
    model = student.model
    refused = {
        (
            " has a teacher, and a student is only fine-tuned as a whole: set "
            "probe.enabled and retrain.enabled to false, finetune.enabled to true and "
            "finetune.scope to all"
        ): student.probe.enabled or student.retrain.enabled or not tuned,
        (
            " has a teacher, and a student trains on one device: leave run.devices and "
            "run.num_nodes at 1"
        ): (student.run.devices, student.run.num_nodes) != (1, 1),
        (
            f" has a teacher and model.num_experts={model.num_experts}: set distill.experts to "
            "ensemble (all experts together learn from the teacher) or each (every expert does)"
        ): student.distill.experts == "one" and model.num_experts != 1,
        (
            f": a student has its teacher's attention or none, not {model.attention} where the "
            f"teacher has {teacher.model.attention}"
        ): model.attention not in ("none", teacher.model.attention),
        (
            f" sets distill.{''.join(said[:1])}; in a bench, describe a student's network with "
            "model.stages, model.attention and data.size"
        ): said,
    }
    for told, applies in refused.items():
        if applies:
            raise ConfigError(f"Method {name}{told}.")


def _run(text: str, name: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": f"recame_method_{name}"}
    try:
        exec(compile(text, f"{name}.py", "exec"), space)  # noqa: S102 - the user's own file
    except Exception as error:
        lines = [at.lineno for at in extract_tb(error.__traceback__) if at.filename == f"{name}.py"]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1]
        raise ConfigError(
            f"Method {name}: line {line} of its file {name}.py fails with "
            f"{type(error).__name__}: {error}. Correct the file."
        ) from error
    return space
