"""Settings of expert outputs + target -> loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recame.config.section import Auto, Fraction, Own, Positive, Section, Weight

#: The first and the last expert's factor of the log prior (docs/decisions/0006, 0007), and that of
#: an expert who is alone (0011).
_TAUS, _LONE_TAU = (1.0, 2.0), 1.5


def usual_tau(num_experts: int) -> float | tuple[float, ...]:
    """What `objective.tau=auto` means: a larger one makes an expert of the rare classes.

    Examples:
        >>> usual_tau(1), usual_tau(3)
        (1.5, (1.0, 1.5, 2.0))
    """
    if num_experts == 1:  # above balanced softmax's 1: rare classes are learnt last
        return _LONE_TAU
    first, last = _TAUS
    step = (last - first) / (num_experts - 1)
    return tuple(first + step * expert for expert in range(num_experts))


class ObjectiveConfig(Section):
    """Expert outputs + target -> loss. A weight of 0 leaves a term out and costs nothing."""

    base: Literal["cross_entropy", "class_balanced", "focal", "ldam", "balanced_softmax"] = Field(
        "balanced_softmax",
        description="the loss over all classes; balanced_softmax: cross-entropy with the log of "
        "the prior added to the logits",
    )
    loss: Own | None = Field(
        None,
        description="a loss of one's own in place of all that this section describes "
        "(docs/extend.md)",
    )
    tau: Auto | float | tuple[float, ...] = Field(
        "auto", description="of the prior; one an expert: BalPoE; 1 as published"
    )
    base_weight: Weight = Field(1.0, description="of that loss")
    hard_weight: Weight = Field(1.0, description="of cross-entropy over the hard classes")
    hard_fraction: Fraction = Field(0.3, description="share of the classes kept as hard")
    hard_mode: Literal["reference", "gather"] = Field(
        "reference",
        description="the other classes' logits become 0, as published, or are left out of the "
        "softmax (gather)",
    )
    hard_selection: Literal["reference", "own", "confusion"] = Field(
        "reference",
        description="by the first expert's logits, by each one's own, or confusion: what the "
        "image's class has lately been taken for",
    )
    distillation_weight: Weight = Field(0.0, description="between the experts; 0.6 as published")
    hard_distillation_weight: Weight = Field(0.0, description="0.6 as published")
    detach_target: bool = Field(
        default=False, description="whether distillation's target is a constant; false as published"
    )
    diversity_weight: Weight = Field(0.0, description="RIDE: experts apart from their ensemble")
    contrastive_weight: Weight = Field(
        0.05, description="of pairs of images: one class together, others a margin apart"
    )
    intra_weight: Weight = Field(
        0.000625, description="as published, for intra_mode=reference; clusters want more, as 0.1"
    )
    intra_mode: Literal["reference", "clusters"] = Field(
        "reference",
        description="a class pulled together as a whole, or each image to the nearest cluster",
    )
    clusters: Positive = Field(4, description="the most of a class; one of n images has n / 2")
    margin: Annotated[float, Field(gt=0.0)] = Field(1.0, description="20 as published")
    margin_mode: Literal["absolute", "relative"] = Field(
        "absolute",
        description="relative: the margin is a factor of the mean distance between classes",
    )
    normalise_features: bool = Field(
        True, description="false as published; if true the margin lies in (0, 2]"
    )
    class_balanced_beta: Fraction = Field(
        0.9999, description="of base=class_balanced: 0 weighs classes alike, 1 by one over images"
    )
    focal_gamma: Weight = Field(2.0, description="of base=focal; 0: cross-entropy")
    ldam_max_margin: Weight = Field(
        0.5, description="of base=ldam: the rarest class's margin, in units of the cosine"
    )
    deferred_reweighting: Fraction = Field(
        1.0, description="share of training after which classes are re-weighted; 1: never"
    )
    posthoc_tau: Weight = Field(
        0.0,
        description="after training, so many times the log of the prior is taken off the logits; "
        "1 with base=cross_entropy: post-hoc logit adjustment",
    )

    @model_validator(mode="after")
    def _margin_fits(self) -> ObjectiveConfig:
        if self.contrastive_weight == 0 or self.margin <= 2:
            return self
        if self.margin_mode == "relative":
            raise ValueError(
                f"margin={self.margin} with margin_mode=relative: it is a factor of the mean "
                "distance between classes, beyond twice which hardly any pair lies; give a factor "
                "in (0, 2], for example 1"
            )
        if self.normalise_features:
            raise ValueError(
                f"margin={self.margin} with normalise_features: unit vectors are never further "
                "than 2 apart; give a margin in (0, 2], for example 1"
            )
        return self
