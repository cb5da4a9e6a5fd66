"""The teacher in the training loop: its answers for each batch."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import ExpertOutput, ensemble_logits
from recame.data.transforms import dihedral_view
from recame.losses import Lesson
from recame.models import FrozenForward, MultiExpertClassifier
from recame.models.gates import forward_with_gates
from recame.pieces import apart, together


class Resized(nn.Module):
    """Resize images of any size to the size of a model, and run it.

    Args:
        model: its specification has the size.
    """

    def __init__(self, model: MultiExpertClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> ExpertOutput:
        """Map (B, C, H, W) in [0, 1] to the model's output."""
        output: ExpertOutput = self.model(at_size(images, self.model))
        return output


def at_size(images: Tensor, model: MultiExpertClassifier) -> Tensor:
    """Resize images (B, C, H, W) to the size of a model's training."""
    spec = model.spec
    if tuple(images.shape[2:]) == (spec.height, spec.width):
        return images
    seen = apart(images, spec.pieces)
    resized = functional.interpolate(seen, spec.piece_size, mode="bilinear", antialias=True)
    return together(resized, spec.pieces)


class Teacher:
    """A finished run's frozen ensemble, as fast as the device allows.

    Args:
        model: the experts, on the device; never trained here.
        num_views: number of flips and rotations of each image that are averaged.
        features: whether answers include features.
        gates: whether answers include gates.
        num_images: approximate number of images to process; decides whether a graph pays off.
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
        self._lesson = partial(_lesson, self.model, num_views, gates)
        self._features, self._gates = features, gates
        self._num_images, self._precision = num_images * num_views, precision
        self._forward: FrozenForward | None = None

    def __call__(self, images: Tensor) -> Lesson:
        """Classify a batch.

        Args:
            images: (B, C, H, W) in [0, 1], of any size.
        """
        images = at_size(images, self.model)
        if self._forward is None:
            self._forward = FrozenForward(
                self.model,
                images,
                function=self._lesson,
                num_images=self._num_images,
                precision=self._precision,
            )
        logits, features, *gates = self._forward(images)
        return Lesson(
            logits, features if self._features else None, gates[0] if self._gates else None
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """Return itself, so that copies of the student's step (for the moving average) share it."""
        return self


def _lesson(
    model: MultiExpertClassifier, num_views: int, gates: bool, images: Tensor
) -> tuple[Tensor, ...]:
    """Images (B, C, H, W) -> logits (B, C), features (B, D), and gates (B, S, R) if requested."""
    rest: tuple[Tensor, ...]
    if gates:
        output, seen = forward_with_gates(model, images)
        rest = (output.features.mean(1), seen)
    else:
        output = model(images)
        rest = (output.features.mean(1),)
    logits = ensemble_logits(output.logits)
    if num_views > 1:
        # Average probabilities over views, as in evaluation; their log gives logits again.
        mean = logits.softmax(-1)
        for view in range(1, num_views):
            mean = mean + ensemble_logits(
                model(dihedral_view(images, view, model.spec.pieces)).logits
            ).softmax(-1)
        logits = (mean / num_views).clamp_min(1e-12).log()
    return (logits, *rest)
