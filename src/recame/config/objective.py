"""Settings of the loss: expert outputs + target -> loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recame.config.section import Auto, Fraction, Own, Positive, Section, Weight

#: Logit-adjustment strength (factor of the log prior) of the first and of the last expert
#: (docs/decisions/0006, 0007), and of a single expert (0011).
_TAUS, _LONE_TAU = (1.0, 2.0), 1.5


def usual_tau(num_experts: int) -> float | tuple[float, ...]:
    """What `objective.tau=auto` means: an expert with a larger tau favours rare classes more.

    Examples:
        >>> usual_tau(1), usual_tau(3)
        (1.5, (1.0, 1.5, 2.0))
    """
    if num_experts == 1:  # above balanced softmax's 1, as rare classes are learnt last
        return _LONE_TAU
    first, last = _TAUS
    step = (last - first) / (num_experts - 1)
    return tuple(first + step * expert for expert in range(num_experts))


class ObjectiveConfig(Section):
    """The loss: expert outputs + target -> loss. A term of weight 0 is not computed."""

    base: Literal["cross_entropy", "class_balanced", "focal", "ldam", "balanced_softmax"] = Field(
        "balanced_softmax",
        description="the loss over all classes; balanced_softmax: cross-entropy with the log of "
        "the class prior added to the logits",
    )
    loss: Own | None = Field(
        None,
        description="your own loss, which replaces all other settings of this section "
        "(docs/extend.md)",
    )
    tau: Auto | float | tuple[float, ...] = Field(
        "auto",
        description="logit-adjustment strength: factor of the log of the class prior; one value "
        "for each expert: BalPoE; published: 1",
    )
    base_weight: Weight = Field(1.0, description="weight of the base loss")
    hard_weight: Weight = Field(
        1.0, description="weight of cross-entropy over the hard classes (hard category mining)"
    )
    hard_fraction: Fraction = Field(0.3, description="share of the classes that counts as hard")
    hard_mode: Literal["reference", "gather"] = Field(
        "reference",
        description="the logits of classes that are not hard become 0, as published (reference), "
        "or are left out of the softmax (gather)",
    )
    hard_selection: Literal["reference", "own", "confusion"] = Field(
        "reference",
        description="how hard classes are chosen: by the first expert's logits (reference), by "
        "each expert's logits (own), or as the classes for which the image's class has lately been "
        "mistaken (confusion)",
    )
    distillation_weight: Weight = Field(
        0.0, description="weight of mutual distillation between the experts; published: 0.6"
    )
    hard_distillation_weight: Weight = Field(
        0.0, description="weight of mutual distillation over the hard classes; published: 0.6"
    )
    detach_target: bool = Field(
        default=False,
        description="whether no gradient flows through the target of mutual distillation; "
        "published: false",
    )
    diversity_weight: Weight = Field(
        0.0, description="weight of RIDE's term, which makes experts differ from their ensemble"
    )
    contrastive_weight: Weight = Field(
        0.05,
        description="weight of the contrastive term on pairs of images: one class together, "
        "different classes a margin apart",
    )
    intra_weight: Weight = Field(
        0.000625,
        description="weight of the term that pulls images of a class together; the published "
        "value suits intra_mode=reference; clusters needs more, for example 0.1",
    )
    intra_mode: Literal["reference", "clusters"] = Field(
        "reference",
        description="a class is pulled together as a whole (reference), or each image towards the "
        "nearest cluster of its class (clusters)",
    )
    clusters: Positive = Field(
        4, description="most clusters of a class; a class of n images has at most n / 2"
    )
    margin: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="margin of the contrastive term; published: 20"
    )
    margin_mode: Literal["absolute", "relative"] = Field(
        "absolute",
        description="relative: the margin is a multiple of the mean distance between classes",
    )
    normalise_features: bool = Field(
        True,
        description="whether the metric terms scale features to length 1, so that the margin lies "
        "in (0, 2]; published: false",
    )
    class_balanced_beta: Fraction = Field(
        0.9999,
        description="beta of base=class_balanced: 0 weighs all classes equally, 1 weighs each by 1 "
        "/ its number of images",
    )
    focal_gamma: Weight = Field(2.0, description="gamma of base=focal; 0: cross-entropy")
    ldam_max_margin: Weight = Field(
        0.5, description="margin of the rarest class with base=ldam, in units of the cosine"
    )
    deferred_reweighting: Fraction = Field(
        1.0, description="share of the training after which classes are re-weighted; 1: never"
    )
    posthoc_tau: Weight = Field(
        0.0,
        description="factor of the log of the class prior that is subtracted from the logits after "
        "training; 1 with base=cross_entropy: post-hoc logit adjustment",
    )

    @model_validator(mode="after")
    def _margin_fits(self) -> ObjectiveConfig:
        if self.contrastive_weight == 0 or self.margin <= 2:
            return self
        if self.margin_mode == "relative":
            raise ValueError(
                f"margin={self.margin} with margin_mode=relative: the margin is a multiple of the "
                "mean distance between classes, and hardly any pair lies more than twice that "
                "distance apart; give a value in (0, 2], for example 1"
            )
        if self.normalise_features:
            raise ValueError(
                f"margin={self.margin} with normalise_features=true: unit vectors are never more "
                "than 2 apart; give a margin in (0, 2], for example 1"
            )
        return self
