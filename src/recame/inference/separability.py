"""How well features separate classes: a closed-form ridge classifier with each image left out.

It estimates in milliseconds what heads would learn. It uses no random numbers, so that the same
images at two sizes can be compared one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.metrics.statistics import class_means, paired_difference

#: Ridge strengths that are tried, as shares of the mean eigenvalue.
_RIDGES: FloatArray = np.geomspace(1e-3, 10.0, 9)
#: Softmax sharpnesses that are tried, which turn scores of 0 to 1 into probabilities.
_SHARPNESSES: FloatArray = np.geomspace(1.0, 64.0, 13)
#: Fewest training images of a class for leaving each of them out.
_LEAST_LEFT_OUT = 3


@dataclass(frozen=True)
class Judged:
    """Results for images that the classifier had not seen.

    Attributes:
        target: (N,) class indices.
        right: (N,) whether the image's class has the largest score.
        loss: (N,) Brier score of each image, 0 to 2 (Brier, Monthly Weather Review 1950); it is
            bounded, so that a single image cannot decide.
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
        """Mean over the classes of the mean loss of their images."""
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
    """Evaluate features by a class-balanced ridge classifier that is fitted to training images.

    Every class is evaluated on its `val` images. If these are fewer than `enough`, its training
    images are used too, each with the classifier that is fitted to all others.

    Args:
        train: (N, P).
        target: (N,) class indices.
        val: (M, P); M may be 0.
        val_target: (M,).
        num_classes: C.
        enough: number of `val` images of a class from which on `train` images are not used.
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
    """By how much the second has a lower loss on the same images, and its standard error."""
    return paired_difference(first.loss - second.loss, first.target)


def accuracy_gain(first: Judged, second: Judged) -> tuple[float, float]:
    """By how much the second is correct more often on the same images; computed like `gain`.

    With few images and many features, the predicted class is more reliable than its probability.
    """
    return paired_difference(second.right.astype(np.float64) - first.right, first.target)


def _ridge_scores(
    train: FloatArray, target: IntArray, val: FloatArray, num_classes: int
) -> tuple[FloatArray, FloatArray]:
    """Scores (N, C) of the training images, each left out, and (M, C) of the `val` images.

    Kernel ridge regression on one-hot targets, with equal total weight for every class. Leaving an
    image out is exact (Allen's PRESS residual, Technometrics 1974). The ridge strength is the one
    with the smallest error on the images left out; with one image a class, the middle one.
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
    if not many.any():
        many = counts[target] > 1  # with hundreds of classes, a sample has no more of any
    ridges = _RIDGES if many.any() else _RIDGES[len(_RIDGES) // 2 :][:1]
    best: tuple[float, FloatArray, FloatArray] | None = None
    usual: float = max(float(values.mean()), 1e-12)
    for ridge in usual * ridges:
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
    """(N,) losses of the images, at the sharpness with the smallest loss."""
    wanted = np.eye(scores.shape[1])[target]

    def losses(sharpness: float) -> FloatArray:
        likely = np.exp(sharpness * (scores - scores.max(1, keepdims=True)))
        found: FloatArray = ((likely / likely.sum(1, keepdims=True) - wanted) ** 2).sum(1)
        return found

    tried = [losses(float(sharpness)) for sharpness in _SHARPNESSES]
    return min(tried, key=lambda found: float(class_means(found, target).mean()))
