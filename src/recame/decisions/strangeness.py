"""How strange an image is to a model: scorers of its features and logits, with one interface.

A scorer is fitted once on the training images and kept as a few named arrays. It reads the features
(N, D), or (N, E, D) of E experts, and the logits (N, C), or (N, E, C); several experts' logits are
combined into the ensemble's. The experts' features are concatenated (N, E * D), not averaged: each
expert has its own axes, and the ensemble's logits are linear in the concatenated features.

A higher score is stranger. Features or logits with NaN or infinite values have a score of inf,
whatever the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np

from recame.contracts import Array, BoolArray, FloatArray, IntArray, ensemble_logits
from recame.errors import CheckpointError, DataError

#: Images that are scored at once.
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Scorer(ABC):
    """A fitted method; its fields are arrays, and they are all that has to be kept.

    Attributes:
        name: of the method.
        shapes: field -> its axes; the same letter stands for the same length. D is the length of
            all experts' concatenated features.
    """

    name: ClassVar[str]
    shapes: ClassVar[Mapping[str, str]] = {}

    @classmethod
    @abstractmethod
    def fit(cls, features: FloatArray | None, logits: FloatArray, target: IntArray) -> Self:
        """Fit on training images; images without a class, or with NaN, are left out.

        Args:
            features: (N, D) or (N, E, D); None if the method reads only logits.
            logits: (N, C) or (N, E, C).
            target: (N,) class indices; -1 if the label is unknown. A class may have no image.

        Raises:
            DataError: there is no image to fit on, or the arrays do not fit each other.
        """

    @abstractmethod
    def _strangeness(self, features: FloatArray, logits: FloatArray) -> FloatArray:
        """Scores (N,) of (N, E, D) and (N, E, C)."""

    def score(self, features: FloatArray | None, logits: FloatArray) -> FloatArray:
        """Score how strange images are.

        Args:
            features: (N, D) or (N, E, D); None if the method reads only logits.
            logits: (N, C) or (N, E, C).

        Returns:
            (N,) float64; a higher score is stranger; inf if features or logits are not finite.

        Raises:
            DataError: the arrays do not fit each other, or the fitted scorer.
        """
        seen, said = self._checked(features, logits)
        found = np.empty(len(said))
        for start in range(0, len(said), _BLOCK):
            rows = slice(start, start + _BLOCK)
            # Numbers whose sum of squares overflows count as infinite.
            with np.errstate(over="ignore", invalid="ignore"):
                usable = usable_rows(seen[rows]) & usable_rows(said[rows])
                scores = self._strangeness(seen[rows], said[rows])
            found[rows] = np.where(usable & ~np.isnan(scores), scores, np.inf)
        return found

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays in bytes."""
        return sum(array.nbytes for array in self.to_arrays().values())

    def to_arrays(self) -> dict[str, Array]:
        """Return the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """Make the scorer from what `to_arrays` returned.

        Raises:
            CheckpointError: arrays are missing or unknown, or have a wrong shape or no numbers.
        """
        sides: dict[str, int] = {}
        fits = set(arrays) == set(cls.shapes)
        for name, letters in cls.shapes.items() if fits else ():
            array = arrays[name]
            fits &= array.ndim == len(letters) and array.dtype.kind in "fi"
            fits = fits and bool(np.isfinite(array).all())
            for letter, side in zip(letters, array.shape, strict=False):
                fits &= sides.setdefault(letter, side) == side
        if not fits:
            told = {name: array.shape for name, array in arrays.items()}
            raise CheckpointError(
                f"The arrays of the scorer {cls.name!r} are {told}, but it needs "
                f"{dict(cls.shapes)}, all of them numbers: the file was edited or damaged, and "
                "unknown images would not be recognised. Copy it again from the run that wrote it."
            )
        return cls(**arrays)

    def _checked(
        self, features: FloatArray | None, logits: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Both with an axis of experts, as float32."""
        seen, said = with_experts(features, logits)
        sides = [getattr(self, name).shape[-1] for name, s in self.shapes.items() if s[-1:] == "D"]
        width = seen.shape[1] * seen.shape[2]
        if sides and width != sides[0]:
            raise DataError(
                f"The features have length {width}, but the scorer {self.name!r} was fitted to "
                f"length {sides[0]}: they are from another model. Fit it again on this model's "
                "features."
            )
        return seen, said


class _LogitScorer(Scorer):
    """A scorer that reads only logits; it keeps no arrays."""

    @classmethod
    def fit(cls, features: FloatArray | None, logits: FloatArray, target: IntArray) -> Self:
        """See `Scorer.fit`; there is nothing to fit."""
        training_rows(features, logits, target)
        return cls()


