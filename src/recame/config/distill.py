"""Settings of knowledge distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recame.config.section import Count, Positive, Section, Weight
from recame.config.size import Size


class DistillConfig(Section):
    """Knowledge distillation: a student learns from a finished run's experts (`recame distill`)."""

    teacher: Path | None = Field(
        None, description="folder of the run that teaches; set by recame distill"
    )
    stages: Count | None = Field(
        None,
        description="how many first stages of the backbone the student has; 0: all; default: the "
        "teacher's backbone without its last quarter, any other backbone whole",
    )
    attention: Literal["none", "keep"] = Field(
        "none", description="attention gates of the student; keep: as in the teacher"
    )
    size: Size | None = Field(
        None,
        description="size of the student's images in pixels, a side or height x width; default: "
        "the teacher's",
    )
    experts: Literal["one", "ensemble", "each"] = Field(
        "one",
        description="one: the student is one network; ensemble, each: it has model.num_experts "
        "networks, and the loss compares their ensemble, or each network, with the teacher",
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        2.0, description="divides the logits of student and teacher in the loss, above 0"
    )
    balance: Literal["prior", "weights", "none"] = Field(
        "prior",
        description="how the teacher's term balances the classes: the log of the class prior is "
        "added to the logits, images are weighted, or not at all",
    )
    teacher_weight: Weight = Field(
        1.0, description="weight of the term with the probabilities of the teacher's ensemble"
    )
    label_weight: Weight = Field(0.3, description="weight of the term with the labels")
    feature_weight: Weight = Field(
        0.0, description="weight of the term with the teacher's features, through a projection"
    )
    gate_weight: Weight = Field(
        0.0, description="weight of the term with the gates of the teacher's regional attention"
    )
    teacher_views: Literal[1, 2, 4, 8] = Field(
        4,
        description="flips and rotations of each batch over which the teacher's answers are "
        "averaged; at most those of augment.symmetry",
    )
    patience: Positive = Field(
        3,
        description="factor by which a student may train on more images than training on labels "
        "alone needs",
    )
    unlabelled: tuple[Path, ...] = Field(
        (), description="folders or tables of images without labels"
    )
    unlabelled_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="share of unlabelled images in each batch, if there are any"
    )
    unlabelled_sampler: Literal["instance", "class_balanced", "square_root"] = Field(
        "square_root",
        description="how often an unlabelled image is drawn, by the class that the teacher "
        "predicts: all images equally often, all classes equally often, or each class by the "
        "square root of its size",
    )
    unlabelled_most: Positive = Field(
        20_000, description="most unlabelled images; if there are more, a random sample is used"
    )

    @field_validator("stages", "size", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        # Not kept as `auto`: without a teacher there is nothing to decide.
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _teaches(self) -> DistillConfig:
        if self.teacher_weight == self.label_weight == 0:
            raise ValueError(
                "teacher_weight and label_weight are both 0, so the student has nothing to learn "
                "from: give teacher_weight a value above 0"
            )
        return self
