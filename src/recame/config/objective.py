"""Settings of expert outputs + target -> loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recame.config.section import Auto, Fraction, Positive, Section, Weight


class ObjectiveConfig(Section):
    """Expert outputs + target -> loss. A weight of 0 leaves a term out and costs nothing."""

    base: Literal["cross_entropy", "class_balanced", "focal", "ldam", "balanced_softmax"] = (
        "balanced_softmax"
    )
    tau: Auto | float | tuple[float, ...] = Field(
        "auto", description="of the prior; one an expert: BalPoE; 1 as published"
    )
    base_weight: Weight = 1.0
    hard_weight: Weight = 1.0
    hard_fraction: Fraction = Field(0.3, description="share of the classes kept as hard")
    hard_mode: Literal["reference", "gather"] = "reference"
    hard_selection: Literal["reference", "own", "confusion"] = Field(
        "reference",
        description="by the first expert's logits, by each one's own, or confusion: what the "
        "image's class has lately been taken for",
    )
    distillation_weight: Weight = Field(0.0, description="between the experts; 0.6 as published")
    hard_distillation_weight: Weight = Field(0.0, description="0.6 as published")
    detach_target: bool = False
    diversity_weight: Weight = Field(0.0, description="RIDE: experts apart from their ensemble")
    contrastive_weight: Weight = 0.05
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
    class_balanced_beta: Fraction = 0.9999
    focal_gamma: Weight = 2.0
    ldam_max_margin: Weight = 0.5
    deferred_reweighting: Fraction = Field(
        1.0, description="share of training after which classes are re-weighted; 1: never"
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
