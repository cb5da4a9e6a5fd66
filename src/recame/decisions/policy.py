"""What an image's probabilities lead to: its class stands, or a person looks, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recame.contracts import Array, BoolArray, FloatArray, IntArray
from recame.decisions.actions import ACTION_OF, ACTIONS, RELEASE, Policy, candidates
from recame.decisions.scored import logits_of
from recame.decisions.strangeness import Scorer

#: How far a row of probabilities may be from a sum of 1; half precision stays well within.
_SUM_TOLERANCE = 0.05

NO_NUMBER = "the model's answer is no number (NaN or infinite)"
NO_DISTRIBUTION = "the model's answer is no probability of each class"
ALL_ALIKE = "the model holds every class for equally probable"


class Decided(NamedTuple):
    """What is done with N images.

    Attributes:
        best: (N,) most probable class; meaningless where `faults` says why there is none.
        confidence: (N,) its probability.
        actions: of `ACTIONS`.
        reasons: of `REASONS`.
        faults: why an answer names no class, in words; None where it does.
        candidates: for images that go to a person the classes to look for, joined by `|`; empty
            for the others.
        strangeness: (N,) how strange each is to the model; NaN where nothing says so.
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
    """What decides by a model's answers: a fitted policy, or without one the best class itself.

    Attributes:
        names: of the C classes.
        policy: what `recame tune` has fitted; None: each image is taken for its best class.
        scorer: of how strange images are to the model; None: nothing says so.
        temperature: what undoes the scale of the probabilities (`Calibration.temperature`).
        normal: index of the normal class, for `release_above`.
        release_above: probability that the normal class needs to pass unseen without a policy, as
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

        An answer that names no class goes to a person: the largest of no numbers is the first
        class, mostly the normal one, and every comparison with them is false. So are all classes
        equally probable where a graph has lost what was no number on its way.

        Args:
            probabilities: (N, C), calibrated.
            experts: (N, E, C) of each expert, if they are known.
            digests: SHA-256 of the N files, by which a policy draws its audit; None: it draws none.
            features: (N, E, D), by which a scorer tells the unknown.
            strangeness: (N,) where that is known already.
            products: of the N images, where that is known.
            near_black: of which N images the model sees next to nothing, as whoever read the files
                tells.
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
    """What is said where images are not told by product, and the policy asks."""
    return (
        f"The decisions tell new products by the column {policy.product_column!r}, which the table "
        "of images has not: an image of a product that training has not seen is decided like any "
        "other. Add the column."
    )


#: Actions by which a person sees an image.
_SEEN = ("review", "unknown")


def names_a_class(probabilities: FloatArray) -> BoolArray:
    """(N,) whether (N, C) probabilities are numbers that tell one class from another."""
    return np.array([fault is None for fault in _faults(probabilities, None)], np.bool_)


def _faults(probabilities: Array, experts: Array | None) -> list[str | None]:
    """Why each answer names no class."""
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
