"""Run a model over cached images: probabilities of each expert and of the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recame.contracts import Array, FloatArray, Predictions
from recame.data.dataset import InspectionSet, SplitView
from recame.inference.device import Precision
from recame.inference.forward import BatchForward, evaluating
from recame.inference.weighting import Weighting, stability_weights

#: Called with the number of images just done.
Progress = Callable[[int], None]


def predict_cached(
    model: nn.Module,
    images: Array,
    rows: Array,
    *,
    scale: float,
    num_views: int,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "32",
    on_progress: Progress | None = None,
    with_features: bool = False,
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Predict rows of an image cache.

    Args:
        model: as for `BatchForward`; its training mode is given back.
        images: (M, H, W, C) stored pixels, an array or a memory map.
        rows: (N,) rows of `images`.
        scale: what divides stored pixels to fall in [0, 1].
        num_views: 1 to 8.
        batch_size: images a forward pass.
        device: where the model lies.
        precision: `bf16` or `16` run under autocast.
        on_progress: called after each batch.
        with_features: also return the features of the untouched image.

    Returns:
        Probabilities of each expert (N, E, C) and of the ensemble (N, C), and features (N, E, D)
        or None. With N = 0, E and D are 0.
    """
    forward = BatchForward(
        model,
        scale=scale,
        num_views=num_views,
        num_images=len(rows),
        device=device,
        precision=precision,
    )
    with evaluating(model):
        batches = _batches(images, rows, batch_size)
        return _predict(forward, batches, on_progress, with_features=with_features)


def predict_groups(
    model: nn.Module,
    inspection_set: InspectionSet,
    split: str,
    groups: Mapping[str, Sequence[int]],
    *,
    num_views: int,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "32",
) -> dict[str, Predictions]:
    """Predict a split by several ensembles of a model's experts in one pass, by the ensemble rule.

    Args:
        model: as for `predict_cached`.
        inspection_set: the images, decoded as the model expects them.
        split: name of the split.
        groups: name -> the experts of an ensemble.
        num_views: 1 to 8 test-time views, averaged.
        batch_size: images a forward pass.
        device: where the model lies.
        precision: `bf16` or `16` run under autocast.

    Returns:
        Name -> predictions, as `predict_split` makes them of a model of these experts alone.
    """
    view = inspection_set.view(split)
    forward = BatchForward(
        model,
        scale=inspection_set.spec.scale,
        num_views=num_views,
        num_images=len(view.rows),
        device=device,
        precision=precision,
    )
    found: dict[str, _Collected] = {name: _Collected() for name in groups}
    with evaluating(model):
        for batch in _batches(inspection_set.cache.images, view.rows, batch_size):
            experts, ensembles = forward.grouped(batch, list(groups.values()))
            for (name, group), ensemble in zip(groups.items(), ensembles, strict=True):
                found[name].add(experts[:, list(group)], ensemble, None)
    return {
        name: _with_labels(inspection_set, view, *collected.arrays())
        for name, collected in found.items()
    }


def _with_labels(
    inspection_set: InspectionSet,
    view: SplitView,
    experts: FloatArray,
    ensemble: FloatArray,
    features: FloatArray | None = None,
    weights: Tensor | None = None,
) -> Predictions:
    return Predictions(
        table=inspection_set.table.iloc[view.indices].reset_index(drop=True),
        probabilities=ensemble,
        expert_probabilities=experts,
        target=np.asarray(view.targets, np.int64),
        features=features,
        expert_weights=None if weights is None else weights.cpu().numpy(),
    )


def _batches(images: Array, rows: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(rows), size):
        yield np.ascontiguousarray(images[rows[start : start + size]])


def _predict(
    forward: BatchForward,
    batches: Iterator[Array],
    on_progress: Progress | None,
    *,
    with_features: bool,
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    done = _Collected()
    for batch in batches:
        done.add(*forward(batch, with_features=with_features))
        if on_progress is not None:
            on_progress(len(batch))
    return done.arrays()


def _learn_weights(forward: BatchForward, batches: Iterator[Array]) -> Tensor | None:
    """Experts' weights by the stability of their answers on these images; None without images."""
    logits = [forward.mirrored_logits(batch) for batch in batches]
    if not logits:
        return None
    first, second = (torch.cat(parts) for parts in zip(*logits, strict=True))
    return stability_weights(first, second)


class _Collected:
    """Results of batches, on the host."""

    def __init__(self) -> None:
        self._experts: list[FloatArray] = []
        self._ensemble: list[FloatArray] = []
        self._features: list[FloatArray] = []

    def add(self, experts: Tensor, ensemble: Tensor, features: Tensor | None) -> None:
        self._experts.append(experts.cpu().numpy())
        self._ensemble.append(ensemble.cpu().numpy())
        if features is not None:
            self._features.append(features.cpu().numpy())

    def arrays(self) -> tuple[FloatArray, FloatArray, FloatArray | None]:
        if not self._experts:
            return np.zeros((0, 0, 0), np.float32), np.zeros((0, 0), np.float32), None
        features = np.concatenate(self._features) if self._features else None
        return np.concatenate(self._experts), np.concatenate(self._ensemble), features


def predict_split(
    model: nn.Module,
    inspection_set: InspectionSet,
    split: str,
    *,
    num_views: int,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "32",
    on_progress: Progress | None = None,
    with_features: bool = False,
    weighting: Weighting = "mean",
) -> Predictions:
    """Predict one split of a set, with its labels and manifest columns beside it.

    Args:
        model: as for `predict_cached`.
        inspection_set: the images, decoded as the model expects them.
        split: name of the split.
        num_views: 1 to 8 test-time views, averaged.
        batch_size: images a forward pass.
        device: where the model lies.
        precision: `bf16` or `16` run under autocast.
        on_progress: called with the number of images of each batch.
        with_features: also keep the features.
        weighting: of the experts' logits in the ensemble. `stability` first learns weights on the
            whole split, from the images and their mirror images; no label is used.
    """
    view, images = inspection_set.view(split), inspection_set.cache.images
    stable = weighting == "stability"
    forward = BatchForward(
        model,
        scale=inspection_set.spec.scale,
        num_views=num_views,
        num_images=len(view.rows) * (2 if stable else 1),
        device=device,
        precision=precision,
    )
    with evaluating(model):
        if stable:
            forward.expert_weights = _learn_weights(
                forward, _batches(images, view.rows, batch_size)
            )
        experts, ensemble, features = _predict(
            forward,
            _batches(images, view.rows, batch_size),
            on_progress,
            with_features=with_features,
        )
    return _with_labels(inspection_set, view, experts, ensemble, features, forward.expert_weights)
