"""How often the experts differ, and what the ensemble gains or loses there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.label_space import LabelSpace
from recame.metrics.paired import Difference, paired_differences
from recame.metrics.statistics import wilson_interval


@dataclass(frozen=True)
class Disagreement:
    """How the experts of one model differ on labelled images.

    Attributes:
        num_experts: E >= 2.
        images: N.
        disagreed: images on which the experts do not all predict the same class.
        pairwise: mean share of images on which two experts differ.
        fleiss_kappa: agreement beyond chance; 1: full agreement (Fleiss, Psychological Bulletin
            1971). None if all experts predict the same class for every image.
        accuracy_agreed: the ensemble's accuracy on images where all experts agree, with its Wilson
            interval; None if there is no such image.
        accuracy_disagreed: the same where they do not all agree.
        rescued: images that the ensemble classifies correctly and the best single expert does not.
        lost: images that the best single expert classifies correctly and the ensemble does not.
        any_right: share of images that at least one expert classifies correctly.
        best_expert: index of the expert of highest balanced accuracy.
        gain: balanced accuracy of the ensemble compared with that expert, on the same images.
    """

    num_experts: int
    images: int
    disagreed: int
    pairwise: float
    fleiss_kappa: float | None
    accuracy_agreed: tuple[float, float, float] | None
    accuracy_disagreed: tuple[float, float, float] | None
    rescued: int
    lost: int
    any_right: float
    best_expert: int
    gain: Difference

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return {**asdict(self), "gain": self.gain.to_dict()}


def expert_disagreement(
    expert_probabilities: FloatArray,
    probabilities: FloatArray,
    target: IntArray,
    label_space: LabelSpace,
    *,
    seed: int = 0,
) -> Disagreement | None:
    """Count where the experts differ.

    Args:
        expert_probabilities: (N, E, C).
        probabilities: (N, C) the ensemble's.
        target: (N,) class indices; rows with -1 are left out.
        label_space: C classes.
        seed: of the interval's resampling.

    Returns:
        None for fewer than two experts, or without a labelled image.
    """
    known = target >= 0
    if expert_probabilities.shape[1] < 2 or not known.any():
        return None
    truth = target[known]
    calls = expert_probabilities[known].argmax(2)
    together = probabilities[known].argmax(1)
    num_images, num_experts = calls.shape
    votes = np.zeros((num_images, label_space.num_classes), np.int32)
    np.add.at(votes, (np.arange(num_images)[:, None], calls), 1)
    agreement = (votes * (votes - 1)).sum(1) / (num_experts * (num_experts - 1))
    chance = float(((votes.sum(0) / calls.size) ** 2).sum())
    differ = votes.max(1) < num_experts
    hit, right = calls == truth[:, None], together == truth
    weight = 1 / np.bincount(truth)[truth]  # each class counts equally
    best = int((hit * weight[:, None]).sum(0).argmax())
    gain = paired_differences(
        truth, together, calls[:, best], label_space, resamples=1000, seed=seed
    )["balanced_accuracy"]
    return Disagreement(
        num_experts=num_experts,
        images=num_images,
        disagreed=int(differ.sum()),
        pairwise=float(1 - agreement.mean()),
        fleiss_kappa=float((agreement.mean() - chance) / (1 - chance)) if chance < 1 else None,
        accuracy_agreed=_share(right[~differ]),
        accuracy_disagreed=_share(right[differ]),
        rescued=int((right & ~hit[:, best]).sum()),
        lost=int((~right & hit[:, best]).sum()),
        any_right=float(hit.any(1).mean()),
        best_expert=best,
        gain=gain,
    )


def _share(right: BoolArray) -> tuple[float, float, float] | None:
    if not len(right):
        return None
    low, high = wilson_interval(int(right.sum()), len(right))
    return float(right.mean()), float(low), float(high)
