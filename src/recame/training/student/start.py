"""The starting weights of a student."""

from __future__ import annotations

import torch

from recame.models import MultiExpertClassifier, take_stages


@torch.no_grad()
def start_from_expert(
    student: MultiExpertClassifier, teacher: MultiExpertClassifier, expert: int
) -> bool:
    """Copy an expert's first stages, and the part of its head that reads them, to the student.

    If the student has shared stages only, its class vectors are the mean over all experts.

    Args:
        student: changed in place, if the weights fit.
        teacher: of the same backbone, with at least the student's stages.
        expert: index of the expert whose branch is copied.

    Returns:
        Whether the weights fit; if not, nothing is changed.
    """
    ours, theirs = student.architecture, teacher.architecture
    first = student.num_stages - ours.pooled_stages
    if first != teacher.num_stages - theirs.pooled_stages:
        return False
    if not take_stages(student, teacher, [expert]):
        return False
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
