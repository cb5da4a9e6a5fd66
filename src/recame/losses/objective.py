"""The training objective: weighted, named terms over the outputs of several experts.

Source: Shao et al., ReCAME-Net, IEEE TCAD 2026, arXiv 2510.19463. With the default arguments the
numbers are those of the published implementation; each ablation of the paper is one argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from recame.contracts import ExpertOutput, LossResult
from recame.errors import ConfigError
from recame.losses.distillation import category_distillation, mutual_distillation
from recame.losses.diversity import expert_divergence
from recame.losses.hard_category import (
    gathered_cross_entropy,
    hard_categories,
    keep_hard,
    masked_cross_entropy,
    num_hard_categories,
)
from recame.losses.logit_adjustment import adjust_logits, cross_entropy, log_class_counts
from recame.losses.metric import contrastive, intra_class, pairwise_distances
from recame.losses.reweighting import (
    batch_mean,
    class_balanced_weights,
    focal,
    ldam,
    ldam_margins,
)

Base = Literal["cross_entropy", "class_balanced", "focal", "ldam", "balanced_softmax"]
HardMode = Literal["reference", "gather"]
HardSelection = Literal["reference", "own"]


class TrainingLoss(nn.Module):
    """What trains experts: the `Objective`, or a loss of one's own under the same interface.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def set_deferred(self, active: bool) -> None:
        """Called at each epoch's start: whether deferred re-weighting has begun."""

    def forward(self, output: ExpertOutput, target: Tensor) -> LossResult:
        """The loss of one batch.

        Args:
            output: logits (B, E, C) and features (B, E, D).
            target: (B,) class indices in [0, C).
        """
        raise NotImplementedError


#: Makes a loss from the (C,) training counts, the number of experts and the (C,) prior that the
#: sampler shows.
LossFactory = Callable[[Sequence[int], int, Tensor], TrainingLoss]


