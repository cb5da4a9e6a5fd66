"""How strange an image's features are: nearest neighbours, virtual logit, Mahalanobis distances.

A scorer keeps a bounded amount of data, however many training images there are: leading directions,
or a random sample of the images. Scoring an image takes a few matrix-vector products.
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

#: Numbers that a scorer keeps of the training images, without class means: 2 MiB of float32.
MOST_NUMBERS = 1 << 19


@dataclass(frozen=True, eq=False)
class NearestNeighbour(Scorer):
    """One minus the cosine to the k-th nearest training image (Sun et al., ICML 2022).

    The features of each expert are scaled to equal length. k is 1 by default, since a class may
    have one image only. A bounded number of training images is kept, drawn at random: all images
    of a class, or at most its equal share.

    Attributes:
        memory: (M, D) features of length 1.
        k: () which neighbour counts.
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
            k: which neighbour counts; the last one if fewer images are kept.
            most_numbers: bound of the numbers kept; each class keeps at least one image.
            seed: of the random sample.
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

    The virtual logit is the length of the image's residual outside the leading directions of the
    training features. It is scaled so that its mean over the training images equals that of the
    largest logit. The score is the virtual logit minus the log of the sum of the other logits'
    exponentials; it ranks images as the probability of the virtual class does.

    Deviations from the paper: the origin, where the logits are 0, comes from a least-squares fit of
    the logits to the features instead of from the head's weights, since a cosine head has no such
    weights. The number of leading directions is at most half of the features and half of the
    images, since otherwise few training images would leave no residual.

    Attributes:
        origin: (D,).
        principal: (R, D) leading directions of the features about the origin.
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
            most_numbers: bound of the numbers in the leading directions.
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
    """Squared Mahalanobis distance to the nearest class, for long tails (Lee et al., NeurIPS 2018).

    The features of each expert are scaled to equal length. All classes share one within-class
    covariance. A class with n images weighs in it as the square root of n - 1, so that the frequent
    classes do not decide it alone. It is shrunk as by Chen et al. (OAS, IEEE TSP 2010) for the
    effective number of images under these weights. Class means are shrunk towards their common
    mean, the more the fewer images they have, by an empirical Bayes estimate of isotropic spreads
    within and between classes. If no class has two images, one Gaussian about the common mean is
    used.

    The inverse covariance is `scale * I - directions.T @ directions`: the leading directions keep
    their variance, all others get their mean variance. It is exact if R covers all directions that
    the images span.

    Attributes:
        centre: (D,) mean of the class means.
        directions: (R, D).
        scale: ().
        classes: (C, D) twice the inverse covariance times (class mean - centre); C counts the
            classes that have images.
        offsets: (C,) squared distance of each class mean from the centre.
        background_directions: (Q, D), like `directions`, for a Gaussian of all classes together
            whose distance is subtracted (`RelativeMahalanobis`); Q is 0 without it.
        background_scale: (), 0 without it.
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
            most_numbers: bound of the numbers in both kinds of directions together.
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
    """`Mahalanobis` minus the distance to one Gaussian of all classes (Ren, arXiv 2106.09022)."""

    name: ClassVar[str] = "relative_mahalanobis"
    relative: ClassVar[bool] = True


def _seen(
    features: FloatArray | None, logits: FloatArray, target: IntArray
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Like `training_rows`, but features must be there."""
    if features is None or not features.size:
        raise DataError(
            "This scorer needs features, and there are none: keep them when the training images "
            "are predicted, or use a scorer of logits."
        )
    return training_rows(features, logits, target)


def _weighted(offsets: FloatArray, index: IntArray, freedom: IntArray) -> tuple[FloatArray, float]:
    """Rows (N, D) with rows.T @ rows = the covariance, and its effective number of images.

    The covariance is the weighted mean of the class covariances. Each of these is the sum of the
    products of the class's offsets (N, D), divided by its degrees of freedom (C,); its weight is
    the square root of these.
    """
    root = np.sqrt(freedom)
    share = np.divide(1, root * root.sum(), out=np.zeros_like(root), where=freedom > 0)
    rows = offsets * np.sqrt(share).astype(np.float32)[index, None]
    return rows, float(root.sum() ** 2 / np.count_nonzero(root))


def _class_means(x: FloatArray, index: IntArray, counts: IntArray) -> FloatArray:
    """(C, D) float64 class means of (N, D); every class has images."""
    order = np.argsort(index, kind="stable")
    start = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums: FloatArray = np.add.reduceat(x[order], start, axis=0, dtype=np.float64)
    return sums / counts[:, None]


def _kept_share(means: FloatArray, counts: IntArray, within: float) -> FloatArray:
    """(C, 1) factor by which each class mean's distance from the centre is shrunk.

    The mean of n images varies by within / n about the true mean, and the true means vary by
    `between` about the centre, so the best factor is n * between / (n * between + within).
    """
    if len(counts) == 1:
        return np.zeros((1, 1))
    scatter = float(((means - means.mean(0)) ** 2).sum()) / (len(counts) - 1)
    between = counts * max(scatter - within * float((1 / counts).mean()), 0.0)
    return np.asarray(between / np.maximum(between + within, 1e-30))[:, None]


def _origin(x: FloatArray, logits: FloatArray) -> FloatArray:
    """Shortest (D,) features with logits near 0, for the linear fit of (N, C) logits to (N, D)."""
    centre, usual = x.mean(0, dtype=np.float64), logits.mean(0)
    z, wanted = x - centre.astype(np.float32), logits - usual
    small = len(z) <= z.shape[1]
    system = product(z.T, z.T) if small else product(z, z)
    # A tiny ridge, so that directions outside all images get no weight.
    system[np.diag_indices_from(system)] += max(1e-6 * float(system.trace()) / len(system), 1e-12)
    if small:
        weight = product(z, np.linalg.solve(system, wanted))
    else:
        weight = np.linalg.solve(system, product(z, wanted))
    offset = usual - centre @ weight
    return np.asarray(-offset @ np.linalg.pinv(weight, rcond=1e-4), np.float32)


def _left_over(rows: FloatArray, directions: FloatArray) -> FloatArray:
    """(N,) lengths of the residuals of (N, D) outside the orthonormal directions (R, D)."""
    left = squared_lengths(rows) - squared_lengths(rows @ directions.T)
    return np.asarray(np.sqrt(np.maximum(left, 0)))
