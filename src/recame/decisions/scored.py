"""What decisions are fitted to and made by: raw scores of images, and which images count."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recame.contracts import Array, BoolArray, FloatArray, IntArray
from recame.errors import DataError


@dataclass(frozen=True)
class Scored:
    """What a model says of N labelled images.

    Attributes:
        logits: (N, C) of the ensemble, not divided by a temperature; of calibrated biases with
            these (`logits_of`).
        target: (N,) class indices; -1 where the label is unknown.
        images: their N names, by whose hash one of a group is drawn.
        groups: (N,) of each image its board, wafer or production lot; None: images count alone.
        unknown: (N,) how strange each is; None where nothing says so.
    """

    logits: FloatArray
    target: IntArray
    images: Sequence[str]
    groups: Sequence[str] | None = None
    unknown: FloatArray | None = None

    def __post_init__(self) -> None:
        """Check that all speak of the same images."""
        lengths = {
            name: len(values)
            for name in ("logits", "target", "images", "groups", "unknown")
            if (values := getattr(self, name)) is not None
        }
        if len(set(lengths.values())) > 1 or self.logits.ndim != 2:
            raise DataError(
                f"Scores of shape {self.logits.shape} and {lengths} of the rest are not of the "
                "same images: give (N, C) logits and N of everything else."
            )

    def __len__(self) -> int:
        """N."""
        return len(self.target)

    def chosen(self, rows: BoolArray) -> Scored:
        """Some of the images."""
        places = np.flatnonzero(rows).tolist()
        return replace(
            self,
            logits=self.logits[rows],
            target=self.target[rows],
            images=[self.images[place] for place in places],
            groups=None if self.groups is None else [self.groups[place] for place in places],
            unknown=None if self.unknown is None else self.unknown[rows],
        )

    def counted(self) -> Scored:
        """The labelled images that count: all, or one of each group and class.

        Images of one board are no independent witnesses. The one whose name's SHA-256 is smallest
        is taken, which no score has chosen.
        """
        labelled = self.chosen(self.target >= 0)
        if labelled.groups is None:
            return labelled
        drawn = [hashlib.sha256(str(name).encode()).hexdigest() for name in labelled.images]
        first: dict[tuple[str, int], int] = {}
        for place in np.argsort(drawn, kind="stable").tolist():
            first.setdefault((str(labelled.groups[place]), int(labelled.target[place])), place)
        kept = np.zeros(len(labelled), np.bool_)
        kept[list(first.values())] = True
        return labelled.chosen(kept)


def class_log_odds(logits: FloatArray) -> FloatArray:
    """Of each class against all others together: log p - log(1 - p), without rounding at 1.

    Probabilities in float32 are 1 from log-odds of 17 on, where images still differ, and a
    temperature changes the order of images by the probability of one of several classes.

    Args:
        logits: (N, C).

    Returns:
        (N, C) float64; NaN in rows that hold anything but numbers.

    Examples:
        >>> class_log_odds(np.array([[40.0, 1.0, 0.0], [0.0, 0.0, np.nan]])).round(2)
        array([[ 38.69, -39.  , -40.  ],
               [   nan,    nan,    nan]])
    """
    scores = np.asarray(logits, np.float64)
    finite: BoolArray = np.asarray(np.isfinite(scores).all(1))
    scores = np.where(finite[:, None], scores, 0.0)
    best = scores.argmax(1)[:, None]
    largest = np.take_along_axis(scores, best, 1)
    rest = scores.copy()
    np.put_along_axis(rest, best, -np.inf, 1)
    second = rest.max(1, keepdims=True)
    # Beside any other class stands the best one, so nothing is lost in this difference.
    powers = np.exp(rest - largest)
    odds = scores - largest - np.log1p(np.maximum(powers.sum(1, keepdims=True) - powers, 0.0))
    of_rest = second + np.log(np.exp(rest - second).sum(1, keepdims=True))
    np.put_along_axis(odds, best, largest - of_rest, 1)
    found: FloatArray = np.where(finite[:, None], odds, np.nan)
    return found


def release_scores(logits: FloatArray, normal: int, weights: FloatArray) -> FloatArray:
    """Log-odds of the normal class against all defects as they come on a line.

    `log p_normal - log(sum of w_k p_k over the defect classes)`. Networks are trained and
    calibrated as if all classes were equally frequent; whether an image is a defect at all is
    asked on a line where they are not. With weights in the ratio of the defects' frequencies this
    is the likelihood ratio of normal and defect images, by which at any overkill fewest of the
    defects escape (Neyman and Pearson, 1933). It falls from normal to defect whatever class an
    image is called: of the many normal images of a line some are called one of the rare classes.

    Args:
        logits: (N, C).
        normal: index of the normal class.
        weights: (C,), of the defects; that of the normal class does not count.

    Returns:
        (N,) float64; -inf in rows that hold anything but numbers.

    Examples:
        >>> weights = np.array([1.0, 1.9, 0.1])  # the second defect is rare
        >>> release_scores(np.log([[0.4, 0.1, 0.5], [0.4, 0.5, 0.1]]), 0, weights).round(2)
        array([ 0.51, -0.88])
    """
    scores = np.asarray(logits, np.float64)
    finite: BoolArray = np.asarray(np.isfinite(scores).all(1))
    scores = np.where(finite[:, None], scores, 0.0)
    defects = np.arange(scores.shape[1]) != normal
    with np.errstate(divide="ignore"):
        weighted = scores[:, defects] + np.log(weights[defects])
    largest = weighted.max(1)
    of_defects = largest + np.log(np.exp(weighted - largest[:, None]).sum(1))
    return np.where(finite, scores[:, normal] - of_defects, -math.inf)


def defect_weights(mix: FloatArray, normal: int, promised: Collection[int]) -> FloatArray:
    """How much each defect class weighs in `release_scores`.

    As it comes on the line, on the average 1. A class of which nothing is promised weighs at least
    that: nobody has counted how many of it would pass.

    Args:
        mix: (C,) shares of the classes on the line, up to a factor.
        normal: index of the normal class.
        promised: indices of the classes whose escapes are promised.
    """
    defects = np.arange(len(mix)) != normal
    total = float(mix[defects].sum())
    shares = mix / total * int(defects.sum()) if total > 0 else np.ones(len(mix))
    counted = np.isin(np.arange(len(mix)), list(promised))
    found: FloatArray = np.where(counted & (shares > 0), shares, np.maximum(shares, 1.0))
    return np.where(defects, found, 1.0)


def logits_of(probabilities: Array, temperature: float = 1.0) -> FloatArray:
    """Calibrated probabilities (N, C) as scores: their scale undone, up to a number for each image.

    Behind a temperature these are the network's logits. Behind biases and scales of classes they
    are the calibrated ones at the scale of the logits (`Calibration.temperature`), so that the
    class of the largest score is always that of the largest probability. A probability of exactly
    1 tells by the others how far it is from 1; what was rounded to 0 stays so.
    """
    tiny = np.finfo(np.float32).tiny
    logits: FloatArray = temperature * np.log(np.maximum(probabilities, tiny).astype(np.float64))
    return logits
