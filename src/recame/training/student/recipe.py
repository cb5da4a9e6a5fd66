"""The recipe of a student: its settings, its preprocessing, and the reasons for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recame.config import Config, DistillConfig, ObjectiveConfig, as_size, height_width
from recame.contracts import PreprocessSpec
from recame.errors import ConfigError
from recame.models import PACKAGED_BACKBONE, Architecture, LoadedModel
from recame.training.planner import LR, STUDENT_TAU
from recame.training.starting_weights import starting_mean_std

#: Settings that follow from a setting of the section `distill`.
_STUDENTS_OWN = {
    "model.stages": "distill.stages",
    "model.attention": "distill.attention",
    "data.size": "distill.size",
}

#: Mixed images blur labels, so training on labels alone does not use them; a teacher gives them
#: soft labels (docs/decisions/0005).
_MIXUP = 0.4

#: Default settings of a student that differ from its teacher's.
_PLAIN_TRAINING: dict[str, Any] = {
    **{f"objective.{name}": 0.0 for name in ObjectiveConfig.model_fields if "_weight" in name},
    "objective.base_weight": 1.0,
    "probe.enabled": False,
    "finetune.enabled": True,
    "finetune.scope": "all",
    # There is no probe whose heads depend on the norms' statistics.
    "finetune.freeze_batch_norm": False,
    "finetune.frozen_stages": 0,
    "finetune.epochs": "auto",
    "finetune.steps": None,
    "finetune.epoch_size": "auto",
    "retrain.enabled": False,
    "evaluation.views": 1,
    "run.devices": 1,
    "run.num_nodes": 1,
    "run.strategy": "auto",
    "run.precision": "auto",
    "run.time_budget_s": None,
}


def student_config(
    teacher: Config,
    asked: Config,
    architecture: Architecture,
    spec: PreprocessSpec,
    *,
    num_stages: int,
    backbone: str | None,
    changes: dict[str, Any],
) -> Config:
    """The student's settings: those of the teacher, with one expert and without expert terms.

    With `distill.experts` it has `model.num_experts` experts, by default the teacher's number; the
    expert terms are still 0 unless `changes` set them.

    Args:
        teacher: the teacher's settings.
        asked: the teacher's settings as requested, including `auto`.
        architecture: of the teacher's model.
        spec: the teacher's preprocessing.
        num_stages: of the student's whole backbone.
        backbone: the student's; None: the teacher's.
        changes: `section.key` settings that override the rest. Without them, the section `distill`
            has its defaults.

    Raises:
        ConfigError: a setting is wrong, or would give the student several experts without
            `distill.experts`.
    """
    for theirs, ours in _STUDENTS_OWN.items():
        if theirs in changes:
            raise ConfigError(
                f"{theirs} is not set for a student, as other settings depend on it: set {ours}."
            )
    # The settings by which the teacher was itself distilled do not apply to its student.
    teacher = teacher.model_copy(update={"distill": DistillConfig()})
    name = backbone or str(changes.get("model.backbone", architecture.backbone))
    distill = teacher.updated(
        {k: v for k, v in changes.items() if k.startswith("distill.")}
    ).distill
    values = {
        **_network(teacher, architecture, distill, name, num_stages),
        "data.size": distill.size or as_size(spec.piece_size),
        "data.tiles": spec.tiles,
        "data.channels": spec.channels,
        "data.bit_depth": spec.bit_depth,
        "augment.mixup": max(teacher.augment.mixup, _MIXUP),
        **_PLAIN_TRAINING,
        **({} if teacher.finetune.freeze_batch_norm is False else {"finetune.lr": LR}),
        **({"run.keep": "best_on_val"} if teacher.run.keep == "joined" else {}),
        **changes,
        "model.backbone": name,
    }
    taus, experts = asked.objective.tau, values["model.num_experts"]
    if taus == "auto" or (isinstance(taus, tuple) and len(taus) != experts):
        # Values planned or requested for the teacher's experts do not apply to a student.
        values.setdefault("objective.tau", STUDENT_TAU)
    if asked.finetune.batch_size == "auto":
        # A teacher with little time took small steps; a student's batch norms need whole batches.
        values.setdefault("finetune.batch_size", "auto")
    shared, depth = values["model.shared_stages"], values["model.stages"] or num_stages
    if isinstance(shared, int) and -depth <= shared < 0:
        values["model.shared_stages"] = depth + shared
    config = teacher.updated(values)
    _check_trainable(config)
    return config


def asked_of_student(student: Config, asked: Config, changes: Mapping[str, Any]) -> Config:
    """A student's settings, with `auto` for those that nobody requested, for it or its teacher.

    Args:
        student: of `student_config`.
        asked: requested settings of the teacher.
        changes: requested settings of the student, as `section.key`.
    """
    theirs, own, default = asked.model_dump(), student.model_dump(), Config().model_dump()
    undecided = [
        f"{section}.{key}"
        for section, values in default.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value == "auto" != own[section][key] and theirs[section][key] != own[section][key]
    ]
    return student.updated({name: "auto" for name in undecided if name not in changes})


def _network(
    teacher: Config,
    architecture: Architecture,
    distill: DistillConfig,
    backbone: str,
    num_stages: int,
) -> dict[str, Any]:
    """Default settings of the student's network."""
    own, several = backbone == architecture.backbone, distill.experts != "one"
    most = architecture.stages or num_stages if own else num_stages
    stages = distill.stages
    if stages is None:
        stages = most - math.ceil(most / 4) if own else 0
    depth = stages or most
    first_pooled = most - architecture.pooled_stages
    pooled = depth - first_pooled if own else max(1, depth - 1)
    packaged = backbone.split(".", maxsplit=1)[0] == PACKAGED_BACKBONE
    return {
        "model.pretrained": teacher.model.pretrained if own else "package" if packaged else False,
        "model.num_experts": architecture.num_experts if several else 1,
        "model.shared_stages": min(architecture.shared_stages, depth - 1) if several and own else 0,
        "model.stages": 0 if depth == num_stages else depth,
        "model.pooled_stages": max(1, pooled),
        "model.attention": "none" if distill.attention == "none" else architecture.attention,
        "model.pooling": architecture.pooling if own else "average",
        # The student of a teacher with adapters is trained in full.
        "model.tuning": "full",
        "model.tuning_rank": None,
        "model.initialisation": "random",
    }


