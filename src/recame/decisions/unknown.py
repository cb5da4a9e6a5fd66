"""Recognise unknown images, which are unlike all training images: scorers and their threshold.

An unknown image is neither released as normal nor booked as a known class. Known images that are
called unknown are false alarms; the threshold is the lowest one whose false alarms can be promised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from recame.contracts import Array, BoolArray, FloatArray, IntArray
from recame.decisions.exact import above_all_but, images_needed, most_allowed, smallest_limit
from recame.decisions.feature_strangeness import (
    Mahalanobis,
    NearestNeighbour,
    RelativeMahalanobis,
    VirtualLogit,
)
from recame.decisions.strangeness import Disagreement, Energy, MaxLogit, MaxSoftmax, Scorer
from recame.errors import CheckpointError, ConfigError, DataError

#: With at most this risk, fewer images than the mean minus one are allowed beyond the threshold, as
#: Hoeffding's bound needs (P(Bin(n, p) <= n p) > 1/4: Greenberg and Mohri, Stat. Probab. Letters
#: 2014).
_MOST_RISK = 0.25
#: A limit above half of the known images is useless.
MOST_LIMIT = 0.5

#: Name -> method.
SCORERS: Mapping[str, type[Scorer]] = MappingProxyType(
    {
        scorer.name: scorer
        for scorer in (
            MaxSoftmax,
            MaxLogit,
            Energy,
            Disagreement,
            NearestNeighbour,
            VirtualLogit,
            Mahalanobis,
            RelativeMahalanobis,
        )
    }
)


def fit_scorer(
    name: str, features: FloatArray | None, logits: FloatArray, target: IntArray
) -> Scorer:
    """Fit the named method on training images, see `Scorer.fit`.

    Raises:
        ConfigError: there is no such method.
        DataError: there is no image to fit on, or the arrays do not fit each other.
    """
    if name not in SCORERS:
        raise ConfigError(
            f"There is no method {name!r} to recognise unknown images. The methods are "
            f"{', '.join(SCORERS)}."
        )
    return SCORERS[name].fit(features, logits, target)


def scorer_of_arrays(name: str, arrays: Mapping[str, Array]) -> Scorer:
    """Make a scorer from its name and its arrays (`Scorer.to_arrays`).

    Raises:
        CheckpointError: this version knows no such method, or the arrays do not fit it.
    """
    if name not in SCORERS:
        raise CheckpointError(
            f"Unknown images are to be recognised by {name!r}, which this version does not know "
            f"(it knows {', '.join(SCORERS)}). Update recame: pip install -U recame"
        )
    return SCORERS[name].from_arrays(arrays)


@dataclass(frozen=True)
class FalseAlarms:
    """What is promised about the share of known images that are called unknown.

    Attributes:
        limit: the requested limit.
        kept: whether it is promised.
        at_most: what is promised; if `kept` is false, the smallest limit these images can promise.
        images: number of images that count.
        allowed: how many of them may be false alarms.
        alarms: how many are, at the threshold; without a threshold, those with an infinite score.
        needed: the fewest images that promise the limit; None if it is kept.
    """

    limit: float
    kept: bool
    at_most: float
    images: int
    allowed: int
    alarms: int
    needed: int | None


@dataclass(frozen=True)
class UnknownThreshold:
    """The threshold for unknown images, and what it promises.

    Attributes:
        threshold: an image whose score exceeds it is unknown; None if a limit cannot be kept.
        risk: probability with which any of the promises may fail.
        known: false alarms over all known classes.
        tail: false alarms over the tail classes together; None without a limit for them.
    """

    threshold: float | None
    risk: float
    known: FalseAlarms
    tail: FalseAlarms | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return asdict(self)


def is_unknown(scores: FloatArray, threshold: float | None) -> BoolArray:
    """(N,) whether scores (N,) exceed the threshold, or are NaN.

    Args:
        scores: of a `Scorer`.
        threshold: None: only images with NaN or infinite values are unknown.
    """
    barred: BoolArray = ~np.isfinite(scores)
    return barred if threshold is None else barred | (scores > threshold)


def fit_unknown_threshold(
    scores: FloatArray,
    target: IntArray,
    tail_classes: BoolArray,
    *,
    limit: float,
    tail_limit: float | None,
    risk: float,
    mix: FloatArray | None = None,
    seed: int = 0,
) -> UnknownThreshold:
    """Find the lowest threshold whose false alarms are promised, for all classes and for the tail.

    Each limit needs a threshold that at most `most_allowed` scores exceed; this number does not
    depend on the scores. The higher of the two thresholds keeps both limits. The images may be a
    random sample of the line, or a fixed number of each class: a sum of draws with unequal rates is
    no more likely to be small than one with their mean (Hoeffding, Annals of Mathematical
    Statistics 1956).

    Args:
        scores: (N,) of images that neither trained the model nor fitted the scorer.
        target: (N,) class indices; rows with -1 are left out.
        tail_classes: (C,) which classes are the tail.
        limit: share of the known images that may be called unknown, in (0, 0.5].
        tail_limit: the same for the images of the tail classes together; None: no limit.
        risk: probability with which any of the promises may fail, in (0, 0.25]; divided over them.
        mix: (C,) class shares for which the promises hold; None: those of the images. A sample
            with these shares is drawn from the images.
        seed: of that sample.

    Raises:
        ConfigError: a limit or the risk is out of range, or the mix is not one share per class.
        DataError: the arrays do not fit each other.
    """
    _check(scores, target, tail_classes, mix)
    _check_asked(limit, tail_limit, risk)
    values = np.where(np.isfinite(scores), scores, np.inf).astype(np.float64)
    every = np.ones_like(tail_classes, np.bool_)
    asked = [(every, limit)]
    if tail_limit is not None:
        asked.append((tail_classes, tail_limit))
    parts = []
    for classes, most in asked:
        rows, factor = in_shares(target, classes, mix, seed)
        parts.append((values[rows], most, factor))
    each = risk / len(parts)
    lowest = [_lowest(part, most * factor, each) for part, most, factor in parts]
    known = [value for value in lowest if value is not None]
    threshold = max(known) if len(known) == len(parts) else None
    told = [_alarms(*part, each, threshold) for part in parts]
    return UnknownThreshold(threshold, risk, told[0], told[1] if len(told) > 1 else None)


def _lowest(scores: FloatArray, limit: float, risk: float) -> float | None:
    """The threshold that promises a limit; None if none does."""
    found = above_all_but(scores, most_allowed(len(scores), limit, risk))
    return found if math.isfinite(found) else None


def _alarms(
    scores: FloatArray, limit: float, factor: float, risk: float, threshold: float | None
) -> FalseAlarms:
    """What images promise about a limit; `factor` is m / n of `in_shares`."""
    certain = int(np.isinf(scores).sum())
    allowed = most_allowed(len(scores), limit * factor, risk)
    kept = allowed >= certain
    at_most = smallest_limit(len(scores), max(allowed, certain), risk) / factor
    return FalseAlarms(
        limit=limit,
        kept=kept,
        at_most=min(at_most, limit if kept else 1.0),
        images=len(scores),
        allowed=max(allowed, 0),
        alarms=int(is_unknown(scores, threshold).sum()),
        needed=None if kept else images_needed(limit * factor, risk, certain),
    )


def in_shares(
    target: IntArray, classes: BoolArray, mix: FloatArray | None, seed: int
) -> tuple[IntArray, float]:
    """Draw rows of some classes in the shares of a mix; also return m / n, see below.

    With n_c >= m * share_c images of each class, n in all, the rate on the mix is at most n / m
    times the rate on these images. To promise `limit`, they have to promise limit * m / n.
    """
    counts = np.bincount(target[target >= 0], minlength=len(classes)) * classes
    if mix is None:
        wanted, factor = counts, 1.0
    else:
        shares = mix * classes / max(float((mix * classes).sum()), 1e-300)
        asked = shares > 0
        images = float((counts[asked] / shares[asked]).min(initial=math.inf))
        images = images if math.isfinite(images) else 0.0
        wanted = np.minimum(np.ceil(images * shares - 1e-9), counts).astype(np.int64)
        factor = min(images / max(int(wanted.sum()), 1), 1.0) or 1.0
    order = np.random.default_rng(seed).permutation(len(target))
    order = order[(target[order] >= 0)]
    order = order[np.argsort(target[order], kind="stable")]
    every = np.bincount(target[order], minlength=len(classes))
    place = np.arange(len(order)) - np.repeat(np.cumsum(every) - every, every)
    return order[place < wanted[target[order]]], factor


def _check(
    scores: FloatArray, target: IntArray, tail_classes: BoolArray, mix: FloatArray | None
) -> None:
    num_classes = len(tail_classes)
    if len(scores) != len(target) or (len(target) and int(target.max()) >= num_classes):
        raise DataError(
            f"There are {len(scores)} scores, {len(target)} targets and {num_classes} classes, "
            "which do not fit each other. Give a score and a class index for each image."
        )
    if mix is None:
        return
    if mix.shape != (num_classes,) or not (np.isfinite(mix) & (mix >= 0)).all() or not mix.any():
        raise ConfigError(
            f"The mix is {mix.tolist()}, but it needs a share of 0 or more for each of "
            f"{num_classes} classes, not all of them 0."
        )


def _check_asked(limit: float, tail_limit: float | None, risk: float) -> None:
    for name, value in (("limit", limit), ("tail_limit", tail_limit)):
        if value is not None and not 0 < value <= MOST_LIMIT:
            raise ConfigError(
                f"{name} is {value}; it must be a share of the known images above 0 and up to "
                f"{MOST_LIMIT}."
            )
    if not 0 < risk <= _MOST_RISK:
        raise ConfigError(f"risk is {risk}; it must be above 0 and up to {_MOST_RISK}.")
