"""The teacher beside the training loop: its lessons on each batch, and the loss made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import ExpertOutput, ensemble_logits
from recame.data import BatchDataset, class_prior, dihedral_view
from recame.errors import ConfigError
from recame.losses import Lesson, StudentObjective, TrainingLoss
from recame.models import (
    FrozenForward,
    MultiExpertClassifier,
    RegionalChannelAttention,
)
from recame.training.ongoing_run import OngoingRun
from recame.training.unlabelled import JoinedDataset, PairedBatches, UnlabelledImages

if TYPE_CHECKING:
    from recame.training.lightning_module import FinetuneData


class Resized(nn.Module):
    """A model that is given images of any size and sees them at its own.

    Args:
        model: its specification says the size.
    """

    def __init__(self, model: MultiExpertClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> ExpertOutput:
        """(B, C, H, W) in [0, 1] to what the model returns."""
        output: ExpertOutput = self.model(at_size(images, self.model))
        return output


def at_size(images: Tensor, model: MultiExpertClassifier) -> Tensor:
    """Images (B, C, H, W) at the size that a model was trained for."""
    size = (model.spec.height, model.spec.width)
    if tuple(images.shape[2:]) == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


class Teacher:
    """A finished run's ensemble, frozen, as fast as the device allows.

    Args:
        model: the experts, on the device; never trained here.
        num_views: flips and turns of each image that are averaged.
        features: whether lessons hold features.
        gates: whether lessons hold gates.
        num_images: how many will about pass; decides whether an exported graph pays.
        precision: `32`, `bf16` or `16`.
    """

    def __init__(
        self,
        model: MultiExpertClassifier,
        *,
        num_views: int = 1,
        features: bool = False,
        gates: bool = False,
        num_images: int = 0,
        precision: str = "32",
    ) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self._module = _LessonForward(model, num_views, gates=gates)
        self._features, self._gates = features, gates
        self._num_images, self._precision = num_images * num_views, precision
        self._forward: FrozenForward | None = None

    def __call__(self, images: Tensor) -> Lesson:
        """Judge a batch.

        Args:
            images: (B, C, H, W) in [0, 1], of any size.
        """
        images = at_size(images, self.model)
        if self._forward is None:
            self._forward = FrozenForward(
                self._module, images, num_images=self._num_images, precision=self._precision
            )
        logits, features, *gates = self._forward(images)
        return Lesson(
            logits, features if self._features else None, gates[0] if self._gates else None
        )


class _LessonForward(nn.Module):
    """A model's lesson as a tuple, which a graph can return."""

    def __init__(self, model: MultiExpertClassifier, num_views: int, *, gates: bool) -> None:
        super().__init__()
        self.model = model
        self.num_views = num_views
        self.gates = gates

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) -> logits (B, C), features (B, D), and gates (B, S, R)."""
        rest: tuple[Tensor, ...]
        if self.gates:
            output, gates = forward_with_gates(self.model, images)
            rest = (output.features.mean(1), gates)
        else:
            output = self.model(images)
            rest = (output.features.mean(1),)
        logits = ensemble_logits(output.logits)
        if self.num_views > 1:
            # As evaluation averages views: their probabilities. The log is logits again.
            mean = logits.softmax(-1)
            for view in range(1, self.num_views):
                seen = self.model(dihedral_view(images, view))
                mean = mean + ensemble_logits(seen.logits).softmax(-1)
            logits = (mean / self.num_views).clamp_min(1e-12).log()
        return (logits, *rest)


def forward_with_gates(model: MultiExpertClassifier, images: Tensor) -> tuple[ExpertOutput, Tensor]:
    """A forward, and the mean gates of each gated stage and region on the way.

    Args:
        model: with regional or channel attention.
        images: (B, C, H, W) in [0, 1].

    Returns:
        The model's output, and (B, S, R): of the last attention of each stage that has one, the
        mean over channels and experts for each of the grid's R regions.
    """
    layers = gated_stages(model)
    rows, cols = _grid(model)
    read: dict[int, list[Tensor]] = {stage: [] for stage in layers}

    def reader(stage: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, RegionalChannelAttention)
        gates = module.gates(inputs[0]).mean(1)
        if gates.shape[1:] != (rows, cols):  # a map smaller than the grid
            gates = functional.interpolate(gates[:, None], (rows, cols))[:, 0]
        read[stage].append(gates.flatten(1))

    handles = [
        layer.register_forward_pre_hook(partial(reader, stage))
        for stage, found in layers.items()
        for layer in found
    ]
    try:
        output: ExpertOutput = model(images)
    finally:
        for handle in handles:
            handle.remove()
    means = [torch.stack(gates).mean(0) for gates in read.values()]
    return output, torch.stack(means, 1)


def gated_stages(model: MultiExpertClassifier) -> dict[int, list[RegionalChannelAttention]]:
    """For each stage with attention its last attention module, one for each expert's own stage."""
    num_shared = len(model.trunk)
    found: dict[int, list[RegionalChannelAttention]] = {}
    for first, stages in ((0, model.trunk), *((num_shared, tail) for tail in model.tails)):
        assert isinstance(stages, nn.ModuleList)
        for number, stage in enumerate(stages, first):
            inside = [m for m in stage.modules() if isinstance(m, RegionalChannelAttention)]
            if inside:
                found.setdefault(number, []).append(inside[-1])
    return found


def _grid(model: MultiExpertClassifier) -> tuple[int, int]:
    plan = model.architecture
    return plan.regions if plan.attention == "regional" else (1, 1)


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
        prior: np.ndarray[Any, np.dtype[np.float64]],
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
    own, others = list(gated_stages(student)), list(gated_stages(teacher))
    if not own or not others:
        who = "the student has" if others else "the teacher has"
        raise ConfigError(
            f"distill.gate_weight is above 0, but {who} no attention whose gates could be matched: "
            "set distill.attention=keep with a teacher that has attention, or "
            "distill.gate_weight=0."
        )
    if _grid(student) != _grid(teacher):
        raise ConfigError(
            f"distill.gate_weight is above 0, but the gates' grids differ ({_grid(student)} and "
            f"{_grid(teacher)}): leave model.regions and model.attention as the teacher's."
        )
    if student.architecture.backbone == teacher.architecture.backbone:
        return [others.index(stage) for stage in own]
    depth = np.linspace(0, len(others) - 1, len(own))
    return [int(position) for position in np.round(depth)]
