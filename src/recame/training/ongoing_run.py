"""What every step of a run needs, and the two things that all steps make from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from recame.config import Config
from recame.data.dataset import InspectionSet
from recame.inference.device import Precision
from recame.losses import LossFactory, Objective, TrainingLoss, own_loss
from recame.models import Architecture, MultiExpertClassifier
from recame.runs.folder import RunFolder
from recame.runs.trackers import Trackers
from recame.training.starting_weights import starting_network


@dataclass
class Measured:
    """What stages of a run took on this machine, by which what follows them is reckoned.

    Attributes:
        stages: seconds of each stage, in order.
        forward_s: seconds of an image's forward, without a graph; None where none was timed.
        graph_s: seconds that making a network's graph takes; None where none was made.
        graph_image_s: seconds of an image's forward through a graph; None where none was made.
        saving_s: seconds that writing a network takes; None where none was written.
        head_step_s: seconds of a step of the heads on cached features; None where none was taken.
    """

    stages: dict[str, float] = field(default_factory=dict)
    forward_s: float | None = None
    graph_s: float | None = None
    graph_image_s: float | None = None
    saving_s: float | None = None
    head_step_s: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - began


@dataclass(frozen=True)
class OngoingRun:
    """A run between its beginning and its end.

    Attributes:
        folder: where its files go.
        config: its settings, without `auto` once the planner has seen them.
        data: the images, decoded.
        device: where it trains.
        console: where progress goes.
        started: `time.monotonic()` at the beginning of the command, from where its time counts.
        make_loss: makes the loss instead of the `objective` settings, which cannot name it.
        measured: what its stages took so far.
        trackers: are told of it.
        callbacks: of one's own, for fine-tuning's trainer.
    """

    folder: RunFolder
    config: Config
    data: InspectionSet
    device: torch.device
    console: Console
    started: float
    make_loss: LossFactory | None = None
    measured: Measured = field(default_factory=Measured)
    trackers: Trackers = field(default_factory=Trackers)
    callbacks: tuple[Callback, ...] = ()

    @property
    def precision(self) -> Precision:
        """The planned precision."""
        precision = self.config.run.precision
        assert precision != "auto"
        return precision

    def new_model(self, *, pretrained: bool = True) -> MultiExpertClassifier:
        """The network before any training, seeded, on the device.

        Args:
            pretrained: with the weights that the settings name, if they name any.
        """
        settings = self.config.model
        torch.manual_seed(self.config.run.seed)
        model = starting_network(
            Architecture.of(settings),
            self.data.label_space.num_classes,
            self.data.spec,
            settings.pretrained if pretrained else False,
        )
        return self.placed(model)

    def placed(self, model: MultiExpertClassifier) -> MultiExpertClassifier:
        """A network on the device, in the memory format that decides how convolutions round."""
        channels_last = self.config.run.channels_last
        memory = torch.channels_last if channels_last else torch.contiguous_format
        return model.to(self.device).to(memory_format=memory)

    def objective(
        self, prior: torch.Tensor, num_features: int, *, fixed_features: bool = False
    ) -> TrainingLoss:
        """The loss on the device.

        Args:
            prior: (C,) how often the sampler shows each class, up to a factor.
            num_features: D, width of the features that the classifier sees.
            fixed_features: nothing that trains moves the features, so that the metric terms
                would cost time and change nothing.
        """
        counts, num_experts = self.data.label_space.counts, int(self.config.model.num_experts)
        if self.make_loss is not None:
            return self.make_loss(counts, num_experts, prior).to(self.device)
        if (own := self.config.objective.loss) is not None:
            return own_loss(own, counts, num_experts, prior).to(self.device)
        return Objective.from_config(
            self.config,
            counts,
            num_experts=num_experts,
            prior=prior,
            num_features=num_features,
            fixed_features=fixed_features,
        ).to(self.device)
