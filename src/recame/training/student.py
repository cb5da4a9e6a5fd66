"""What a student is made of: its settings, its preprocessing, and the weights it starts from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recame.config import Config, DistillConfig
from recame.contracts import PreprocessSpec
from recame.errors import ConfigError
from recame.models import (
    PACKAGED_BACKBONE,
    Architecture,
    LoadedModel,
    MultiExpertClassifier,
    RegionalChannelAttention,
    pretrained_mean_std,
)
from recame.training.planner import LONE_TAU, LR

#: What follows from a setting of the section `distill`.
_STUDENTS_OWN = {
    "model.stages": "distill.stages",
    "model.attention": "distill.attention",
    "data.size": "distill.size",
}

#: Mixed images blur labels, which is why training on labels alone leaves them out; a teacher says
#: what they show (docs/decisions/0005).
_MIXUP = 0.4

#: What is not the teacher's of how the student trains, unless it is said otherwise.
_PLAIN_TRAINING: dict[str, Any] = {
    "objective.base_weight": 1.0,
    "objective.hard_weight": 0.0,
    "objective.distillation_weight": 0.0,
    "objective.hard_distillation_weight": 0.0,
    "objective.diversity_weight": 0.0,
    "objective.contrastive_weight": 0.0,
    "objective.intra_weight": 0.0,
    "probe.enabled": False,
    "finetune.enabled": True,
    "finetune.scope": "all",
    # There is no probe whose heads rely on the norms' statistics.
    "finetune.freeze_batch_norm": False,
    "finetune.epochs": "auto",
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
    architecture: Architecture,
    spec: PreprocessSpec,
    *,
    num_stages: int,
    backbone: str | None,
    changes: dict[str, Any],
) -> Config:
    """The student's settings: the teacher's, with one expert, and none of the experts' terms.

    With `distill.experts` it has `model.num_experts` experts, by default the teacher's number; the
    experts' terms are still 0 unless `changes` give them.

    Args:
        teacher: its settings.
        architecture: of its model.
        spec: its preprocessing.
        num_stages: of the student's whole backbone.
        backbone: the student's; None: the teacher's.
        changes: `section.key` settings that overrule the rest; the section `distill` is at its
            defaults but for these.

    Raises:
        ConfigError: a setting is wrong, or would give the student several experts unasked.
    """
    for theirs, ours in _STUDENTS_OWN.items():
        if theirs in changes:
            raise ConfigError(
                f"{theirs} is not set for a student, as other settings depend on it: set {ours}."
            )
    # What a teacher was itself taught with says nothing about its own student.
    teacher = teacher.model_copy(update={"distill": DistillConfig()})
    name = backbone or str(changes.get("model.backbone", architecture.backbone))
    distill = teacher.updated(
        {k: v for k, v in changes.items() if k.startswith("distill.")}
    ).distill
    values = {
        **_network(teacher, architecture, distill, name, num_stages),
        "data.size": distill.size or spec.height,
        "data.channels": spec.channels,
        "data.bit_depth": spec.bit_depth,
        "augment.mixup": max(teacher.augment.mixup, _MIXUP),
        **_PLAIN_TRAINING,
        **({} if teacher.finetune.freeze_batch_norm is False else {"finetune.lr": LR}),
        **({"run.keep": "best_on_val"} if teacher.run.keep == "joined" else {}),
        **changes,
        "model.backbone": name,
    }
    if isinstance(teacher.objective.tau, tuple) or teacher.objective.tau == LONE_TAU:
        values.setdefault("objective.tau", 1.0)  # what is planned for experts is not for a student
    shared, depth = values["model.shared_stages"], values["model.stages"] or num_stages
    if isinstance(shared, int) and -depth <= shared < 0:
        values["model.shared_stages"] = depth + shared
    config = teacher.updated(values)
    _check_trainable(config)
    return config


def _network(
    teacher: Config,
    architecture: Architecture,
    distill: DistillConfig,
    backbone: str,
    num_stages: int,
) -> dict[str, Any]:
    """What the student's network is unless it is said otherwise."""
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
        # A lightly tuned teacher's student is a network of its own.
        "model.tuning": "full",
        "model.tuning_rank": None,
        "model.initialisation": "random",
    }


