"""One training step: from stored pixels to the loss and its backward pass.

The step for a frozen shared backbone is here too; a student's step is in `student/step.py`.
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

#: Standard deviation over a batch below which a normalised feature tells nothing of its images.
SILENT = 1e-4


class TrainingStep:
    """A training step: augment, mix, forward pass, loss, backward pass.

    Args:
        model: the experts.
        objective: the loss.
        scale: divisor of stored pixels.
        augment: random changes of a batch, or None.
        mix: mixup and cutmix, or None.
        compiled: whether to run the forward pass through `torch.compile`.
        graphed: whether to replay forward pass, loss and backward pass as a CUDA graph, if the
            batch is on a GPU.
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
        #: Whether several processes train; the memory of a loss then gets the batches of all.
        self.together = False

    def __call__(self, batch: Batch, generator: torch.Generator) -> LossResult:
        """The loss of a batch, for `backward`, and its parts, for the log.

        Args:
            batch: on the model's device.
            generator: on the CPU; for the random changes of the images.
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
        """Forward pass and loss.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: class indices (B,) and their weight; a mixed batch has two.
        """
        output = self.forward(images)
        result = weighted([(self.objective(output, target), share) for target, share in labels])
        self.remember(output, labels)
        return result

    def remember(self, output: ExpertOutput, labels: Labels) -> None:
        """Update the memory of a loss, if it has one."""
        if self.objective.remembers:
            seen = of_all_processes(output, labels) if self.together else (output, labels)
            self.objective.remember(*seen)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward pass, or the gradients that a replayed graph has computed already."""
        if self.graph is None or not self.graph.set_gradients():
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def decide(self, batch: Batch) -> Tensor:
        """The ensemble's classes (B,) for unaugmented images, for validation."""
        output = self.forward(to_unit(batch.images, self.scale))
        return ensemble_logits(output.logits).argmax(1)

    @torch.no_grad()
    def workings(self, batch: Batch) -> dict[str, Tensor]:
        """Measure whether loss terms and attention have an effect on unaugmented images.

        Returns:
            () numbers of `TrainingLoss.workings` and, with attention, of `gate_spread`; of several
            images also `silent`, see `silent_share`.
        """
        layers = every_attention(self.model)
        with evaluating(self.model), reading_gates(layers) as read:
            output: ExpertOutput = self.model(to_unit(batch.images, self.scale))
        gates = [part for parts in read for part in parts]
        found = self.objective.workings(output, batch.target)
        if len(batch.images) > 1:
            found["silent"] = silent_share(output.features)
        return found | gate_spread(gates) if gates else found


class TrunkStep(TrainingStep):
    """The step with a frozen shared backbone: cached outputs, then expert branches and heads.

    Args:
        model: the experts.
        objective: the loss.
        scale: divisor of stored pixels, for validation.
        trunk: the backbone's outputs for the training images, by each batch's `index`.
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
        """The loss of a batch; for each image, one view is drawn at random."""
        maps, pooled = self.trunk.take(batch.index, generator, batch.target.device)
        output = self.model.from_trunk(maps, pooled)
        result: LossResult = self.objective(output, batch.target)
        self.remember(output, [(batch.target, 1.0)])
        return result


def weighted(results: Sequence[tuple[LossResult, Tensor | float]]) -> LossResult:
    """Loss of mixed images: losses of their labels, by share (Zhang et al., mixup, ICLR 2018)."""
    if len(results) == 1:
        return results[0][0]
    (first, weight), (second, other) = results
    parts = {name: weight * first.parts[name] + other * second.parts[name] for name in first.parts}
    return LossResult(weight * first.total + other * second.total, parts)


def silent_share(features: Tensor) -> Tensor:
    """Share of features that are the same for all images: behind a rectifier that never opens.

    Args:
        features: (B, E, D), as the classifier sees them.

    Returns:
        (), from 0 to 1.

    Examples:
        >>> float(silent_share(torch.tensor([[[1.0, 3.0]], [[2.0, 3.0]]])))
        0.5
    """
    return (features.std(0, correction=0) < SILENT).float().mean()
