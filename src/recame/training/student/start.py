"""Where a student's weights start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recame.models import MultiExpertClassifier, RegionalChannelAttention


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
    stages = model.stages(expert)
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