class Objective(TrainingLoss):
    """Sum of weighted terms; a term of weight 0 is not computed and has no part.

    | part | what | formula |
    | --- | --- | --- |
    | `base` | a loss on all categories | `base` chooses |
    | `hard` | cross-entropy on the hard categories | `hard_category` |
    | `distillation` | mutual distillation on all categories | `distillation` |
    | `hard_distillation` | the same on the hard categories | `distillation` |
    | `diversity` | experts apart from their ensemble (negative) | `diversity` |
    | `contrastive` | classes apart, each class together | `metric` |
    | `intra` | each class together | `metric` |

    The classification terms are summed over experts and averaged over the batch. `hard` and both
    distillations see the balanced logits, `logits + tau * log(counts)`, if the base is
    `balanced_softmax`, and the raw logits with any other base. Everything is computed in at least
    float32, under autocast too. A class without training images counts as one image.

    Args:
        counts: (C,) training images of each class, zeros kept.
        num_experts: E.
        base: the loss on all categories.
        tau: factor of the log prior, for all experts or one an expert (BalPoE).
        base_weight: weight of `base`.
        hard_weight: weight of `hard`.
        hard_fraction: share of the categories kept as hard, in [0, 1]; at least 2 are kept.
        hard_mode: `reference` sets the other categories' balanced logits to 0, `gather` leaves
            them out of the softmax.
        hard_selection: `reference` takes the highest raw logits of the first expert for all,
            `own` each expert's highest balanced logits.
        distillation_weight: weight of `distillation`.
        hard_distillation_weight: weight of `hard_distillation`.
        detach_target: whether distillation's target distribution is a constant.
        diversity_weight: weight of `diversity`, which is taken from the loss: 0.2 to 0.45 in RIDE.
        contrastive_weight: weight of `contrastive`.
        intra_weight: weight of `intra`.
        margin: of `contrastive`, in units of the features' distance.
        normalise_features: whether the metric terms see features of unit length; the margin then
            lies in (0, 2].
        class_balanced_beta: beta of the class-balanced weights, in [0, 1].
        focal_gamma: gamma of the focal loss.
        ldam_max_margin: margin of the rarest class, in units of the cosine.
        ldam_scale: the classifier's scale, by which its cosines were multiplied.
        prior: (C,) how often the classes are drawn in training, up to a factor, where a sampler
            makes it differ from `counts`. Changes the logit adjustment only.
        num_hard: number of hard categories, the target's included; overrides `hard_fraction`.

    Raises:
        ConfigError: arguments that contradict each other or that no loss can be made of.

    Examples:
        >>> objective = Objective([90, 9, 1], num_experts=2, contrastive_weight=0, intra_weight=0)
        >>> output = ExpertOutput(torch.zeros(4, 2, 3), torch.zeros(4, 2, 8))
        >>> result = objective(output, torch.tensor([0, 1, 2, 0]))
        >>> list(result.parts)
        ['base', 'hard', 'distillation', 'hard_distillation']
    """

    log_counts: Tensor
    tau: Tensor
    class_weights: Tensor
    margins: Tensor

    def __init__(
        self,
        counts: Sequence[int] | Tensor,
        *,
        num_experts: int,
        base: Base = "balanced_softmax",
        tau: float | Sequence[float] = 1.0,
        base_weight: float = 1.0,
        hard_weight: float = 1.0,
        hard_fraction: float = 0.3,
        hard_mode: HardMode = "reference",
        hard_selection: HardSelection = "reference",
        distillation_weight: float = 0.6,
        hard_distillation_weight: float = 0.6,
        detach_target: bool = False,
        contrastive_weight: float = 0.05,
        intra_weight: float = 0.05 * 0.0125,
        margin: float = 20.0,
        normalise_features: bool = False,
        class_balanced_beta: float = 0.9999,
        focal_gamma: float = 2.0,
        ldam_max_margin: float = 0.5,
        ldam_scale: float = 30.0,
        prior: Tensor | None = None,
        num_hard: int | None = None,
        diversity_weight: float = 0.0,
    ) -> None:
        images = _checked_counts(counts)
        super().__init__(len(images))
        self.weights = checked_weights(
            base=base_weight,
            hard=hard_weight,
            distillation=distillation_weight,
            hard_distillation=hard_distillation_weight,
            diversity=diversity_weight,
            contrastive=contrastive_weight,
            intra=intra_weight,
        )
        check_choice("base", base, Base)
        check_choice("hard_mode", hard_mode, HardMode)
        check_choice("hard_selection", hard_selection, HardSelection)
        if normalise_features and contrastive_weight > 0 and not 0 < margin <= 2:
            raise ConfigError(
                f"margin={margin} with normalise_features=True: unit vectors are never further "
                "than 2 apart, so the margin would push every pair for ever. Give a margin in "
                "(0, 2], for example 1."
            )
        if num_experts < 1 or not 0 <= class_balanced_beta <= 1:
            raise ConfigError(
                f"num_experts={num_experts} must be 1 or more and "
                f"class_balanced_beta={class_balanced_beta} in [0, 1]: correct the one that is not."
            )
        self.num_experts = num_experts
        self.base, self.hard_mode, self.hard_selection = base, hard_mode, hard_selection
        self.num_hard = _checked_num_hard(num_hard, hard_fraction, self.num_classes)
        self.detach_target = detach_target
        self.margin, self.normalise_features = margin, normalise_features
        self.focal_gamma, self.ldam_scale = focal_gamma, ldam_scale
        self.deferred = False
        # Derived from the arguments: a checkpoint must not bring back another set's counts.
        for name, buffer in {
            "log_counts": log_class_counts(images, _checked_prior(prior, self.num_classes)),
            "tau": _checked_tau(tau, num_experts),
            "class_weights": class_balanced_weights(images, class_balanced_beta),
            "margins": ldam_margins(images, ldam_max_margin),
        }.items():
            self.register_buffer(name, buffer.float(), persistent=False)

    def set_deferred(self, active: bool) -> None:
        """Switch class-balanced weights on the base loss on or off.

        Deferred re-weighting (Cao et al., NeurIPS 2019, Algorithm 1): train plainly first, then
        re-weight for the last part. Works with any base; `class_balanced` is weighted anyway.
        """
        self.deferred = active

    def forward(self, output: ExpertOutput, target: Tensor) -> LossResult:
        """The loss of one batch.

        Args:
            output: logits (B, E, C) and features (B, E, D) of any float dtype.
            target: (B,) class indices in [0, C).

        Returns:
            The total and its parts; for an empty batch zeros that are still differentiable.
        """
        assert output.logits.shape[1:] == (self.num_experts, self.num_classes)
        with torch.autocast(output.logits.device.type, enabled=False):
            logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
            terms = self._classification_terms(logits, target)
            return weighted_total(self.weights, terms | self._metric_terms(output.features, target))

    def _classification_terms(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        weights, terms = self.weights, dict[str, Tensor]()
        balanced = logits
        if self.base == "balanced_softmax":
            balanced = adjust_logits(logits, self.log_counts.float(), self.tau.float())
        if weights["base"] > 0:
            terms["base"] = self._base(balanced, target)
        if weights["distillation"] > 0:
            terms["distillation"] = batch_mean(
                mutual_distillation(balanced, detach_target=self.detach_target)
            )
        if weights["diversity"] > 0:
            # Of the raw logits: what the experts will say, not what the prior makes of it.
            terms["diversity"] = -batch_mean(expert_divergence(logits))
        if weights["hard"] > 0 or weights["hard_distillation"] > 0:
            scores = balanced if self.hard_selection == "own" else logits[:, :1]
            categories = hard_categories(scores, target, self.num_hard)
            categories = categories.expand(-1, self.num_experts, -1)
            if weights["hard"] > 0:
                terms["hard"] = self._hard(balanced, target, categories)
            if weights["hard_distillation"] > 0:
                terms["hard_distillation"] = self._hard_distillation(balanced, categories)
        return terms

    def _base(self, balanced: Tensor, target: Tensor) -> Tensor:
        if self.base == "focal":
            losses = focal(balanced, target, self.focal_gamma)
        elif self.base == "ldam":
            losses = ldam(balanced, target, self.margins.to(balanced.dtype), self.ldam_scale)
        else:
            losses = cross_entropy(balanced, target)
        weighted = self.deferred or self.base == "class_balanced"
        return batch_mean(losses, self.class_weights.to(losses.dtype)[target] if weighted else None)

    def _hard(self, balanced: Tensor, target: Tensor, categories: Tensor) -> Tensor:
        return batch_mean(
            gathered_cross_entropy(balanced, categories)
            if self.hard_mode == "gather"
            else masked_cross_entropy(balanced, target, categories)
        )

    def _hard_distillation(self, balanced: Tensor, categories: Tensor) -> Tensor:
        detach = self.detach_target
        if self.hard_mode == "gather":
            return batch_mean(category_distillation(balanced, categories, detach_target=detach))
        return batch_mean(
            mutual_distillation(keep_hard(balanced, categories), detach_target=detach)
        )

    def _metric_terms(self, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        terms = dict[str, Tensor]()
        if self.weights["contrastive"] > 0 or self.weights["intra"] > 0:
            distances = pairwise_distances(features, normalise=self.normalise_features)
            if self.weights["contrastive"] > 0:
                terms["contrastive"] = contrastive(distances, target, self.margin).sum()
            if self.weights["intra"] > 0:
                terms["intra"] = intra_class(distances, target).sum()
        return terms


def weighted_total(weights: dict[str, float], terms: dict[str, Tensor]) -> LossResult:
    """The sum of the terms that were computed, each times its weight, and these parts."""
    weighted = {name: weight * terms[name] for name, weight in weights.items() if name in terms}
    total = torch.stack(list(weighted.values())).sum()
    return LossResult(total, {name: term.detach() for name, term in weighted.items()})


def checked_weights(**weights: float) -> dict[str, float]:
    """The weights of the terms, if each is 0 (leaves its term out) or more and not all are 0."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ConfigError(
                f"The weight of {name} is {weight}, but must be 0 (leaves the term out) or more: a "
                "negative one would reward mistakes."
            )
    if not any(weights.values()):
        raise ConfigError(
            "Every weight of the loss is 0, so that there is nothing to learn: give at least one "
            f"of {', '.join(weights)} a weight above 0."
        )
    return weights


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that is none of a `Literal`'s."""
    if value not in get_args(choices):
        raise ConfigError(
            f"{name}={value!r} is unknown: choose one of {', '.join(get_args(choices))}."
        )


def _checked_counts(counts: Sequence[int] | Tensor) -> Tensor:
    images = torch.as_tensor(counts, dtype=torch.float64).detach().cpu()
    if (
        images.ndim != 1
        or len(images) < 2
        or not bool((images >= 0).all() & images.isfinite().all())
    ):
        raise ConfigError(
            f"counts={images.tolist()} must hold the number of training images, 0 or more, of each "
            "of two classes at least: the class prior is made of them. Take them from the label "
            "space."
        )
    return images


def _checked_prior(prior: Tensor | None, num_classes: int) -> Tensor | None:
    if prior is None:
        return None
    shares = torch.as_tensor(prior, dtype=torch.float64).detach().cpu()
    if shares.shape != (num_classes,) or not bool(
        (shares >= 0).all() & (0 < shares.sum() < torch.inf)
    ):
        raise ConfigError(
            f"prior={shares.tolist()} must hold one share, 0 or more and not all 0, for each of "
            f"{num_classes} classes: it says how often the sampler draws them."
        )
    return shares


def _checked_tau(tau: float | Sequence[float], num_experts: int) -> Tensor:
    factors = torch.as_tensor(tau, dtype=torch.float64)
    if factors.numel() not in {1, num_experts} or not bool(factors.isfinite().all()):
        raise ConfigError(
            f"tau={tau} for num_experts={num_experts}: give one number, or one for each expert."
        )
    return factors.flatten().expand(num_experts).clone()


def _checked_num_hard(num_hard: int | None, fraction: float, num_classes: int) -> int:
    number = num_hard_categories(num_classes, fraction) if num_hard is None else num_hard
    if not 1 <= number <= num_classes:
        raise ConfigError(
            f"num_hard={number} of {num_classes} classes: give 1 to {num_classes}, the target's "
            "category included, or leave it out and set hard_fraction."
        )
    return number
