"""How strange an image's features are: nearest neighbours, virtual logit, Mahalanobis distances.

What is kept of the training images is bounded, whatever their number: leading directions and a
drawn share of the images. Scoring an image is a few products of a matrix and a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.decisions.spectrum import (
    Precision,
    product,
    shrunk_precision,
    spectrum_of,
    squared_lengths,
)
from recame.decisions.strangeness import Scorer, log_sum, together, training_rows, unit_rows
from recame.errors import DataError

#: Numbers in what a scorer keeps of the training images, class means aside: 2 MiB of float32.
MOST_NUMBERS = 1 << 19


@dataclass(frozen=True, eq=False)
class NearestNeighbour(Scorer):
    """One minus the cosine to the k-th nearest training image (Sun et al., ICML 2022).

    Of features of length 1, an expert's each. k is 1 unless given: a class of one image has no
    second. Of the training images a bounded number is kept, as many of each class as it has or as
    its share allows, drawn at random.

    Attributes:
        memory: (M, D) features of length 1.
        k: () which neighbour.
    """

    name: ClassVar[str] = "knn"
    shapes: ClassVar[Mapping[str, str]] = {"memory": "MD", "k": ""}

    memory: FloatArray
    k: IntArray

    @classmethod
    def fit(
        cls,
        features: FloatArray | None,
        logits: FloatArray,
        target: IntArray,
        *,
        k: int = 1,
        most_numbers: int = MOST_NUMBERS,
        seed: int = 0,
    ) -> Self:
        """See `Scorer.fit`.

        Args:
            features: see there.
            logits: see there.
            target: see there.
            k: which neighbour; the last where fewer are kept.
            most_numbers: that are kept; an image of each class in any case.
            seed: of the images that are kept.
        """
        x, _, y = _seen(features, logits, target)
        order = np.random.default_rng(seed).permutation(len(y))
        order = order[np.argsort(y[order], kind="stable")]
        _, start, counts = np.unique(y[order], return_index=True, return_counts=True)
        place = np.arange(len(y)) - np.repeat(start, counts)  # within its class
        most = max(len(counts), most_numbers // x[0].size)
        kept = order[np.argsort(place, kind="stable")[:most]]
        return cls(unit_rows(x[kept]), np.array(min(k, len(kept))))

    def _strangeness(self, features: FloatArray, logits: FloatArray) -> FloatArray:
        near = unit_rows(features) @ self.memory.T
        place = len(self.memory) - int(self.k)
        found = (
            near.max(1) if place == len(self.memory) - 1 else np.partition(near, place)[:, place]
        )
        return np.asarray(1.0 - found, np.float64)


@dataclass(frozen=True, eq=False)
class VirtualLogit(Scorer):
    """ViM: a virtual class's logit beside the known ones' (Wang et al., CVPR 2022).

    Its logit is the length of what the leading directions of the training features leave of an
    image, scaled so that over the training images it is as large as the largest logit. The score
    is that logit minus the log of the sum of the others' exponentials, which ranks as the virtual
    class's probability does.

    Deviations: the origin, where the logits' linear part has no offset, comes from a least-squares
    fit of the logits to the features instead of the head's weights, which a cosine head does not
    have; and the leading directions are at most half of the features and half of the images, since
    they would leave nothing of few training images.

    Attributes:
        origin: (D,).
        principal: (R, D) leading directions of the features about it.
        scale: () of the virtual logit.
    """

    name: ClassVar[str] = "vim"
    shapes: ClassVar[Mapping[str, str]] = {"origin": "D", "principal": "RD", "scale": ""}

    origin: FloatArray
    principal: FloatArray
    scale: FloatArray

    @classmethod
    def fit(
        cls,
        features: FloatArray | None,
        logits: FloatArray,
        target: IntArray,
        *,
        most_numbers: int = MOST_NUMBERS,
    ) -> Self:
        """See `Scorer.fit`.

        Args:
            features: see there.
            logits: see there.
            target: see there.
            most_numbers: of the leading directions.
        """
        seen, said, _ = _seen(features, logits, target)
        x, largest = seen.reshape(len(seen), -1), together(said).max(1)
        origin = _origin(x, together(said))
        z = x - origin
        most = min(x.shape[1] // 2, len(x) // 2, most_numbers // x.shape[1])
        principal = spectrum_of(z, most).vectors
        left = _left_over(z, principal)
        usual = float(np.sqrt(squared_lengths(z).mean()))
        scale = abs(largest.mean()) / max(float(left.mean()), 1e-6 * usual, 1e-12)
        return cls(origin, principal, np.array(scale, np.float32))

    def _strangeness(self, features: FloatArray, logits: FloatArray) -> FloatArray:
        z = features.reshape(len(features), -1) - self.origin
        virtual = float(self.scale) * _left_over(z, self.principal)
        return virtual - log_sum(together(logits))


@dataclass(frozen=True, eq=False)
class Mahalanobis(Scorer):
    """Squared Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018), long-tailed.

    Of features of length 1, an expert's each. One covariance within the classes for all, in which
    a class of n images weighs as the square root of n - 1, so that the head does not decide it
    alone; its ridge is the shrinkage of Chen et al. (OAS, IEEE TSP 2010) for as many images as
    these weights are worth. Class means are drawn to their common mean, the more the fewer images
    they come from: by an empirical Bayes estimate of isotropic spreads within and between classes.
    Where no class has two images, one Gaussian about the common mean is all that is known.

    The inverse covariance is `scale * I - directions.T @ directions`: leading directions as they
    are, the others with their mean variance; exact where R takes all that the images span.

    Attributes:
        centre: (D,) mean of the classes' means.
        directions: (R, D).
        scale: ().
        classes: (C, D) twice the inverse covariance times each mean from the centre; C classes
            that have images.
        offsets: (C,) squared distance of each mean from the centre.
        background_directions: (Q, D), as `directions`, of a Gaussian of all classes together whose
            distance is subtracted (`RelativeMahalanobis`); Q is 0 without.
        background_scale: (), 0 without.
    """

    name: ClassVar[str] = "mahalanobis"
    relative: ClassVar[bool] = False
    shapes: ClassVar[Mapping[str, str]] = {
        "centre": "D",
        "directions": "RD",
        "scale": "",
        "classes": "CD",
        "offsets": "C",
        "background_directions": "QD",
        "background_scale": "",
    }

    centre: FloatArray
    directions: FloatArray
    scale: FloatArray
    classes: FloatArray
    offsets: FloatArray
    background_directions: FloatArray
    background_scale: FloatArray

    @classmethod
    def fit(
        cls,
        features: FloatArray | None,
        logits: FloatArray,
        target: IntArray,
        *,
        most_numbers: int = MOST_NUMBERS,
    ) -> Self:
        """See `Scorer.fit`.

        Args:
            features: see there.
            logits: see there.
            target: see there.
            most_numbers: of the directions, both kinds together.
        """
        seen, _, y = _seen(features, logits, target)
        x = unit_rows(seen)
        _, index, counts = np.unique(y, return_inverse=True, return_counts=True)
        means = _class_means(x, index, counts)
        centre, most = means.mean(0), most_numbers // x.shape[1] // (2 if cls.relative else 1)
        around = x - centre.astype(np.float32)
        if (counts > 1).any():
            within = _weighted(x - means.astype(np.float32)[index], index, counts - 1)
        else:
            freedom = np.array([max(1, len(x) - 1)])
            within = _weighted(around, np.zeros_like(index), freedom)
        precision, spread = shrunk_precision(*within, most), float((within[0] ** 2).sum())
        offset = (means - centre) * _kept_share(means, counts, spread)
        turned = precision.times(offset)
        background = Precision(np.zeros((0, x.shape[1]), np.float32), 0.0)
        if cls.relative:
            background = shrunk_precision(*_weighted(around, index, counts), most)
        return cls(
            centre.astype(np.float32),
            precision.directions,
            np.array(precision.scale, np.float32),
            (2 * turned).astype(np.float32),
            (turned * offset).sum(1).astype(np.float32),
            background.directions,
            np.array(background.scale, np.float32),
        )

    def _strangeness(self, features: FloatArray, logits: FloatArray) -> FloatArray:
        z = unit_rows(features) - self.centre
        length = squared_lengths(z)
        own = float(self.scale) * length - squared_lengths(z @ self.directions.T)
        nearest = own + (self.offsets - z @ self.classes.T).min(1)
        other = float(self.background_scale) * length
        other -= squared_lengths(z @ self.background_directions.T)
        return np.asarray(np.maximum(nearest, 0) - np.maximum(other, 0))


class RelativeMahalanobis(Mahalanobis):
    """`Mahalanobis` minus the distance from all classes together (Ren et al., arXiv 2106.09022)."""

    name: ClassVar[str] = "relative_mahalanobis"
    relative: ClassVar[bool] = True


def _seen(
    features: FloatArray | None, logits: FloatArray, target: IntArray
) -> tuple[FloatArray, FloatArray, IntArray]:
    """As `training_rows`, with features."""
    if features is None or not features.size:
        raise DataError(
            "There are no features, and a scorer of features was to be fitted: keep them when the "
            "training images are predicted, or take a scorer of logits."
        )
    return training_rows(features, logits, target)


def _weighted(offsets: FloatArray, index: IntArray, freedom: IntArray) -> tuple[FloatArray, float]:
    """Rows (N, D) whose products sum to a covariance, and how many images' worth that is.

    The covariance is the mean of the classes', each the sum of the products of its offsets (N, D)
    by its degrees of freedom (C,), with the roots of these for weights.
    """
    root = np.sqrt(freedom)
    share = np.divide(1, root * root.sum(), out=np.zeros_like(root), where=freedom > 0)
    rows = offsets * np.sqrt(share).astype(np.float32)[index, None]
    return rows, float(root.sum() ** 2 / np.count_nonzero(root))


def _class_means(x: FloatArray, index: IntArray, counts: IntArray) -> FloatArray:
    """(C, D) float64 of (N, D); every class has images."""
    order = np.argsort(index, kind="stable")
    start = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums: FloatArray = np.add.reduceat(x[order], start, axis=0, dtype=np.float64)
    return sums / counts[:, None]


def _kept_share(means: FloatArray, counts: IntArray, within: float) -> FloatArray:
    """(C, 1) how much of its distance from the centre each class mean keeps.

    A mean of n images scatters by within / n about the true one, and the true ones by `between`
    about the centre: n * between / (n * between + within) is the best guess.
    """
    if len(counts) == 1:
        return np.zeros((1, 1))
    scatter = float(((means - means.mean(0)) ** 2).sum()) / (len(counts) - 1)
    between = counts * max(scatter - within * float((1 / counts).mean()), 0.0)
    return np.asarray(between / np.maximum(between + within, 1e-30))[:, None]


def _origin(x: FloatArray, logits: FloatArray) -> FloatArray:
    """The shortest (D,) whose logits are 0, or all but, where those (N, C) of (N, D) are linear."""
    centre, usual = x.mean(0, dtype=np.float64), logits.mean(0)
    z, wanted = x - centre.astype(np.float32), logits - usual
    small = len(z) <= z.shape[1]
    system = product(z.T, z.T) if small else product(z, z)
    # Just so much that directions which no image takes have no weight.
    system[np.diag_indices_from(system)] += max(1e-6 * float(system.trace()) / len(system), 1e-12)
    if small:
        weight = product(z, np.linalg.solve(system, wanted))
    else:
        weight = np.linalg.solve(system, product(z, wanted))
    offset = usual - centre @ weight
    return np.asarray(-offset @ np.linalg.pinv(weight, rcond=1e-4), np.float32)


def _left_over(rows: FloatArray, directions: FloatArray) -> FloatArray:
    """(N,) lengths of what orthonormal directions (R, D) leave of (N, D)."""
    left = squared_lengths(rows) - squared_lengths(rows @ directions.T)
    return np.asarray(np.sqrt(np.maximum(left, 0)))
