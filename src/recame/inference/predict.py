"""Apply a model to cached images: probabilities of each expert and of the ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from recame.contracts import Array, FloatArray, Predictions, PreprocessSpec
from recame.data.dataset import InspectionSet, SplitView
from recame.inference.device import Precision
from recame.inference.forward import BatchForward, evaluating, steps_of_views
from recame.inference.run_graph import RunGraph
from recame.inference.weighting import Weighting, stability_weights
from recame.progress import Progress, silent


class _Required(TypedDict):
    num_views: int
    batch_size: int
    device: torch.device | str


class Forwarding(_Required, total=False):
    """How a model is applied to images, the same for every function here.

    - `num_views`: 1 to 8 views of test-time augmentation, averaged;
    - `batch_size`: images in a forward pass;
    - `device`: of the model;
    - `precision`: `32` by default; `bf16` or `16` run under autocast;
    - `graph`: the run's graph, used instead of the model if given.
    """

    precision: Precision
    graph: RunGraph | None


def predict_cached(
    model: nn.Module,
    images: Array,
    rows: Array,
    *,
    spec: PreprocessSpec,
    on_progress: Progress = silent,
    with_features: bool = False,
    **how: Unpack[Forwarding],
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Predict rows of an image cache.

    Args:
        model: as for `BatchForward`; it gets its training mode back.
        images: (M, H, W, C) stored pixels, an array or a memory map.
        rows: (N,) rows of `images`.
        spec: of the images.
        on_progress: told of each batch.
        with_features: also return the features of the untouched image.
        how: see `Forwarding`.

    Returns:
        Probabilities of each expert (N, E, C) and of the ensemble (N, C), and features (N, E, D)
        or None. With N = 0, E and D are 0.
    """
    forward = _forward(model, spec, len(rows), how)
    with evaluating(model), torch.inference_mode():
        return _predict(forward, images, rows, how, on_progress, with_features=with_features)


def predict_groups(
    model: nn.Module,
    inspection_set: InspectionSet,
    split: str,
    groups: Mapping[str, Sequence[int]],
    **how: Unpack[Forwarding],
) -> dict[tuple[str, int], Predictions]:
    """Predict a split with several ensembles of a model's experts in one pass.

    Args:
        model: as for `predict_cached`.
        inspection_set: the images, decoded as the model expects them.
        split: name of the split.
        groups: name -> the experts of an ensemble.
        how: see `Forwarding`.

    Returns:
        (name, number of views) for each number of `steps_of_views` -> predictions, the same as
        `predict_split` gives for a model with only these experts.
    """
    view = inspection_set.view(split)
    forward = _forward(model, inspection_set.spec, len(view.rows), how)
    steps = steps_of_views(how["num_views"])
    found = {(name, step): _Collected() for name in groups for step in steps}
    with evaluating(model), torch.inference_mode():
        for batch in _batches(inspection_set.cache.images, view.rows, how):
            answers = forward.grouped(batch, list(groups.values()))
            for step, (experts, ensembles) in zip(steps, answers, strict=True):
                for (name, group), ensemble in zip(groups.items(), ensembles, strict=True):
                    found[name, step].add(experts[:, list(group)], ensemble, None)
    return {
        key: _with_labels(inspection_set, view, *collected.arrays())
        for key, collected in found.items()
    }


def predict_split(
    model: nn.Module,
    inspection_set: InspectionSet,
    split: str,
    *,
    on_progress: Progress = silent,
    with_features: bool = False,
    weighting: Weighting = "mean",
    **how: Unpack[Forwarding],
) -> Predictions:
    """Predict one split of a set, with its labels and manifest columns.

    Args:
        model: as for `predict_cached`.
        inspection_set: the images, decoded as the model expects them.
        split: name of the split.
        on_progress: told of each batch.
        with_features: also keep the features.
        weighting: of the experts' logits in the ensemble. `stability` first learns weights on the
            whole split, from the images and their mirror images, without labels.
        how: see `Forwarding`.
    """
    view, images = inspection_set.view(split), inspection_set.cache.images
    stable = weighting == "stability"
    passing = len(view.rows) * (2 if stable else 1)
    forward = _forward(model, inspection_set.spec, passing, how)
    with evaluating(model), torch.inference_mode():
        if stable:
            pairs = [forward.mirrored_logits(b) for b in _batches(images, view.rows, how)]
            if pairs:
                first, second = (torch.cat(logits) for logits in zip(*pairs, strict=True))
                forward.expert_weights = stability_weights(first, second)
        found = _predict(forward, images, view.rows, how, on_progress, with_features=with_features)
    return _with_labels(inspection_set, view, *found, forward.expert_weights)


def _forward(
    model: nn.Module, spec: PreprocessSpec, num_images: int, how: Forwarding
) -> BatchForward:
    return BatchForward(
        model,
        spec=spec,
        num_images=num_images,
        num_views=how["num_views"],
        device=how["device"],
        precision=how.get("precision", "32"),
        graph=how.get("graph"),
    )


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


def _batches(images: Array, rows: Array, how: Forwarding) -> Iterator[Array]:
    size = how["batch_size"]
    for start in range(0, len(rows), size):
        yield np.ascontiguousarray(images[rows[start : start + size]])


def _predict(
    forward: BatchForward,
    images: Array,
    rows: Array,
    how: Forwarding,
    on_progress: Progress,
    *,
    with_features: bool,
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    collected, done = _Collected(), 0
    for batch in _batches(images, rows, how):
        collected.add(*forward(batch, with_features=with_features))
        done += len(batch)
        on_progress("predicting", done, len(rows))
    return collected.arrays()


class _Collected:
    """Results of batches, in the memory of the CPU."""

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
