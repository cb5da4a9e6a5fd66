"""How frequent each class is in a lot, told by its unlabelled predictions, and what follows.

A lot may hold ten times as many scratches as the images that the model learned from. Where only
the frequencies differ, and the images of each class look as they did, calibrated probabilities
tell the new ones: EM finds the most likely (Saerens, Latinne and Decaestecker, Neural Computation
2002; with calibration the best of its kind: Alexandari, Kundaje and Shrikumar, ICML 2020).

Images of no known class break that: they are counted as whatever they look like. So do classes
that the model cannot tell apart. Both are looked for first, and the old frequencies kept.

What is promised about escapes never rests on any of this: thresholds are fitted to, and applied
to, probabilities that no lot has re-weighted.
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

#: Twice the log-likelihood that a free frequency has to win before any of it is believed.
ASKED_GAIN = 2.0
#: Singular value of the rates of confusion below which frequencies cannot be told.
LEAST_APART = 0.2
#: Share of unknown images above which frequencies cannot be told.
MOST_UNKNOWN = 0.05
#: Standard errors by which a lot's probabilities may be flatter than any mixture's.
MOST_FLATTER = 1.9

_CONFIDENCE = 0.95
_MOST_ITERATIONS = 1000
_TOLERANCE = 1e-6
#: Share of unknown images that the test for them is made to see.
_LOOKED_FOR = 0.1
_LEAST_LIKELY = 1e-12


class Known(NamedTuple):
    """Labelled images that the network did not learn from, as those that calibrated it.

    Attributes:
        probabilities: (M, C), of the same prior as the lot's.
        target: (M,) class indices.
    """

    probabilities: FloatArray
    target: IntArray


@dataclass(frozen=True, eq=False)
class PriorEstimate:
    """How frequent each class is in a lot.

    Attributes:
        prior: (C,) sums to 1; the old one where it is `refused`.
        low: (C,) with 95 % confidence at least this, as far as chance goes that drew the lot, not
            that which drew the images of the calibration; 0 where refused.
        high: (C,) at most this; 1 where refused.
        images: of the lot, that count.
        iterations: of EM.
        noticed_from: the share of unknown images that would have been noticed nine times out of
            ten, were they about as far from each class as from any other; None: not looked for,
            or no share would.
        refused: why nothing was estimated; empty where it was.
    """

    prior: FloatArray
    low: FloatArray
    high: FloatArray
    images: int
    iterations: int = 0
    noticed_from: float | None = None
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
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

    It lies between the old prior and the most likely one, the nearer to the old the less the lot
    speaks against it. Thresholds of escape are never fitted or applied to what it re-weights.

    Args:
        probabilities: (N, C), calibrated; rows that are no numbers are left out.
        prior: (C,) frequencies that the probabilities speak of. A calibrator with a bias for each
            class, fitted with all classes weighing alike, speaks of equal ones. A class of 0
            stays at 0.
        confusion: (C, C) labelled images of each class (rows) by what they are called (columns),
            or sums of their probabilities.
        unknown_share: of the lot's images, if something tells it.
        known: images whose mixture the lot has to be; None: that is not tested.
        names: of the classes, for what is said.

    Returns:
        The old prior, with the reason, where the lot holds no image, two classes look alike, a
        class lacks labelled images, or unknown images disturb.

    Raises:
        DataError: the prior is none, or its classes are not the probabilities'.
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
            "the lot's probabilities are flatter than any mixture of the known classes gives, by "
            f"{excess:.1f} standard errors ({MOST_FLATTER:g} are let pass), as unknown images "
            "make them"
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
    """Probabilities (N, C) as they are where the classes are otherwise frequent.

    For classes and review alone: thresholds of escape hold for probabilities as they were.

    Args:
        probabilities: (N, C), calibrated.
        old_prior: (C,) frequencies that they speak of; a class of 0 stays at 0.
        new_prior: (C,) those of the lot.

    Returns:
        Of the same type; NaN for rows that are no numbers, or that leave every class impossible.

    Raises:
        DataError: a prior is none, or its classes are not the probabilities'.
    """
    old, new = _checked(old_prior, probabilities), _checked(new_prior, probabilities)
    return (_levelled(probabilities, old, new)).astype(probabilities.dtype)


def _checked(prior: FloatArray, probabilities: FloatArray) -> FloatArray:
    """The prior (C,) in float64, summing to 1: as it is, but for what was rounded off it."""
    prior = np.asarray(prior, np.float64)
    if probabilities.ndim != 2 or prior.shape != probabilities.shape[1:]:
        raise DataError(
            f"A prior of shape {prior.shape} for probabilities of shape {probabilities.shape}: "
            "each column needs its class's frequency. Give both for the same classes."
        )
    if not (np.isfinite(prior).all() and (prior >= 0).all() and abs(prior.sum() - 1) < 1e-3):
        raise DataError(
            f"{prior.tolist()} is no prior: frequencies are 0 or more and sum to 1, or nothing can "
            "be weighed by them. Divide the classes' images by all images."
        )
    return prior if abs(prior.sum() - 1) < 1e-9 else prior / prior.sum()


def _levelled(
    probabilities: FloatArray, old: FloatArray, new: FloatArray | float = 1.0
) -> FloatArray:
    """Probabilities (N, C) were all classes equally frequent, or as `new`; rows sum to 1."""
    ratio = np.divide(new, old, out=np.zeros_like(old), where=old > 0)
    weighed = probabilities.astype(np.float64) * ratio
    with np.errstate(invalid="ignore"):
        levelled: FloatArray = weighed / weighed.sum(1, keepdims=True)
    return levelled


def _refused(prior: FloatArray, images: int, reason: str) -> PriorEstimate:
    """The old prior, of which nothing is known to hold."""
    return PriorEstimate(prior, np.zeros_like(prior), np.ones_like(prior), images, refused=reason)


def _levelled_known(known: Known, prior: FloatArray) -> Known:
    """The usable ones, were all classes equally frequent, of the classes that have a prior."""
    there = prior > 0
    probabilities = _levelled(known.probabilities, prior)[:, there]
    usable = (known.target >= 0) & there[known.target] & np.isfinite(probabilities).all(1)
    return Known(probabilities[usable], (np.cumsum(there) - 1)[known.target[usable]])


def _disturbed(unknown_share: float | None) -> str:
    """Why such a share of unknown images lets nobody tell frequencies; empty where it does."""
    if unknown_share is None or unknown_share <= MOST_UNKNOWN:
        return ""
    return (
        f"{unknown_share:.1%} of the images are of no known class, and more than "
        f"{MOST_UNKNOWN:.0%} may pass for classes that the lot lacks"
    )


def _alike(confusion: Array, names: Sequence[str]) -> str:
    """Why such a confusion (C, C) lets nobody tell frequencies; empty where it does.

    The error of the frequencies that counts of calls tell is at most that of the counts over the
    smallest singular value of the rates (Lipton, Wang and Smola, ICML 2018). Of two classes it is
    the share by which they are called differently.
    """
    images = confusion.sum(1)
    if not images.all():
        return f"no labelled image tells what {names[int(images.argmin())]} is called"
    rates = confusion / images[:, None]
    least = float(np.linalg.svd(rates, compute_uv=False)[-1])
    if least >= LEAST_APART:
        return ""
    apart = np.array([np.abs(rates - row).sum(1) / 2 for row in rates]) + np.eye(len(rates))
    first, second = divmod(int(apart.argmin()), len(rates))
    return (
        f"labelled images of {names[first]} and {names[second]} are called alike but for "
        f"{apart.min():.0%} of them (smallest singular value of the confusion {least:.2f}, at "
        f"least {LEAST_APART:g} is needed), so no lot tells how many of each it holds"
    )


def _likeliest(lot: FloatArray, prior: FloatArray) -> tuple[FloatArray, int]:
    """The most likely frequencies (C,) by EM, and its iterations."""
    found, change, iterations = prior, math.inf, 0
    while change > _TOLERANCE and iterations < _MOST_ITERATIONS:
        # Each image shared among the classes as the frequencies so far have it.
        moved = found * (lot / (lot @ found)[:, None]).mean(0)
        moved /= moved.sum()
        found, change, iterations = moved, float(np.abs(moved - found).max()), iterations + 1
    return found, iterations


def _believed(lot: FloatArray, likeliest: FloatArray, prior: FloatArray) -> FloatArray:
    """Between the old frequencies and the most likely ones, by what these win.

    As James and Stein shrink (with twice their factor): by chance alone twice the log-likelihood
    won is a chi-square of as many degrees as there are free frequencies.
    """
    gain = 2 * float(np.log((lot @ likeliest) / (lot @ prior)).sum())
    free = len(prior) - 1
    share = max(0.0, 1 - ASKED_GAIN * free / gain) if gain > 0 else 0.0
    return share * likeliest + (1 - share) * prior


def _errors(lot: FloatArray, found: FloatArray) -> FloatArray:
    """Standard errors (C,) of the most likely frequencies, from the observed information."""
    count = len(found)
    scores = lot / (lot @ found)[:, None]
    # They sum to 1: what may change is what sums to 0.
    basis = np.linalg.qr(np.column_stack([np.ones(count), np.eye(count)[:, 1:]]))[0][:, 1:]
    values, vectors = np.linalg.eigh(basis.T @ (scores.T @ scores) @ basis)
    errors: FloatArray = np.sqrt(((basis @ vectors) ** 2 / np.maximum(values, 1e-9)).sum(1))
    return errors


def _flatter(lot: FloatArray, likeliest: FloatArray, known: Known) -> tuple[float, float | None]:
    """By how many standard errors the lot's probabilities are flatter than a mixture's.

    What is looked for is one more class, about as far from each known one as from any other: where
    scores are Gaussian, its density is that of the known ones times the geometric mean of an
    image's probabilities, all classes equally frequent. The score is that of the test for a
    tenth of such images. Of it, what the called classes tell is taken away, so that its mean is 0
    in every known class, and thereby in every mixture of them, whatever their frequencies.

    Returns:
        The excess, and the share of such images that would be noticed nine times out of ten; None
        where none would.
    """
    num_classes = lot.shape[1]
    mixture = 0.98 * likeliest + 0.02 / num_classes  # no lot is so pure
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
    # A class of few images borrows two from the others.
    spread = (squares + 2 * pooled) / (images + 1) / images
    error = math.sqrt(of_lot.var() / len(lot) + float(likeliest**2 @ spread))
    if error == 0:
        return 0.0, None
    expected = float(mixture @ of_classes(left * ratio)) / whole
    least = (MOST_FLATTER + NormalDist().inv_cdf(0.9)) * error
    return float(of_lot.mean()) / error, least / expected if least < expected else None