class MaxSoftmax(_LogitScorer):
    """Minus the log of the largest probability (Hendrycks and Gimpel, ICLR 2017): the baseline.

    The log gives the same ranking, but still separates images whose probability rounds to 1.
    """

    name: ClassVar[str] = "max_softmax"

    def _strangeness(self, features: FloatArray, logits: FloatArray) -> FloatArray:
        below = together(logits)
        below -= below.max(1, keepdims=True)
        # The largest logit is left out; next to it, the others would round to 0.
        np.put_along_axis(below, below.argmax(1)[:, None], -np.inf, 1)
        return np.asarray(np.log1p(np.exp(below).sum(1)))


class MaxLogit(_LogitScorer):
    """Minus the largest logit (Hendrycks et al., ICML 2022)."""

    name: ClassVar[str] = "max_logit"

    def _strangeness(self, features: FloatArray, logits: FloatArray) -> FloatArray:
        return np.asarray(-together(logits).max(1))


class Energy(_LogitScorer):
    """Minus the log of the sum of the logits' exponentials (Liu et al., NeurIPS 2020), at T = 1."""

    name: ClassVar[str] = "energy"

    def _strangeness(self, features: FloatArray, logits: FloatArray) -> FloatArray:
        return -log_sum(together(logits))


class Disagreement(_LogitScorer):
    """Mean Kullback-Leibler divergence of the experts' probabilities from their mean; E >= 2."""

    name: ClassVar[str] = "disagreement"

    @classmethod
    def fit(cls, features: FloatArray | None, logits: FloatArray, target: IntArray) -> Self:
        """See `Scorer.fit`."""
        _check_experts(logits)
        return super().fit(features, logits, target)

    def _strangeness(self, features: FloatArray, logits: FloatArray) -> FloatArray:
        _check_experts(logits)
        wide = logits.astype(np.float64)
        each = wide - log_sum(wide, keepdims=True)
        mean = log_sum(each, axis=1, keepdims=True) - np.log(each.shape[1])
        return np.asarray((np.exp(each) * (each - mean)).sum(2).mean(1))


def training_rows(
    features: FloatArray | None, logits: FloatArray, target: IntArray
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Select the images that a scorer can be fitted on: (N, E, D), (N, E, C) and (N,).

    Raises:
        DataError: there is none, or the arrays do not fit each other.
    """
    seen, said = with_experts(features, logits)
    if len(target) != len(said):
        raise DataError(
            f"There are {len(said)} images, but {len(target)} targets. Give one target for each "
            "image."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        fit = (target >= 0) & usable_rows(seen) & usable_rows(said)
    if not fit.any():
        raise DataError(
            f"None of {len(said)} training images has both a class and finite outputs, so the "
            "scorer cannot be fitted. Give training images with labels."
        )
    return seen[fit], said[fit], target[fit]


def with_experts(features: FloatArray | None, logits: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Features (N, E, D), with D = 0 if there are none, and logits (N, E, C), float32.

    Raises:
        DataError: the numbers of images differ, or an array has another number of axes.
    """
    if features is None:
        features = np.zeros((len(logits), 1, 0), np.float32)
    shapes = f"features {features.shape} and logits {logits.shape}"
    if {features.ndim, logits.ndim} - {2, 3} or len(features) != len(logits):
        raise DataError(
            f"There are {shapes}, which do not fit each other: give (N, D) or (N, E, D) together "
            "with (N, C) or (N, E, C)."
        )
    seen, said = (
        np.asarray(array if array.ndim == 3 else array[:, None], np.float32)
        for array in (features, logits)
    )
    return seen, said


def together(logits: FloatArray) -> FloatArray:
    """The ensemble's logits (N, C), float64, from the experts' logits (N, E, C)."""
    return ensemble_logits(logits.astype(np.float64))


def unit_rows(features: FloatArray) -> FloatArray:
    """(N, E, D) -> (N, E * D) of length 1, with equal length for each expert; 0 stays 0."""
    length = np.sqrt(np.einsum("ned,ned->ne", features, features) * features.shape[1])
    unit: FloatArray = features / np.maximum(length, 1e-12)[:, :, None]
    return unit.reshape(len(features), -1)


def usable_rows(array: FloatArray) -> BoolArray:
    """(N,) whether all numbers of a row are finite, and their sum of squares is."""
    flat = array.reshape(len(array), -1)
    usable: BoolArray = np.isfinite(np.einsum("nd,nd->n", flat, flat))
    return usable


def log_sum(values: FloatArray, axis: int = -1, *, keepdims: bool = False) -> FloatArray:
    """Log of the sum of the exponentials."""
    top = values.max(axis, keepdims=True)
    found: FloatArray = np.log(np.exp(values - top).sum(axis, keepdims=True)) + top
    return found if keepdims else found.squeeze(axis)


def _check_experts(logits: FloatArray) -> None:
    if logits.ndim != 3 or logits.shape[1] < 2:
        raise DataError(
            f"The logits {logits.shape} are from one expert, but disagreement needs two. Give "
            "(N, E, C) of two experts or more, or use another scorer."
        )
