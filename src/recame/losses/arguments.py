"""Check the arguments of a loss and convert them to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from recame.errors import ConfigError
from recame.losses.hard_category import num_hard_categories


def checked_weights(**weights: float) -> dict[str, float]:
    """Check that each weight is 0 (its term is left out) or more, and that not all are 0."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ConfigError(
                f"The weight of {name} is {weight}, but must be 0 (leaves the term out) or more: a "
                "negative one would reward mistakes."
            )
    if not any(weights.values()):
        raise ConfigError(
            "Every weight of the loss is 0, so there is nothing to learn: give at least one "
            f"of {', '.join(weights)} a weight above 0."
        )
    return weights


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that is not one of a `Literal`'s choices."""
    if value not in get_args(choices):
        raise ConfigError(
            f"{name}={value!r} is unknown: choose one of {', '.join(get_args(choices))}."
        )


def check_margin(margin: float, mode: str, *, normalised: bool) -> None:
    """Refuse a margin that no pair of images can ever reach."""
    if mode == "absolute" and normalised and not 0 < margin <= 2:
        raise ConfigError(
            f"margin={margin} with normalise_features=True: the distance of unit vectors is at "
            "most 2, so no pair could ever reach the margin. Give a margin in "
            "(0, 2], for example 1."
        )
    if mode == "relative" and not 0 < margin <= 2:
        raise ConfigError(
            f"margin={margin} with margin_mode='relative': it is a factor of the mean distance "
            "between images of different classes. Hardly any pair is further apart than twice this "
            "mean, so almost no pair could reach the margin. Give a factor in (0, 2], for "
            "example 1."
        )


def checked_counts(counts: Sequence[int] | Tensor) -> Tensor:
    """The (C,) training images of each class as float64."""
    images = torch.as_tensor(counts, dtype=torch.float64).detach().cpu()
    if (
        images.ndim != 1
        or len(images) < 2
        or not bool((images >= 0).all() & images.isfinite().all())
    ):
        raise ConfigError(
            f"counts={images.tolist()} must hold the number of training images (0 or more) of "
            "at least two classes, because the class prior comes from them. Take them from the "
            "label space."
        )
    return images


def checked_prior(prior: Tensor | None, num_classes: int) -> Tensor | None:
    """The (C,) shares of the classes as float64."""
    if prior is None:
        return None
    shares = torch.as_tensor(prior, dtype=torch.float64).detach().cpu()
    if shares.shape != (num_classes,) or not bool(
        (shares >= 0).all() & (0 < shares.sum() < torch.inf)
    ):
        raise ConfigError(
            f"prior={shares.tolist()} must hold one share, 0 or more and not all 0, for each of "
            f"{num_classes} classes: it says how often the sampler draws them."
        )
    return shares


def checked_num_hard(num_hard: int | None, fraction: float, num_classes: int) -> int:
    """The number of hard categories, the target's included."""
    number = num_hard_categories(num_classes, fraction) if num_hard is None else num_hard
    if not 1 <= number <= num_classes:
        raise ConfigError(
            f"num_hard={number} of {num_classes} classes: give 1 to {num_classes}, the target's "
            "category included, or leave it out and set hard_fraction."
        )
    return number


def checked_num_features(num_features: int | None) -> int:
    """Check D, the width of features and prototypes."""
    if num_features is None or num_features < 1:
        raise ConfigError(
            f"num_features={num_features} with intra_mode='clusters': the prototypes are as wide "
            "as the features and are created before any is seen. Give D of the features (B, E, D)."
        )
    return num_features
