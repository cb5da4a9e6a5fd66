"""Estimate the class prior of a lot from its unlabelled predictions (prior shift).

A lot may hold ten times as many scratches as the training images. If only the class frequencies
differ, and the images of each class look the same as before, calibrated probabilities show the new
frequencies. EM finds the most likely ones (Saerens, Latinne and Decaestecker, Neural Computation
2002; the best method of its kind with calibration: Alexandari, Kundaje and Shrikumar, ICML 2020).

This fails if the lot holds images of unknown classes, which are counted as the class they look
like, or if the model confuses two classes. Both are checked first; if one is found, the old
frequencies are kept.

Promises about escapes never depend on this: their thresholds are fitted and applied to
probabilities that are not re-weighted for a lot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from recame.contracts import Array, FloatArray, IntArray
from recame.errors import DataError
from recame.metrics.statistics import confusion_matrix
from recame.names import quoted

#: Gain of twice the log-likelihood, per free frequency, below which the old prior is kept.
ASKED_GAIN = 2.0
#: Smallest singular value of the confusion rates below which frequencies cannot be estimated.
LEAST_APART = 0.2
#: Share of unknown images above which frequencies cannot be estimated.
MOST_UNKNOWN = 0.05
#: A lot's probabilities may be flatter than those of any mixture by this many standard errors.
MOST_FLATTER = 1.9

_CONFIDENCE = 0.95
_MOST_ITERATIONS = 1000
_TOLERANCE = 1e-6
#: Share of unknown images for which their test is designed.
_LOOKED_FOR = 0.1
_LEAST_LIKELY = 1e-12


class Known(NamedTuple):
    """Labelled images that did not train the network, for example the calibration images.

    Attributes:
        probabilities: (M, C), with the same prior as the lot's.
        target: (M,) class indices.
    """

    probabilities: FloatArray
    target: IntArray


@dataclass(frozen=True, eq=False)
class PriorEstimate:
    """How frequent each class is in a lot.

    Attributes:
        prior: (C,) sums to 1; the old prior if the estimate is `refused`.
        low: (C,) lower ends of 95 % intervals, which cover the chance in drawing the lot, but not
            in drawing the calibration images; 0 if refused.
        high: (C,) upper ends; 1 if refused.
        images: number of images of the lot that count.
        iterations: of EM.
        noticed_from: the share of unknown images that would have been noticed nine times out of
            ten, if they were about equally far from every class; None: not tested, or no share
            would be noticed.
        refused: why nothing was estimated; empty if it was.
    """

    prior: FloatArray
    low: FloatArray
    high: FloatArray
    images: int
    iterations: int = 0
    noticed_from: float | None = None
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("prior", "low", "high")}
        return {
            **arrays,
            "images": self.images,
            "iterations": self.iterations,
            "noticed_from": self.noticed_from,
            "refused": self.refused,
        }


def estimate_prior(
    probabilities: FloatArray,
    prior: FloatArray,
    *,
    confusion: IntArray | FloatArray | None = None,
    unknown_share: float | None = None,
    known: Known | None = None,
    names: Sequence[str] = (),
) -> PriorEstimate:
    """Estimate the class prior of a lot from its unlabelled probabilities.

    The estimate lies between the old prior and the most likely one. It is the nearer to the old
    prior, the less evidence the lot gives against it. Escape thresholds are never fitted or applied
    to probabilities that are re-weighted by it.

    Args:
        probabilities: (N, C), calibrated; rows with NaN are left out.
        prior: (C,) class prior of the probabilities. After a calibrator with a bias for each class,
            fitted with equal class weights, all classes are equally frequent. A class of 0 stays
            at 0.
        confusion: (C, C) labelled images by true class (rows) and predicted class (columns), or
            sums of their probabilities.
        unknown_share: share of unknown images in the lot, if it is known.
        known: images of the known classes; the lot has to be a mixture of them. None: not tested.
        names: of the classes, for messages.

    Returns:
        The old prior, with the reason, if the lot holds no image, two classes are confused, a class
        lacks labelled images, or there are unknown images.

    Raises:
        DataError: the prior is not a prior, or does not fit the classes of the probabilities.
    """
    prior = _checked(prior, probabilities)
    there = prior > 0
    names = [quoted(names[c]) if names else f"class {c}" for c in there.nonzero()[0].tolist()]
    lot = _levelled(probabilities, prior)[:, there]
    lot = lot[np.isfinite(lot).all(1)]
    mixed = None if known is None else _levelled_known(known, prior)
    confusions = [] if confusion is None else [np.asarray(confusion)[np.ix_(there, there)]]
    if mixed is not None:
        called = mixed.probabilities.argmax(1)
        confusions.append(confusion_matrix(mixed.target, called, len(names)))
    reasons = ["" if len(lot) else "the lot holds no image with probabilities"]
    reasons += [_disturbed(unknown_share)] + [_alike(counts, names) for counts in confusions]
    if any(reasons):
        return _refused(prior, len(lot), next(filter(None, reasons)))
    likeliest, iterations = _likeliest(lot, prior[there])
    excess, noticed = (0.0, None) if mixed is None else _flatter(lot, likeliest, mixed)
    if excess > MOST_FLATTER:
        reason = (
            "the lot's probabilities are flatter than those of any mixture of the known classes, "
            f"by {excess:.1f} standard errors (at most {MOST_FLATTER:g} are accepted), which "
            "suggests unknown images"
        )
        return _refused(prior, len(lot), reason)
    found, low, high = np.zeros((3, len(prior)))
    found[there] = _believed(lot, likeliest, prior[there])
    reach = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2) * _errors(lot, likeliest)
    low[there] = np.minimum(found[there], likeliest - reach).clip(0.0)
    high[there] = np.maximum(found[there], likeliest + reach).clip(max=1.0)
    return PriorEstimate(found, low, high, len(lot), iterations, noticed)


def reweighted(
    probabilities: FloatArray, old_prior: FloatArray, new_prior: FloatArray
) -> FloatArray:
    """Re-weight probabilities (N, C) for a new class prior.

    Only for predicted classes and review: escape thresholds hold for the original probabilities.

    Args:
        probabilities: (N, C), calibrated.
        old_prior: (C,) their class prior; a class of 0 stays at 0.
        new_prior: (C,) class prior of the lot.

    Returns:
        (N, C) of the same type; NaN for rows with NaN, and for rows that sum to 0.

    Raises:
        DataError: a prior is not a prior, or does not fit the classes of the probabilities.
    """
    old, new = _checked(old_prior, probabilities), _checked(new_prior, probabilities)
    return (_levelled(probabilities, old, new)).astype(probabilities.dtype)


def _checked(prior: FloatArray, probabilities: FloatArray) -> FloatArray:
    """The prior (C,) in float64, scaled to sum to exactly 1."""
    prior = np.asarray(prior, np.float64)
    if probabilities.ndim != 2 or prior.shape != probabilities.shape[1:]:
        raise DataError(
            f"The prior has shape {prior.shape}, the probabilities {probabilities.shape}: each "
            "column needs the frequency of its class. Give both for the same classes."
        )
    if not (np.isfinite(prior).all() and (prior >= 0).all() and abs(prior.sum() - 1) < 1e-3):
        raise DataError(
            f"{prior.tolist()} is no prior: frequencies must be 0 or more and sum to 1. Divide the "
            "number of images of each class by the number of all images."
        )
    return prior if abs(prior.sum() - 1) < 1e-9 else prior / prior.sum()


def _levelled(
    probabilities: FloatArray, old: FloatArray, new: FloatArray | float = 1.0
) -> FloatArray:
    """Probabilities (N, C) for equally frequent classes, or for the prior `new`; rows sum to 1."""
    ratio = np.divide(new, old, out=np.zeros_like(old), where=old > 0)
    weighed = probabilities.astype(np.float64) * ratio
    with np.errstate(invalid="ignore"):
        levelled: FloatArray = weighed / weighed.sum(1, keepdims=True)
    return levelled


def _refused(prior: FloatArray, images: int, reason: str) -> PriorEstimate:
    """The old prior, with the reason why nothing was estimated."""
    return PriorEstimate(prior, np.zeros_like(prior), np.ones_like(prior), images, refused=reason)


def _levelled_known(known: Known, prior: FloatArray) -> Known:
    """The usable images of classes with a prior above 0, for equally frequent classes."""
    there = prior > 0
    probabilities = _levelled(known.probabilities, prior)[:, there]
    usable = (known.target >= 0) & there[known.target] & np.isfinite(probabilities).all(1)
    return Known(probabilities[usable], (np.cumsum(there) - 1)[known.target[usable]])


def _disturbed(unknown_share: float | None) -> str:
    """Why this share of unknown images prevents an estimate; empty if it does not."""
    if unknown_share is None or unknown_share <= MOST_UNKNOWN:
        return ""
    return (
        f"{unknown_share:.1%} of the images are of no known class, and more than "
        f"{MOST_UNKNOWN:.0%} may pass for classes that the lot lacks"
    )


def _alike(confusion: Array, names: Sequence[str]) -> str:
    """Why this confusion matrix (C, C) prevents an estimate; empty if it does not.

    The error of frequencies estimated from counts of predictions is at most the error of these
    counts divided by the smallest singular value of the confusion rates (Lipton, Wang and Smola,
    ICML 2018). For two classes, this value is the share of images that are predicted differently.
    """
    images = confusion.sum(1)
    if not images.all():
        return f"no labelled image shows how {names[int(images.argmin())]} is predicted"
    rates = confusion / images[:, None]
    least = float(np.linalg.svd(rates, compute_uv=False)[-1])
    if least >= LEAST_APART:
        return ""
    apart = np.array([np.abs(rates - row).sum(1) / 2 for row in rates]) + np.eye(len(rates))
    first, second = divmod(int(apart.argmin()), len(rates))
    return (
        f"labelled images of {names[first]} and {names[second]} get the same predictions except "
        f"for {apart.min():.0%} of them (smallest singular value of the confusion {least:.2f}, at "
        f"least {LEAST_APART:g} is needed), so a lot does not show how many of each it holds"
    )


def _likeliest(lot: FloatArray, prior: FloatArray) -> tuple[FloatArray, int]:
    """The most likely frequencies (C,) by EM, and its iterations."""
    found, change, iterations = prior, math.inf, 0
    while change > _TOLERANCE and iterations < _MOST_ITERATIONS:
        # E-step: share each image among the classes by the present frequencies.
        moved = found * (lot / (lot @ found)[:, None]).mean(0)
        moved /= moved.sum()
        found, change, iterations = moved, float(np.abs(moved - found).max()), iterations + 1
    return found, iterations


def _believed(lot: FloatArray, likeliest: FloatArray, prior: FloatArray) -> FloatArray:
    """Shrink the most likely frequencies towards the old ones, by their gain in likelihood.

    Like the James-Stein estimator, with twice its factor: by chance alone, twice the gain in
    log-likelihood is a chi-square with one degree of freedom for each free frequency.
    """
    gain = 2 * float(np.log((lot @ likeliest) / (lot @ prior)).sum())
    free = len(prior) - 1
    share = max(0.0, 1 - ASKED_GAIN * free / gain) if gain > 0 else 0.0
    return share * likeliest + (1 - share) * prior


def _errors(lot: FloatArray, found: FloatArray) -> FloatArray:
    """Standard errors (C,) of the most likely frequencies, from the observed information."""
    count = len(found)
    scores = lot / (lot @ found)[:, None]
    # Frequencies sum to 1, so their changes sum to 0.
    basis = np.linalg.qr(np.column_stack([np.ones(count), np.eye(count)[:, 1:]]))[0][:, 1:]
    values, vectors = np.linalg.eigh(basis.T @ (scores.T @ scores) @ basis)
    errors: FloatArray = np.sqrt(((basis @ vectors) ** 2 / np.maximum(values, 1e-9)).sum(1))
    return errors


def _flatter(lot: FloatArray, likeliest: FloatArray, known: Known) -> tuple[float, float | None]:
    """By how many standard errors the lot's probabilities are flatter than a mixture's.

    The test looks for one more class, about equally far from every known class. With Gaussian
    scores, its density is that of the known classes times the geometric mean of an image's
    probabilities, for equally frequent classes. The score is that of a test for a tenth of such
    images. The part that the predicted classes explain is subtracted, so that the mean score is 0
    in every known class, and so in every mixture of them.

    Returns:
        The excess, and the share of such images that would be noticed nine times out of ten; None
        if no share would.
    """
    num_classes = lot.shape[1]
    mixture = 0.98 * likeliest + 0.02 / num_classes  # keeps every class above 0
    images = np.bincount(known.target, minlength=num_classes)

    def of_classes(values: FloatArray) -> FloatArray:
        sums = np.bincount(known.target, weights=values, minlength=num_classes)
        means: FloatArray = sums / images
        return means

    def density(levelled: FloatArray) -> FloatArray:
        logs = np.log(np.maximum(levelled, _LEAST_LIKELY)).mean(1)
        ratio: FloatArray = np.exp(logs) / (levelled @ mixture)
        return ratio

    ratio = density(known.probabilities)
    whole = float(mixture @ of_classes(ratio))

    def score(ratio: FloatArray) -> FloatArray:
        more = ratio / whole - 1
        scored: FloatArray = more / (1 + _LOOKED_FOR * more)
        return scored

    called = known.probabilities.argmax(1)
    rates = confusion_matrix(known.target, called, num_classes) / images[:, None]
    told = np.linalg.lstsq(rates, of_classes(score(ratio)), rcond=None)[0]
    left = score(ratio) - told[called]
    of_lot = score(density(lot)) - told[lot.argmax(1)]
    squares = of_classes(left**2) * images
    pooled = squares.sum() / max(len(left) - num_classes, 1)
    # The variance of a class with few images is pooled with two images' worth of the others.
    spread = (squares + 2 * pooled) / (images + 1) / images
    error = math.sqrt(of_lot.var() / len(lot) + float(likeliest**2 @ spread))
    if error == 0:
        return 0.0, None
    expected = float(mixture @ of_classes(left * ratio)) / whole
    least = (MOST_FLATTER + NormalDist().inv_cdf(0.9)) * error
    return float(of_lot.mean()) / error, least / expected if least < expected else None