def _check_trainable(config: Config) -> None:
    """Refuse settings that the student's training does not support."""
    several = config.model.num_experts != 1 and config.distill.experts == "one"
    phases = config.probe.enabled or config.retrain.enabled or config.finetune.scope != "all"
    if several or phases:
        raise ConfigError(
            "A student is one network, trained as a whole: leave model.num_experts, probe.enabled, "
            "retrain.enabled and finetune.scope alone. For a student of several experts, set "
            "distill.experts to ensemble or each; to train experts without a teacher, use recame "
            "train."
        )
    if config.run.devices != 1 or config.run.num_nodes != 1:
        raise ConfigError(
            "A student trains on one device: leave run.devices and run.num_nodes at 1."
        )


def student_reasons(config: Config, loaded: LoadedModel, num_stages: int) -> list[str]:
    """Reasons for the student's settings.

    Args:
        config: of the student.
        loaded: the teacher.
        num_stages: of the student's whole backbone.
    """
    model, plan = config.model, loaded.architecture
    depth = model.stages or num_stages
    reasons = [
        f"model.stages = {model.stages}: {depth} of {num_stages} stages of {model.backbone}"
        + ("; the last ones cost much and are missed least" if depth < num_stages else ""),
        f"model.num_experts = {model.num_experts}: "
        + ("one network learns" if model.num_experts == 1 else "they learn")
        + " what the ensemble decides",
    ]
    if config.evaluation.views == 1:
        reasons.append("evaluation.views = 1: a student is meant to be fast")
    if model.attention == "none" != plan.attention:
        reasons.append(
            f"model.attention = none: the teacher's {plan.attention} attention costs more time "
            "than it is worth to a student (distill.attention=keep)"
        )
    own = as_size(loaded.spec.piece_size)
    if config.data.size != own:
        reasons.append(
            f"data.size = {config.data.size}: the teacher sees each batch resized to {own}"
        )
    return reasons


def student_spec(config: Config, loaded: LoadedModel) -> PreprocessSpec:
    """The teacher's specification at the student's size, with its weights' normalisation."""
    (height, width), spec = height_width(config.data.size), loaded.spec
    mean, std = spec.mean, spec.std
    if config.model.backbone != loaded.architecture.backbone:
        mean, std = starting_mean_std(
            str(config.model.backbone), config.model.pretrained, spec.channels
        )
    return replace(spec, height=height * spec.pieces, width=width, mean=mean, std=std)
