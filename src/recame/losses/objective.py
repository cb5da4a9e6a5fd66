"""The training objective: weighted, named terms over the outputs of several experts.

Source: Shao et al., ReCAME-Net, IEEE TCAD 2026, arXiv 2510.19463. The default arguments reproduce
the numbers of the published implementation; each ablation of the paper is one argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from recame.config import Config, as_config
from recame.config.objective import usual_tau
from recame.contracts import AnyPath, ExpertOutput, LossResult, ensemble_logits
from recame.errors import ConfigError
from recame.losses.arguments import (
    check_choice,
    check_margin,
    checked_counts,
    checked_num_features,
    checked_num_hard,
    checked_prior,
    checked_weights,
)
from recame.losses.distillation import category_distillation, mutual_distillation
from recame.losses.diversity import expert_divergence
from recame.losses.hard_category import (
    Confusion,
    differing_share,
    gathered_cross_entropy,
    hard_categories,
    keep_hard,
    masked_cross_entropy,
)
from recame.losses.logit_adjustment import (
    adjust_logits,
    checked_tau,
    cross_entropy,
    log_class_counts,
)
from recame.losses.memory import Memory
from recame.losses.metric import (
    active_share,
    contrastive,
    intra_class,
    pairwise_distances,
    relative_margin,
    unit_features,
)
from recame.losses.prototypes import Prototypes
from recame.losses.reweighting import (
    batch_mean,
    class_balanced_weights,
    focal,
    ldam,
    ldam_margins,
)
from recame.losses.training_loss import Labels, TrainingLoss, weighted_total, wide

Base = Literal["cross_entropy", "class_balanced", "focal", "ldam", "balanced_softmax"]
HardMode = Literal["reference", "gather"]
HardSelection = Literal["reference", "own", "confusion"]
IntraMode = Literal["reference", "clusters"]
MarginMode = Literal["absolute", "relative"]


class Objective(TrainingLoss):
    """Sum of weighted terms; a term of weight 0 is not computed and has no part.

    | part | meaning | formula in |
    | --- | --- | --- |
    | `base` | a loss on all categories | chosen by `base` |
    | `hard` | cross-entropy on the hard categories | `hard_category` |
    | `distillation` | mutual distillation on all categories | `distillation` |
    | `hard_distillation` | the same on the hard categories | `distillation` |
    | `diversity` | pushes experts away from their ensemble (negative) | `diversity` |
    | `contrastive` | pushes classes apart, pulls each class together | `metric` |
    | `intra` | pulls each class, or each of its clusters, together | `metric`, `prototypes` |

    The classification terms are summed over experts and averaged over the batch. `hard` and both
    distillations use the balanced logits, `logits + tau * log(counts)`, if the base is
    `balanced_softmax`, and the raw logits with any other base. Everything is computed in at least
    float32, also under autocast. A class without training images counts as one image.

    With `intra_mode="reference"`, `intra` repeats the part of `contrastive` that pulls a class
    together, 80 times weaker: leaving it out makes no visible difference. With
    `intra_mode="clusters"` the two are different terms: `contrastive` only pushes classes apart,
    and `intra` pulls each image to the nearest cluster of its class, `1 - cos` summed over the
    experts and averaged over the batch.

    `hard_selection="confusion"` and `intra_mode="clusters"` have a memory, in persistent buffers:
    call `remember` with the batch once after each training step.

    Args:
        counts: (C,) training images of each class, zeros included.
        num_experts: E.
        base: the loss on all categories.
        tau: factor of the log prior, one for all experts or one for each (BalPoE).
        base_weight: weight of `base`.
        hard_weight: weight of `hard`.
        hard_fraction: share of the categories kept as hard, in [0, 1]; at least 2 are kept.
        hard_mode: `reference` sets the other categories' balanced logits to 0; `gather` leaves
            them out of the softmax.
        hard_selection: `reference` takes the highest raw logits of the first expert, for all
            experts; `own` each expert's highest balanced logits; `confusion`, for all experts, the
            categories that the ensemble recently took the image's class for.
        distillation_weight: weight of `distillation`.
        hard_distillation_weight: weight of `hard_distillation`.
        detach_target: whether distillation's target distribution is a constant.
        diversity_weight: weight of `diversity`, which is subtracted: 0.2 to 0.45 in RIDE.
        contrastive_weight: weight of `contrastive`.
        intra_weight: weight of `intra`. The published value is for a sum over pairs; with
            `clusters` the term lies in [0, 2] for each expert.
        intra_mode: `reference` pulls all images of a class together; `clusters` pulls each image to
            the nearest prototype of its class.
        clusters: largest number of prototypes of a class, for `intra_mode="clusters"`; a class of
            n images has at most n / 2.
        margin: of `contrastive`, in units of the features' distance.
        margin_mode: `absolute` uses the margin unchanged; `relative` multiplies it by the mean
            distance between the batch's images of different classes.
        normalise_features: whether the metric terms use features of unit length; the margin then
            lies in (0, 2]. Clusters always use them.
        class_balanced_beta: beta of the class-balanced weights, in [0, 1].
        focal_gamma: gamma of the focal loss.
        ldam_max_margin: margin of the rarest class, in units of the cosine.
        ldam_scale: the scale by which the classifier multiplies its cosines.
        prior: (C,) how often training draws the classes, up to a factor, if a sampler makes it
            differ from `counts`. Changes the logit adjustment only.
        num_hard: number of hard categories, the target's included; overrides `hard_fraction`.
        num_features: D; needed for `intra_mode="clusters"`.

    Raises:
        ConfigError: arguments contradict each other or are out of range.

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
        intra_mode: IntraMode = "reference",
        clusters: int = 4,
        margin: float = 20.0,
        margin_mode: MarginMode = "absolute",
        normalise_features: bool = False,
        class_balanced_beta: float = 0.9999,
        focal_gamma: float = 2.0,
        ldam_max_margin: float = 0.5,
        ldam_scale: float = 30.0,
        prior: Tensor | None = None,
        num_hard: int | None = None,
        num_features: int | None = None,
        diversity_weight: float = 0.0,
    ) -> None:
        images = checked_counts(counts)
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
        check_choice("intra_mode", intra_mode, IntraMode)
        check_choice("margin_mode", margin_mode, MarginMode)
        if contrastive_weight > 0:
            check_margin(margin, margin_mode, normalised=normalise_features)
        if num_experts < 1 or clusters < 1 or not 0 <= class_balanced_beta <= 1:
            raise ConfigError(
                f"num_experts={num_experts} and clusters={clusters} must be 1 or more and "
                f"class_balanced_beta={class_balanced_beta} in [0, 1]: correct the one that is not."
            )
        self.num_experts = num_experts
        self.base, self.hard_mode, self.hard_selection = base, hard_mode, hard_selection
        self.num_hard = checked_num_hard(num_hard, hard_fraction, self.num_classes)
        self.detach_target = detach_target
        self.intra_mode, self.margin_mode = intra_mode, margin_mode
        self.margin, self.normalise_features = margin, normalise_features
        self.focal_gamma, self.ldam_scale = focal_gamma, ldam_scale
        self.deferred = False
        confused = hard_selection == "confusion" and self._mines
        clustered = intra_mode == "clusters" and intra_weight > 0
        width = checked_num_features(num_features) if clustered else 0
        self.memory = Memory(
            Confusion(self.num_classes) if confused else None,
            Prototypes(images, num_experts, width, clusters) if clustered else None,
        )
        # Not persistent: a checkpoint must not restore the counts of another data set.
        for name, buffer in {
            "log_counts": log_class_counts(images, checked_prior(prior, self.num_classes)),
            "tau": checked_tau(tau, num_experts),
            "class_weights": class_balanced_weights(images, class_balanced_beta),
            "margins": ldam_margins(images, ldam_max_margin),
        }.items():
            self.register_buffer(name, buffer.float(), persistent=False)

    @classmethod
    def from_config(
        cls,
        config: Config | Mapping[str, Any] | AnyPath | None,
        counts: Sequence[int] | Tensor,
        *,
        num_experts: int | None = None,
        prior: Tensor | None = None,
        num_features: int | None = None,
        fixed_features: bool = False,
    ) -> Objective:
        """The loss that training builds from settings.

        Args:
            config: the settings, see `recame.config.as_config`; None: the defaults.
            counts: (C,) training images of each class, zeros included.
            num_experts: E; None: from the settings, or 2 if these leave it open.
            prior: as for the class.
            num_features: D, width of the features that the classifier sees.
            fixed_features: whether the features do not change in training; metric terms are then
                left out, because they would have no effect.

        Raises:
            ConfigError: a setting is wrong.
        """
        settings = as_config(config)
        if (own := settings.objective.loss) is not None:
            raise ConfigError(
                f"objective.loss names {own.class_path}, a custom loss that the other settings do "
                "not describe: build it with recame.losses.own_loss."
            )
        terms = settings.objective.model_dump(
            exclude={"deferred_reweighting", "posthoc_tau", "loss"}
        )
        if num_experts is None:
            asked = settings.model.num_experts
            num_experts = 2 if asked == "auto" else asked
        if terms["tau"] == "auto":
            terms["tau"] = usual_tau(num_experts)
        if fixed_features:
            terms |= {"contrastive_weight": 0.0, "intra_weight": 0.0}
        return cls(
            counts,
            num_experts=num_experts,
            prior=prior,
            num_features=num_features,
            ldam_scale=settings.model.cosine_scale,
            **terms,
        )

    @property
    def _mines(self) -> bool:
        """Whether a term uses hard categories."""
        return self.weights["hard"] > 0 or self.weights["hard_distillation"] > 0

    @property
    def remembers(self) -> bool:
        """Whether the objective keeps clusters or a confusion matrix."""
        return self.memory.in_use

    def set_deferred(self, active: bool) -> None:
        """Switch class-balanced weights on the base loss on or off.

        Deferred re-weighting (Cao et al., NeurIPS 2019, Algorithm 1): train plainly first, then
        re-weight for the last part. Works with any base; `class_balanced` is weighted anyway.
        """
        self.deferred = active

    def remember(self, output: ExpertOutput, labels: Labels) -> None:
        """Update the memory with a batch, see `Memory.remember`; no effect in evaluation mode."""
        if self.training and self.remembers:
            self.memory.remember(output, labels)

    def forget(self) -> None:
        """Reset the memory: no clusters, and a uniform confusion matrix."""
        self.memory.forget()

    @torch.no_grad()
    def workings(self, output: ExpertOutput, target: Tensor) -> dict[str, Tensor]:
        """Measure whether the terms have an effect on a batch.

        Args:
            output: logits (B, E, C) and features (B, E, D).
            target: (B,) class indices in [0, C).

        Returns:
            For the terms that are computed: `hard_differs`, see `differing_share`; `pushed`, see
            `active_share`, mean over the experts; `clusters`, the number of prototypes of a class
            that are in use.
        """
        found = dict[str, Tensor]()
        with torch.autocast(output.logits.device.type, enabled=False):
            if self._mines:
                logits = wide(output.logits)
                categories = self._categories(logits, self._balanced(logits), target)
                found["hard_differs"] = differing_share(categories, logits)
            if self.weights["contrastive"] > 0:
                distances = pairwise_distances(output.features, normalise=self.normalise_features)
                margin = self._margin(distances, target)
                found["pushed"] = active_share(distances, target, margin).mean()
            if self.memory.prototypes is not None:
                found["clusters"] = self.memory.prototypes.num_live()
        return found

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
            terms = self._classification_terms(wide(output.logits), target)
            return weighted_total(self.weights, terms | self._metric_terms(output.features, target))

    def _balanced(self, logits: Tensor) -> Tensor:
        if self.base == "balanced_softmax":
            return adjust_logits(logits, self.log_counts.float(), self.tau.float())
        return logits

    def _classification_terms(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        weights, terms = self.weights, dict[str, Tensor]()
        balanced = self._balanced(logits)
        if weights["base"] > 0:
            terms["base"] = self._base(balanced, target)
        if weights["distillation"] > 0:
            terms["distillation"] = batch_mean(
                mutual_distillation(balanced, detach_target=self.detach_target)
            )
        if weights["diversity"] > 0:
            # Use raw logits: they are what the experts answer, without the prior.
            terms["diversity"] = -batch_mean(expert_divergence(logits))
        if self._mines:
            categories = self._categories(logits, balanced, target)
            if weights["hard"] > 0:
                terms["hard"] = self._hard(balanced, target, categories)
            if weights["hard_distillation"] > 0:
                terms["hard_distillation"] = self._hard_distillation(balanced, categories)
        return terms

    def _categories(self, logits: Tensor, balanced: Tensor, target: Tensor) -> Tensor:
        """The hard categories (B, E, h)."""
        if self.memory.confusion is not None:
            scores = self.memory.confusion(ensemble_logits(logits.detach()), target)
        else:
            scores = balanced if self.hard_selection == "own" else logits[:, :1]
        categories = hard_categories(scores, target, self.num_hard)
        return categories.expand(-1, self.num_experts, -1)

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
        terms, pairs = dict[str, Tensor](), self.intra_mode == "reference"
        intra = self.weights["intra"] > 0
        if self.weights["contrastive"] > 0 or (intra and pairs):
            distances = pairwise_distances(features, normalise=self.normalise_features)
            if self.weights["contrastive"] > 0:
                margin = self._margin(distances, target)
                terms["contrastive"] = contrastive(distances, target, margin, pull=pairs).sum()
            if intra and pairs:
                terms["intra"] = intra_class(distances, target).sum()
        if self.memory.prototypes is not None:
            terms["intra"] = batch_mean(self.memory.prototypes(unit_features(features), target))
        return terms

    def _margin(self, distances: Tensor, target: Tensor) -> float | Tensor:
        if self.margin_mode == "relative":
            return relative_margin(distances, target, self.margin)
        return self.margin
