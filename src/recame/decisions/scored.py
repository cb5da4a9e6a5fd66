"""Raw scores of images, from which decisions are fitted and made, and which images count."""

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
    """A model's scores of N labelled images.

    Attributes:
        logits: (N, C) of the ensemble, not divided by a temperature; calibrated class biases are
            included (`logits_of`).
        target: (N,) class indices; -1 if the label is unknown.
        images: N names; their hash chooses one image of a group.
        groups: (N,) board, wafer or production lot of each image; None: each image counts.
        unknown: (N,) how strange each image is; None: not known.
    """

    logits: FloatArray
    target: IntArray
    images: Sequence[str]
    groups: Sequence[str] | None = None
    unknown: FloatArray | None = None

    def __post_init__(self) -> None:
        """Check that all fields have the same number of images."""
        lengths = {
            name: len(values)
            for name in ("logits", "target", "images", "groups", "unknown")
            if (values := getattr(self, name)) is not None
        }
        if len(set(lengths.values())) > 1 or self.logits.ndim != 2:
            raise DataError(
                f"The logits have shape {self.logits.shape}, the other fields {lengths} rows: give "
                "(N, C) logits and N rows of everything else, for the same images."
            )

    def __len__(self) -> int:
        """N."""
        return len(self.target)

    def chosen(self, rows: BoolArray) -> Scored:
        """Select some of the images."""
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
        """Select the labelled images that count: all, or one of each group and class.

        Images of one board are not independent. The image whose name has the smallest SHA-256
        counts, so that the choice does not depend on scores.
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
    """Log-odds of each class against all others together: log p - log(1 - p), not rounded at 1.

    Log-odds are used because float32 probabilities are rounded to 1 from log-odds of 17 on, where
    images still differ.

    Args:
        logits: (N, C) without a temperature, which would change the order of the images.

    Returns:
        (N, C) float64; NaN in rows with NaN or infinite values.

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
    # For any class but the best one, `largest` is the best class itself: no loss of precision.
    powers = np.exp(rest - largest)
    odds = scores - largest - np.log1p(np.maximum(powers.sum(1, keepdims=True) - powers, 0.0))
    of_rest = second + np.log(np.exp(rest - second).sum(1, keepdims=True))
    np.put_along_axis(odds, best, largest - of_rest, 1)
    found: FloatArray = np.where(finite[:, None], odds, np.nan)
    return found


def release_scores(logits: FloatArray, normal: int, weights: FloatArray) -> FloatArray:
    """Log-odds of the normal class against all defects as they come on a line.

    `log p_normal - log(sum of w_k p_k over the defect classes)`. Networks are trained and
    calibrated as if all classes were equally frequent, but on a line they are not. With weights in
    the ratio of the defects' frequencies, this is the likelihood ratio of normal and defect images,
    which minimises the escapes at any overkill (Neyman and Pearson, 1933). It does not depend on
    the predicted class: on a line with many normal images, some of them are predicted as a rare
    class.

    Args:
        logits: (N, C).
        normal: index of the normal class.
        weights: (C,) of the classes; the weight of the normal class is not used.

    Returns:
        (N,) float64; -inf in rows with NaN or infinite values.

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
    """Weight of each defect class in `release_scores`.

    Weights follow the frequencies on the line and have a mean of 1. A class without a promise has a
    weight of at least 1, since it is not known how many of its images would pass.

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
    """Turn calibrated probabilities (N, C) back into logits, up to a constant for each image.

    After a temperature, these are the network's logits. After class biases and scales, they are the
    calibrated logits at the scale of the network's logits (`Calibration.temperature`), so that the
    largest score always belongs to the most probable class. If a probability is rounded to 1, the
    other probabilities show how far it is from 1; a probability rounded to 0 stays at 0.
    """
    tiny = np.finfo(np.float32).tiny
    logits: FloatArray = temperature * np.log(np.maximum(probabilities, tiny).astype(np.float64))
    return logits
