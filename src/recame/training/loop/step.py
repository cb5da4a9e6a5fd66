"""What one training step does, top to bottom: from stored pixels to a loss that is differentiated.

A frozen trunk's step is here too; a student's, whose teacher answers first, in `student/step.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recame.contracts import Batch, ExpertOutput, LossResult, ensemble_logits
from recame.data.transforms import Augment, Mix, to_unit
from recame.inference.forward import evaluating
from recame.losses import Labels, StudentObjective, TrainingLoss
from recame.models import MultiExpertClassifier
from recame.models.gates import every_attention, gate_spread, reading_gates
from recame.training.loop.cuda_graph import GraphedStep
from recame.training.loop.memory import of_all_processes
from recame.training.loop.trunk import TrunkCache


class TrainingStep:
    """Augment, mix, forward, loss, backward.

    Args:
        model: the experts.
        objective: the loss.
        scale: what a stored pixel is divided by.
        augment: random changes of a batch, or None.
        mix: mixup and cutmix, or None.
        compiled: run the forward through `torch.compile`.
        graphed: replay forward, loss and backward as a CUDA graph, where the batch is on a GPU.
    """

    def __init__(
        self,
        model: MultiExpertClassifier,
        objective: TrainingLoss | StudentObjective,
        *,
        scale: float,
        augment: Augment | None = None,
        mix: Mix | None = None,
        compiled: bool = False,
        graphed: bool = False,
    ) -> None:
        self.model, self.objective = model, objective
        self.scale, self.augment, self.mix = scale, augment, mix
        self.forward: Callable[[Tensor], ExpertOutput] = (
            torch.compile(model) if compiled else model.__call__
        )
        self.graphed = graphed
        self.graph: GraphedStep | None = None
        #: Whether several processes train, so that what a loss remembers is of all.
        self.together = False

    def __call__(self, batch: Batch, generator: torch.Generator) -> LossResult:
        """The loss of a batch, for `backward`, and the parts that are recorded.

        Args:
            batch: on the model's device.
            generator: on the CPU; draws the changes of the images.
        """
        images = to_unit(batch.images, self.scale)
        if self.augment is not None:
            images = self.augment(images, generator)
        labels = [(batch.target, 1.0)]
        if self.mix is not None:
            images, permutation, lam = self.mix(images, generator)
            labels = [(batch.target, lam), (batch.target[permutation], 1 - lam)]
        if self.graphed and images.is_cuda:
            if self.graph is None:
                network = nn.ModuleList([self.model, self.objective])
                self.graph = GraphedStep(network, self.loss)
            replayed = self.graph(images, labels, self.objective.deferred)
            if replayed is not None:
                return replayed
        return self.loss(images, labels)

    def loss(self, images: Tensor, labels: Sequence[tuple[Tensor, Tensor | float]]) -> LossResult:
        """Forward and objective.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: class indices (B,) and their weight; a mixed batch has two.
        """
        output = self.forward(images)
        result = weighted([(self.objective(output, target), share) for target, share in labels])
        self.remember(output, labels)
        return result

    def remember(self, output: ExpertOutput, labels: Labels) -> None:
        """Tell a loss with a memory what has been shown."""
        if self.objective.remembers:
            seen = of_all_processes(output, labels) if self.together else (output, labels)
            self.objective.remember(*seen)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate, or take what a replayed graph has differentiated already."""
        if self.graph is None or not self.graph.set_gradients():
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def decide(self, batch: Batch) -> Tensor:
        """The ensemble's classes (B,) of untouched images: who is asked at validation."""
        output = self.forward(to_unit(batch.images, self.scale))
        return ensemble_logits(output.logits).argmax(1)

    @torch.no_grad()
    def workings(self, batch: Batch) -> dict[str, Tensor]:
        """Whether the terms of the loss and the attention do anything on untouched images.

        Returns:
            () numbers of `TrainingLoss.workings` and, with attention, of `gate_spread`.
        """
        layers = every_attention(self.model)
        with evaluating(self.model), reading_gates(layers) as read:
            output: ExpertOutput = self.model(to_unit(batch.images, self.scale))
        gates = [part for parts in read for part in parts]
        found = self.objective.workings(output, batch.target)
        return found | gate_spread(gates) if gates else found


class TrunkStep(TrainingStep):
    """The step of a frozen trunk: its cached outputs take the images' place, then tails and heads.

    Args:
        model: the experts.
        objective: the loss.
        scale: what a stored pixel is divided by, at validation.
        trunk: outputs of the training images, which each batch's `index` numbers.
    """

    def __init__(
        self,
        model: MultiExpertClassifier,
        objective: TrainingLoss,
        *,
        scale: float,
        trunk: TrunkCache,
    ) -> None:
        super().__init__(model, objective, scale=scale)
        self.trunk = trunk

    def __call__(self, batch: Batch, generator: torch.Generator) -> LossResult:
        """The loss of a batch, each image under a view drawn at random."""
        maps, pooled = self.trunk.take(batch.index, generator, batch.target.device)
        output = self.model.from_trunk(maps, pooled)
        result: LossResult = self.objective(output, batch.target)
        self.remember(output, [(batch.target, 1.0)])
        return result


def weighted(results: Sequence[tuple[LossResult, Tensor | float]]) -> LossResult:
    """Loss of mixed images: of each of their labels its share (Zhang et al., mixup, ICLR 2018)."""
    if len(results) == 1:
        return results[0][0]
    (first, weight), (second, other) = results
    parts = {name: weight * first.parts[name] + other * second.parts[name] for name in first.parts}
    return LossResult(weight * first.total + other * second.total, parts)
