"""Decide images from a model's outputs: book the class, or send the image to a person, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recame.contracts import Array, BoolArray, FloatArray, IntArray
from recame.decisions.actions import ACTION_OF, ACTIONS, RELEASE, Policy, candidates
from recame.decisions.scored import logits_of
from recame.decisions.strangeness import Scorer

#: The sum of a row of probabilities may differ from 1 by this much; half precision stays within.
_SUM_TOLERANCE = 0.05

NO_NUMBER = "the model's answer is no number (NaN or infinite)"
NO_DISTRIBUTION = "the model's answer is no probability of each class"
ALL_ALIKE = "the model holds every class for equally probable"


class Decided(NamedTuple):
    """The decisions on N images.

    Attributes:
        best: (N,) most probable class; meaningless where `faults` is not None.
        confidence: (N,) its probability.
        actions: each one of `ACTIONS`.
        reasons: each one of `REASONS`.
        faults: why the model's output names no class, in words; None if it names one.
        candidates: the classes to look for, joined by `|`, for images that go to a person; empty
            for the others.
        strangeness: (N,) how strange each image is to the model; NaN without a scorer.
    """

    best: IntArray
    confidence: FloatArray
    actions: Sequence[str]
    reasons: Sequence[str]
    faults: Sequence[str | None]
    candidates: Sequence[str]
    strangeness: FloatArray


@dataclass(frozen=True)
class Decider:
    """Decides images from a model's outputs, by a fitted policy or by the best class.

    Attributes:
        names: of the C classes.
        policy: fitted by `recame tune`; None: each image is booked as its best class.
        scorer: of how strange images are to the model; None: there is none.
        temperature: restores the scale of the logits (`Calibration.temperature`).
        normal: index of the normal class, for `release_above`.
        release_above: probability that the normal class needs to be released without a policy, as
            bundles of earlier versions have it; None: any.
    """

    names: tuple[str, ...]
    policy: Policy | None = None
    scorer: Scorer | None = None
    temperature: float = 1.0
    normal: int | None = None
    release_above: float | None = None

    def decide(
        self,
        probabilities: FloatArray,
        experts: FloatArray | None = None,
        digests: Sequence[str | None] | None = None,
        *,
        features: FloatArray | None = None,
        strangeness: FloatArray | None = None,
        products: Sequence[str | None] | None = None,
        near_black: Sequence[bool] | None = None,
    ) -> Decided:
        """Decide N images.

        An output that names no class goes to a person. This is checked first: argmax of NaN is the
        first class, mostly the normal one, and every comparison with NaN is false. Some graphs turn
        NaN into equal probabilities of all classes, so these go to a person too.

        Args:
            probabilities: (N, C), calibrated.
            experts: (N, E, C) of each expert, if they are known.
            digests: SHA-256 of the N files, by which a policy draws its audit; None: no audit.
            features: (N, E, D), from which the scorer recognises unknown images.
            strangeness: (N,), if it is known already.
            products: of the N images, if they are known.
            near_black: (N,) whether the model sees a nearly black image, if that is known.
        """
        best, confidence = probabilities.argmax(1), probabilities.max(1)
        faults = _faults(probabilities, experts)
        if self.policy is None:
            reasons = self._by_threshold(best, confidence)
        else:
            drawn = None if digests is None else self.policy.draws(digests)
            logits = logits_of(probabilities, self.temperature)
            if self.scorer is not None and strangeness is None:
                strangeness = self.scorer.score(features, logits)
            acted = self.policy.act(logits, strangeness=strangeness, products=products, drawn=drawn)
            reasons = acted.reasons()
            passes = acted.action == RELEASE
            best = np.where(passes, acted.best, best)
            confidence = np.take_along_axis(probabilities, best[:, None], 1)[:, 0]
        if near_black is not None:
            told = zip(reasons, near_black, strict=True)
            reasons = ["near_black" if dark else reason for reason, dark in told]
        reasons = [
            reason if fault is None else "not_finite"
            for reason, fault in zip(reasons, faults, strict=True)
        ]
        actions = [ACTIONS[ACTION_OF[reason]] for reason in reasons]
        seen = np.array([action in _SEEN for action in actions], np.bool_)
        seen &= np.array([fault is None for fault in faults], np.bool_)
        looked_for = [""] * len(actions)
        if seen.any():
            likeliest = candidates(self.names, probabilities[seen])
            for place, likely in zip(np.flatnonzero(seen).tolist(), likeliest, strict=True):
                looked_for[place] = likely
        if strangeness is None:
            strangeness = np.full(len(best), np.nan)
        return Decided(best, confidence, actions, reasons, faults, looked_for, strangeness)

    def _by_threshold(self, best: IntArray, confidence: FloatArray) -> list[str]:
        """Each image's reason without a policy."""
        if self.normal is None or self.release_above is None:
            return ["automatic"] * len(best)
        sure = confidence >= np.float32(self.release_above)
        places = np.where(best != self.normal, 0, np.where(sure, 1, 2))
        return [("automatic", "released", "below_release")[place] for place in places]


def without_products(policy: Policy) -> str:
    """The warning if the policy checks products, but the table has no product column."""
    return (
        f"The decisions recognise new products by the column {policy.product_column!r}, but the "
        "table of images has no such column: an image of a product that training has not seen is "
        "decided like any other. Add the column."
    )


#: Actions by which a person sees an image.
_SEEN = ("review", "unknown")


def names_a_class(probabilities: FloatArray) -> BoolArray:
    """(N,) whether (N, C) probabilities are finite and not equal for all classes."""
    return np.array([fault is None for fault in _faults(probabilities, None)], np.bool_)


def _faults(probabilities: Array, experts: Array | None) -> list[str | None]:
    """Why each output names no class; None if it names one."""
    finite = np.asarray(np.isfinite(probabilities).all(1))
    if experts is not None:
        finite &= np.isfinite(experts).all((1, 2))
    with np.errstate(invalid="ignore"):
        likely = (probabilities.min(1) >= -_SUM_TOLERANCE) & (
            np.abs(probabilities.sum(1) - 1) <= _SUM_TOLERANCE
        )
        alike = np.equal(probabilities.max(1), probabilities.min(1))
    if (finite & likely & ~alike).all():
        return [None] * len(probabilities)
    return [
        NO_NUMBER if not number else NO_DISTRIBUTION if not known else ALL_ALIKE if same else None
        for number, known, same in zip(finite, likely, alike, strict=True)
    ]
