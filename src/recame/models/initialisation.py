"""Initialise a cosine classifier with the classes' mean features, or with text features.

Source, for text features (semantic initialisation) and for class means as their substitute without
a text encoder: Shi et al., LIFT, ICML 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recame.errors import CheckpointError
from recame.models.classifier import ExpertHead
from recame.names import quoted

Initialisation = Literal["random", "class_means"] | Path


def class_means(pooled: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The mean feature of each class.

    Args:
        pooled: (N, ..., P); the axes between may be views or experts.
        target: (N,) class indices.
        num_classes: C.

    Returns:
        (C, ..., P); NaN for a class without an image.

    Examples:
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[2.],
                [5.]])
    """
    sums = pooled.new_zeros(num_classes, *pooled.shape[1:]).index_add_(0, target, pooled)
    counts = torch.bincount(target, minlength=num_classes).to(pooled.dtype)
    return sums / counts.view(-1, *(1,) * (pooled.ndim - 1))


def initialise_classifier(
    head: ExpertHead,
    how: Initialisation,
    pooled: Tensor,
    target: Tensor,
    names: Sequence[str],
) -> None:
    """Set a head's feature normalisation, and the directions of its cosine classifier, in place.

    Args:
        head: of E experts.
        how: `random` keeps the classifier's random weights; `class_means`; or a file for
            `read_text_features`.
        pooled: (N, V, P) features of training images under V views, or (N, V, E, P).
        target: (N,) class indices.
        names: C class names, index order.

    Raises:
        ConfigError: the head has no cosine classifier on the pooled features, or the file's
            features have another width.
        CheckpointError: the file cannot be read, or lacks a class.
    """
    flat = pooled.reshape(-1, head.shape[1])
    head.set_standardisation(flat.mean(0), flat.std(0, correction=0))
    if how == "class_means":
        head.set_class_means(class_means(head.mean_piece(pooled.mean(1)), target, len(names)))
    elif how != "random":
        assert isinstance(how, Path)
        head.set_class_directions(read_text_features(how, names))


def read_text_features(path: Path, names: Sequence[str]) -> Tensor:
    """Read features of the class names, from the text encoder of the backbone's pretraining.

    Args:
        path: a .safetensors file with one vector (D,) under each class's name, or a .npy file of
            (C, D) whose rows follow the sorted class names.
        names: C class names, index order.

    Returns:
        (C, D) float32, index order.

    Raises:
        CheckpointError: the file is missing, unreadable, or lacks a class.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
            missing = [name for name in names if name not in found]
            if missing:
                raise CheckpointError(
                    f"{path} holds no text features of {', '.join(map(quoted, missing[:12]))} (it "
                    f"has {', '.join(map(quoted, list(found)[:12]))}): the classifier needs a "
                    "vector for each class, under its name. Write the file with this set's class "
                    "names."
                )
            features = torch.stack([found[name] for name in names]).float()
        else:
            rows = torch.from_numpy(np.load(path, allow_pickle=False)).float()
            if rows.ndim != 2 or len(rows) != len(names):
                raise CheckpointError(
                    f"{path} holds an array {tuple(rows.shape)}, but one row for each of "
                    f"{len(names)} sorted class names is needed: write it again with these."
                )
            features = torch.empty_like(rows)
            features[np.argsort(np.asarray(names, dtype=str))] = rows
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as text features ({' '.join(str(error).split())[:200]}): set "
            "model.initialisation to random, class_means, or a .safetensors or .npy file."
        ) from error
    if features.ndim != 2 or not bool(torch.isfinite(features).all()):
        raise CheckpointError(
            f"{path} holds values of shape {tuple(features.shape)}, some of which may not be "
            "finite: each class needs one vector of finite numbers."
        )
    return features
