"""How well features tell classes apart: a ridge classifier in closed form, each image left out.

It asks in milliseconds what heads would learn, without a draw of any kind, so that the same images
at two sizes are judged alike and can be compared one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.metrics.statistics import class_means

#: Ridges that are tried, as shares of the mean eigenvalue.
_RIDGES: FloatArray = np.geomspace(1e-3, 10.0, 9)
#: Sharpnesses that are tried, by which scores of 0 to 1 become probabilities.
_SHARPNESSES: FloatArray = np.geomspace(1.0, 64.0, 13)
#: A class is judged by leaving its images out if it has so many.
_LEAST_LEFT_OUT = 3


@dataclass(frozen=True)
class Judged:
    """Images that were judged by a classifier which had not seen them.

    Attributes:
        target: (N,) class indices.
        right: (N,) whether the image's class has the largest score.
        loss: (N,) squared distance of the probabilities from certainty of the image's class, 0 to 2
            (Brier, Monthly Weather Review 1950): bounded, so that no one image decides.
    """

    target: IntArray
    right: BoolArray
    loss: FloatArray

    @property
    def accuracy(self) -> float:
        """Mean recall of the classes."""
        return float(class_means(self.right, self.target).mean())

    @property
    def mean_loss(self) -> float:
        """Mean over the classes of their images' mean loss."""
        return float(class_means(self.loss, self.target).mean())


def judge(
    train: FloatArray,
    target: IntArray,
    val: FloatArray,
    val_target: IntArray,
    num_classes: int,
    *,
    enough: int,
) -> Judged:
    """Judge images by a class-balanced ridge classifier on features of training images.

    Every class is judged by its images of `val`; where these are fewer than `enough`, also by its
    training images, each by the classifier that all others make.

    Args:
        train: (N, P).
        target: (N,) class indices.
        val: (M, P); M may be 0.
        val_target: (M,).
        num_classes: C.
        enough: images of a class in `val` that tell without those of `train`.
    """
    left_out, scores = _ridge_scores(train, target, val, num_classes)
    few = np.bincount(val_target, minlength=num_classes) < enough
    counts = np.bincount(target, minlength=num_classes)
    asked = (few & (counts >= _LEAST_LEFT_OUT))[target]
    scores = np.concatenate([scores, left_out[asked]])
    judged = np.concatenate([val_target, target[asked]])
    if not len(judged):
        return Judged(judged, np.zeros(0, bool), np.zeros(0))
    return Judged(judged, scores.argmax(1) == judged, _losses(scores, judged))


def gain(first: Judged, second: Judged) -> tuple[float, float]:
    """By how much the second loses less on the same images, and the standard error of that.

    Each class counts alike, and as if it had one more image whose difference is that of all: two
    images that fare alike do not show that all would.
    """
    return _paired(first.loss - second.loss, first.target)


def accuracy_gain(first: Judged, second: Judged) -> tuple[float, float]:
    """By how much the second is right more often on the same images, as `gain` has it.

    Where few images teach many features, which class is the likeliest says more than how likely.
    """
    return _paired(second.right.astype(np.float64) - first.right, first.target)


def _paired(difference: FloatArray, target: IntArray) -> tuple[float, float]:
    """Mean over the classes of differences (N,), and its standard error."""
    images = np.bincount(target)
    images = images[images > 0]
    means = class_means(difference, target)
    variance = class_means(difference**2, target) - means**2
    usual = float(class_means(difference**2, target).mean())
    variance = (variance * images + usual) / (images + 1)
    return float(means.mean()), float(np.sqrt((variance / images).sum()) / len(images))


def _ridge_scores(
    train: FloatArray, target: IntArray, val: FloatArray, num_classes: int
) -> tuple[FloatArray, FloatArray]:
    """Scores (N, C) of the training images, each left out, and (M, C) of the others.

    Kernel ridge regression on one-hot targets with weights that sum to the same in every class;
    leaving an image out is exact (Allen's PRESS residual, Technometrics 1974). The ridge is the one
    under which the images left out err least.
    """
    mean, std = train.mean(0), train.std(0)
    scale = np.where(std > 1e-6, std, 1.0)
    ours, theirs = (((x - mean) / scale).astype(np.float64) for x in (train, val))
    width = max(1, train.shape[1])
    kernel = ours @ ours.T / width + 1.0  # the 1 is an intercept
    counts = np.bincount(target, minlength=num_classes)
    weight = len(target) / (int(np.count_nonzero(counts)) * counts[target])
    root = np.sqrt(weight)[:, None]
    values, vectors = np.linalg.eigh(root * kernel * root.T)
    wanted = np.eye(num_classes)[target] - 1.0 / num_classes
    turned = vectors.T @ (root * wanted)
    many = counts[target] >= _LEAST_LEFT_OUT
    best: tuple[float, FloatArray, FloatArray] | None = None
    usual: float = max(float(values.mean()), 1e-12)
    for ridge in usual * _RIDGES:
        inverse = 1.0 / (np.maximum(values, 0.0) + ridge)
        dual = vectors @ (inverse[:, None] * turned)
        diagonal = (vectors**2) @ inverse
        residual = dual / diagonal[:, None] / root
        error = float((weight * (residual**2).sum(1))[many].sum())
        if best is None or error < best[0]:
            best = error, wanted - residual, dual
    assert best is not None
    _, left_out, dual = best
    return left_out, (theirs @ ours.T / width + 1.0) @ (root * dual)


def _losses(scores: FloatArray, target: IntArray) -> FloatArray:
    """(N,) losses of the images, at the sharpness that makes them least."""
    wanted = np.eye(scores.shape[1])[target]

    def losses(sharpness: float) -> FloatArray:
        likely = np.exp(sharpness * (scores - scores.max(1, keepdims=True)))
        found: FloatArray = ((likely / likely.sum(1, keepdims=True) - wanted) ** 2).sum(1)
        return found

    tried = [losses(float(sharpness)) for sharpness in _SHARPNESSES]
    return min(tried, key=lambda found: float(class_means(found, target).mean()))
