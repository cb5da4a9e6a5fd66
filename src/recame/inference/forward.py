"""Predict one batch of stored pixels, with test-time augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recame.contracts import Array, ExpertOutput, PreprocessSpec, ensemble_logits
from recame.data.stored_views import stored_view
from recame.data.transforms import dihedral_view, to_unit
from recame.inference.device import Precision
from recame.inference.run_graph import RunGraph
from recame.inference.weighting import weighted_logits
from recame.models import FrozenForward


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode; at the end, each module gets its earlier mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Outputs(nn.Module):
    """Returns a model's logits and features as a tuple, as a graph needs it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> logits (B, E, C), features (B, E, D)."""
        output: ExpertOutput = self.model(images)
        return output.logits, output.features


def steps_of_views(num_views: int) -> list[int]:
    """Possible numbers of views up to a given one: sizes of groups of flips and rotations.

    Examples:
        >>> steps_of_views(4)
        [1, 2, 4]
    """
    return [step for step in (1, 2, 4, 8) if step < num_views] + [num_views]


class BatchForward:
    """Applies a model to batches of stored pixels, with test-time augmentation.

    Each of the first `num_views` flips and rotations of the image (view 0 is the image itself)
    gives softmax probabilities. Their mean over the views is returned, for the ensemble (softmax of
    the mean logits) and for each expert alone. The fastest available forward pass
    (`FrozenForward`) is prepared at the first batch.

    Args:
        model: takes images in [0, 1], (B, C, H, W), and returns `ExpertOutput`; on `device`, in
            evaluation mode.
        spec: of the images; its scale divides stored pixels, and its tiles are rotated one by one.
        num_views: 1 to 8.
        num_images: number of images to come, which decides whether preparing a graph pays off.
        device: of the model.
        precision: `bf16` or `16` run under autocast.
        graph: the run's graph, used instead of the model if given.

    Attributes:
        expert_weights: (E,) weights of the experts' logits in the ensemble; None: their mean.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        spec: PreprocessSpec,
        num_views: int,
        num_images: int,
        device: torch.device | str,
        precision: Precision = "32",
        graph: RunGraph | None = None,
    ) -> None:
        self._graph = graph
        self._module = _Outputs(model)
        self._scale, self._pieces = spec.scale, spec.pieces
        self._num_views = num_views
        self._num_images = num_images
        self._device = torch.device(device)
        self._precision = precision
        self._forward: FrozenForward | None = None
        self.expert_weights: Tensor | None = None

    def __call__(
        self, images: Array, *, with_features: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Predict one batch; call it in inference mode.

        Args:
            images: (B, H, W, C) stored pixels.
            with_features: also return the features of view 0.

        Returns:
            Probabilities of each expert (B, E, C) and of the ensemble (B, C), and features
            (B, E, D) or None, on the device.
        """
        if self._graph is not None and self.expert_weights is None:
            # The same bits as in `predict`.
            found = self._graph.averaged(images, self._num_views, self._pieces)
            each, mean, seen = map(torch.from_numpy, found)
            return each, mean, seen if with_features else None
        experts: Tensor | None = None
        ensemble: Tensor | None = None
        features: Tensor | None = None
        for logits, seen in self._views(images, self._num_views):
            alone, together = logits.softmax(-1), self._together(logits).softmax(-1)
            experts = alone if experts is None else experts + alone
            ensemble = together if ensemble is None else ensemble + together
            if with_features and features is None:
                features = seen
        assert experts is not None
        assert ensemble is not None
        return experts / self._num_views, ensemble / self._num_views, features

    def grouped(
        self, images: Array, groups: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        """Predict one batch for several ensembles of the experts; call it in inference mode.

        Args:
            images: (B, H, W, C) stored pixels.
            groups: the experts of each ensemble.

        Returns:
            For each number of `steps_of_views`: probabilities of each expert (B, E, C), and of each
            ensemble (B, C), on the device.
        """
        views = [logits for logits, _ in self._views(images, self._num_views)]
        experts = torch.stack([logits.softmax(-1) for logits in views])
        ensembles = [
            torch.stack([ensemble_logits(v[:, list(group)]).softmax(-1) for v in views])
            for group in groups
        ]
        return [
            (experts[:num].mean(0), tuple(ensemble[:num].mean(0) for ensemble in ensembles))
            for num in steps_of_views(self._num_views)
        ]

    def mirrored_logits(self, images: Array) -> tuple[Tensor, Tensor]:
        """Logits of the images and of their mirror images; call it in inference mode.

        Args:
            images: (B, H, W, C) stored pixels.

        Returns:
            Twice (B, E, C), on the device.
        """
        (plain, _), (mirrored, _) = self._views(images, 2)
        return plain, mirrored

    def _views(self, images: Array, num_views: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (B, E, C) and features (B, E, D) of each view."""
        if self._graph is not None:
            for view in range(num_views):
                logits, features = self._graph(stored_view(images, view, self._pieces))
                yield torch.from_numpy(logits), torch.from_numpy(features)
            return
        unit = self._unit(images)
        for view in range(num_views):
            yield self._run(unit, view)

    def _unit(self, images: Array) -> Tensor:
        # A permuted NHWC array is NCHW in channels-last format: nothing is copied.
        stored = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device, non_blocking=True)
        return to_unit(stored, self._scale)

    def _together(self, logits: Tensor) -> Tensor:
        if self.expert_weights is None:
            return ensemble_logits(logits)
        return weighted_logits(logits, self.expert_weights)

    def _run(self, unit: Tensor, view: int) -> tuple[Tensor, Tensor]:
        turned = dihedral_view(unit, view, self._pieces)
        images = turned.contiguous(memory_format=torch.channels_last)
        if self._forward is None:
            self._forward = FrozenForward(
                self._module,
                images,
                num_images=self._num_images * self._num_views,
                precision=self._precision,
            )
        logits, features = self._forward(images)
        return logits, features
