"""The state of a run in progress, with the network and the loss that all phases build from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from recame.config import Config
from recame.data.dataset import InspectionSet
from recame.inference.device import Precision
from recame.losses import LossFactory, Objective, TrainingLoss, own_loss
from recame.models import Architecture, MultiExpertClassifier
from recame.progress import say
from recame.runs.folder import RunFolder
from recame.runs.trackers import Trackers
from recame.training.starting_weights import starting_network


@dataclass
class Measured:
    """Measured times of a run's stages on this machine, to estimate those of later stages.

    Attributes:
        stages: seconds of each stage, in order.
        forward_s: seconds of one image's forward pass, without a graph; None if not measured.
        graph_s: seconds for making a network's graph; None if none was made.
        graph_image_s: seconds of one image's forward pass through a graph; None if none was made.
        saving_s: seconds for writing a network; None if none was written.
        head_step_s: seconds of a step of the heads on cached features; None if none was taken.
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
    """A run in progress.

    Attributes:
        folder: for its files.
        config: its settings; after planning, without `auto`.
        data: the decoded images.
        device: where it trains.
        console: for progress.
        started: `time.monotonic()` at the start of the command, where its time budget begins.
        make_loss: factory of a loss that the `objective` settings cannot name; None: these decide.
        measured: times of its stages so far.
        trackers: experiment trackers that log it.
        callbacks: of the user, for fine-tuning's trainer.
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

    def decided(self, config: Config, reasons: Sequence[str]) -> OngoingRun:
        """The run with decided settings, which its folder holds, with the reasons, and says."""
        self.folder.explain(reasons)
        for reason in reasons:
            say(self.console, f"  {reason}")
        self.folder.save_config(config)
        return replace(self, config=config)

    @property
    def precision(self) -> Precision:
        """The planned precision."""
        precision = self.config.run.precision
        assert precision != "auto"
        return precision

    def new_model(self, *, pretrained: bool = True) -> MultiExpertClassifier:
        """The network before any training, seeded, on the device.

        Args:
            pretrained: whether to load the weights that the settings name, if any.
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
        """Move a network to the device, in the memory format by which convolutions round."""
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
            fixed_features: whether the features do not change in training; metric terms are then
                left out, because they would have no effect.
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
