"""The teacher beside the training loop: its lessons on each batch, and the loss made of them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import ExpertOutput, ensemble_logits
from recame.data.transforms import dihedral_view
from recame.losses import Lesson
from recame.models import (
    FrozenForward,
    MultiExpertClassifier,
)
from recame.models.gates import forward_with_gates


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
