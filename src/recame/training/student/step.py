"""A student's training step: the teacher classifies the same images, in addition to the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from recame.contracts import LossResult
from recame.data.dataset import BatchDataset
from recame.data.samplers import class_prior
from recame.errors import ConfigError
from recame.losses import StudentObjective, TrainingLoss
from recame.models import MultiExpertClassifier
from recame.models.gates import attention_layers, forward_with_gates, gate_grid
from recame.plugins import Plugin
from recame.training.loop.data import FinetuneData
from recame.training.loop.step import TrainingStep, weighted
from recame.training.ongoing_run import OngoingRun
from recame.training.student.teacher import Teacher
from recame.training.student.unlabelled import JoinedDataset, PairedBatches, UnlabelledImages


class StudentStep(TrainingStep):
    """A training step: augment, mix, the teacher's answers, forward pass, loss.

    Args:
        plain: the same network's step without a teacher.
        objective: the student's loss.
        teacher: classifies each batch, augmented and mixed as the student sees it (Beyer et al., A
            good teacher is patient and consistent, CVPR 2022).
    """

    objective: StudentObjective

    def __init__(self, plain: TrainingStep, objective: StudentObjective, teacher: Teacher) -> None:
        super().__init__(
            plain.model, objective, scale=plain.scale, augment=plain.augment, mix=plain.mix
        )
        self.forward = plain.forward
        self.teacher = teacher

    def loss(self, images: Tensor, labels: Sequence[tuple[Tensor, Tensor | float]]) -> LossResult:
        """The teacher's answers, forward pass and loss."""
        lesson = self.teacher(images)
        if self.objective.needs_gates:
            output, gates = forward_with_gates(self.model, images)
        else:
            output, gates = self.forward(images), None
        result = weighted(
            [(self.objective(output, target, lesson, gates), share) for target, share in labels]
        )
        self.remember(output, labels)
        return result


@dataclass(frozen=True)
class Distillation:
    """Turns a training step into that of a student.

    Attributes:
        teacher: classifies each batch.
        unlabelled: further images, or None.
    """

    teacher: Teacher
    unlabelled: UnlabelledImages | None = None

    def __call__(
        self, run: OngoingRun, step: TrainingStep, data: FinetuneData
    ) -> tuple[TrainingStep, FinetuneData]:
        """The student's step and data, from the plain ones; its projection is seeded.

        Raises:
            ConfigError: gates must be matched, but a network has none, or the grids differ.
        """
        settings, space = run.config.distill, run.data.label_space
        own, others = step.model, self.teacher.model
        counts = run.data.view("train").counts(space.num_classes)
        sampler = run.config.finetune.sampler
        if isinstance(sampler, Plugin):
            raise ConfigError(
                f"finetune.sampler={sampler.class_path}: a student weighs its teacher's answers by "
                "how often the built-in samplers show a class; set finetune.sampler=square_root."
            )
        prior = class_prior(counts, sampler)
        if self.unlabelled is not None:
            share = settings.unlabelled_share
            shown = np.bincount(self.unlabelled.predicted, minlength=len(prior))
            prior = (1 - share) * prior + share * class_prior(shown, settings.unlabelled_sampler)
            assert isinstance(data.train, BatchDataset)
            data = replace(
                data,
                train=JoinedDataset(data.train, self.unlabelled.dataset()),
                sampler=partial(PairedBatches, data.sampler.keywords, self.unlabelled),
            )
        assert isinstance(step.objective, TrainingLoss)
        torch.manual_seed(run.config.run.seed)
        objective = StudentObjective(
            step.objective,
            space.counts,
            torch.from_numpy(prior),
            temperature=settings.temperature,
            balance=settings.balance,
            experts="each" if settings.experts == "each" else "ensemble",
            teacher_weight=settings.teacher_weight,
            label_weight=settings.label_weight,
            feature_weight=settings.feature_weight,
            gate_weight=settings.gate_weight,
            widths=(own.num_features, others.num_features),
            gate_stages=matching_stages(own, others) if settings.gate_weight > 0 else (),
        )
        return StudentStep(step, objective.to(run.device), self.teacher), data


def matching_stages(
    student: MultiExpertClassifier, teacher: MultiExpertClassifier
) -> Sequence[int]:
    """For each gated stage of the student, the position of the matching one of the teacher.

    Positions count the teacher's gated stages. Stages of the same backbone are matched by number,
    those of different backbones by relative depth.

    Raises:
        ConfigError: one network has no gates, or their grids differ.
    """
    own, others = (
        sorted({stage for stage, _, _ in attention_layers(m)}) for m in (student, teacher)
    )
    if not own or not others:
        who = "the student has" if others else "the teacher has"
        raise ConfigError(
            f"distill.gate_weight is above 0, but {who} no attention whose gates could be matched: "
            "set distill.attention=keep with a teacher that has attention, or "
            "distill.gate_weight=0."
        )
    ours, theirs = gate_grid(student), gate_grid(teacher)
    if ours != theirs:
        raise ConfigError(
            f"distill.gate_weight is above 0, but the gates' grids differ ({ours} and {theirs}): "
            "leave model.regions and model.attention as the teacher's."
        )
    if student.architecture.backbone == teacher.architecture.backbone:
        return [others.index(stage) for stage in own]
    depth = np.linspace(0, len(others) - 1, len(own))
    return [int(position) for position in np.round(depth)]
