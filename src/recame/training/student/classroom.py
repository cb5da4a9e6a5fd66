"""What the fine-tuning phase needs to train a student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recame.contracts import FloatArray
from recame.data.dataset import BatchDataset
from recame.data.samplers import class_prior
from recame.errors import ConfigError
from recame.losses import StudentObjective, TrainingLoss
from recame.models import MultiExpertClassifier
from recame.models.gates import attention_layers, gate_grid
from recame.training.ongoing_run import OngoingRun
from recame.training.student.teacher import Teacher
from recame.training.student.unlabelled import JoinedDataset, PairedBatches, UnlabelledImages

if TYPE_CHECKING:
    from recame.training.loop.data import FinetuneData


@dataclass(frozen=True)
class Distillation:
    """What the fine-tuning phase needs to train a student.

    Attributes:
        teacher: judges each batch.
        unlabelled: further images, or None.
    """

    teacher: Teacher
    unlabelled: UnlabelledImages | None = None

    def objective(
        self,
        run: OngoingRun,
        model: MultiExpertClassifier,
        labels: TrainingLoss,
        prior: FloatArray,
    ) -> StudentObjective:
        """The student's loss, on the run's device; its projection is seeded.

        Args:
            run: of the student.
            model: the student.
            labels: the loss on labels.
            prior: (C,) what the labelled images' sampler shows.

        Raises:
            ConfigError: gates are to be matched and a network has none, or another grid.
        """
        settings, counts = run.config.distill, run.data.label_space.counts
        if self.unlabelled is not None:
            share = settings.unlabelled_share
            shown = np.bincount(self.unlabelled.predicted, minlength=len(prior))
            prior = (1 - share) * prior + share * class_prior(shown, settings.unlabelled_sampler)
        torch.manual_seed(run.config.run.seed)
        return StudentObjective(
            labels,
            counts,
            torch.from_numpy(prior),
            temperature=settings.temperature,
            balance=settings.balance,
            experts="each" if settings.experts == "each" else "ensemble",
            teacher_weight=settings.teacher_weight,
            label_weight=settings.label_weight,
            feature_weight=settings.feature_weight,
            gate_weight=settings.gate_weight,
            widths=(feature_width(model), feature_width(self.teacher.model)),
            gate_stages=matching_stages(model, self.teacher.model)
            if settings.gate_weight > 0
            else (),
        ).to(run.device)

    def extend(
        self, data: FinetuneData, images: BatchDataset, batches: dict[str, Any]
    ) -> FinetuneData:
        """Add the teacher, and the images without labels to each batch.

        Args:
            data: of the phase without distillation.
            images: the labelled ones.
            batches: arguments of the labelled images' sampler.
        """
        if self.unlabelled is None:
            return replace(data, teacher=self.teacher)
        return replace(
            data,
            teacher=self.teacher,
            train=JoinedDataset(images, self.unlabelled.dataset()),
            sampler=partial(PairedBatches, batches, self.unlabelled),
        )


def feature_width(model: MultiExpertClassifier) -> int:
    """D, width of the features that the classifier sees."""
    return model.head.classifier.weight.shape[-1]


def matching_stages(
    student: MultiExpertClassifier, teacher: MultiExpertClassifier
) -> Sequence[int]:
    """For each gated stage of the student the position of the teacher's among its gated ones.

    Stages of one backbone are matched by number, those of different ones by relative depth.

    Raises:
        ConfigError: one of them has no gates, or their grids differ.
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