def _check_trainable(config: Config) -> None:
    """Refuse what the student's training does not do."""
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
    """Why the student is what it is.

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
    if config.data.size != loaded.spec.height:
        reasons.append(
            f"data.size = {config.data.size}: the teacher sees each batch resized to "
            f"{loaded.spec.height}"
        )
    return reasons


def student_spec(config: Config, loaded: LoadedModel) -> PreprocessSpec:
    """The teacher's specification at the student's size, normalised as the student's weights."""
    size, spec = int(config.data.size), loaded.spec
    mean, std = spec.mean, spec.std
    if config.model.backbone != loaded.architecture.backbone:
        mean, std = pretrained_mean_std(
            str(config.model.backbone), config.model.pretrained, spec.channels
        )
    return replace(spec, height=size, width=size, mean=mean, std=std)


@torch.no_grad()
def start_from_expert(
    student: MultiExpertClassifier, teacher: MultiExpertClassifier, expert: int
) -> bool:
    """Give the student an expert's first stages and the part of its head that reads them.

    Where the student reads shared stages only, its class vectors are the mean of all experts'.

    Args:
        student: changed in place, if the weights fit.
        teacher: of the same backbone, with the student's stages or more.
        expert: whose tail is copied.

    Returns:
        Whether they fit; if not, nothing was changed.
    """
    ours, theirs = student.architecture, teacher.architecture
    keep = ours.attention == theirs.attention
    own, others = _stages(student, 0, keep=keep), _stages(teacher, expert, keep=keep)
    others = others[: len(own)]
    first = student.num_stages - ours.pooled_stages
    if (
        ours.backbone != theirs.backbone
        or len(own) > len(others)
        or first != teacher.num_stages - theirs.pooled_stages
        or not all(_fits(a, _state(b, keep=keep)) for a, b in zip(own, others, strict=True))
    ):
        return False
    for stage, source in zip(own, others, strict=True):
        stage.load_state_dict(_state(source, keep=keep))
    width = student.head.shape[1]
    mean, std = teacher.head.mean[expert, :width], teacher.head.std[expert, :width]
    student.head.set_standardisation(mean, std)
    if ours.classifier == theirs.classifier and ours.hidden == theirs.hidden == 0:
        classifier, source_head = student.head.classifier, teacher.head.classifier
        shared = student.num_stages <= len(teacher.trunk)
        chosen = slice(None) if shared else slice(expert, expert + 1)
        classifier.weight.copy_(source_head.weight[chosen, :, :width].mean(0, keepdim=True))
        classifier.bias.copy_(source_head.bias[chosen].mean(0, keepdim=True))
    return True


def _stages(model: MultiExpertClassifier, expert: int, *, keep: bool) -> list[nn.Module]:
    """An expert's stages, without the attention that follows a stage unless it is to be kept."""
    tail = model.tails[expert]
    assert isinstance(tail, nn.ModuleList)
    stages = [*model.trunk, *tail]
    if keep:
        return stages
    # The modules are numbered anew, as in a network that was built without attention.
    return [
        nn.Sequential(*(m for m in stage.children() if not isinstance(m, RegionalChannelAttention)))
        for stage in stages
    ]


def _state(stage: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """A stage's weights, without those of the attention inside its blocks."""
    gates = tuple(
        f"{name}." for name, m in stage.named_modules() if isinstance(m, RegionalChannelAttention)
    )
    state = stage.state_dict()
    return state if keep else {k: v for k, v in state.items() if not k.startswith(gates)}


def _fits(stage: nn.Module, theirs: dict[str, Tensor]) -> bool:
    ours = stage.state_dict()
    return ours.keys() == theirs.keys() and all(ours[k].shape == theirs[k].shape for k in ours)
