"""Settings of a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recame.config.section import Count, Positive, Section, Weight
from recame.config.size import Size


class DistillConfig(Section):
    """A student taught by a finished run's experts: `recame distill`."""

    teacher: Path | None = Field(None, description="the run that teaches; set by recame distill")
    stages: Count | None = Field(
        None,
        description="of the backbone, from the first; 0: all; default: without the last quarter "
        "of the teacher's own backbone, all of another one",
    )
    attention: Literal["none", "keep"] = Field("none", description="keep: as the teacher's")
    size: Size | None = Field(
        None, description="pixels, a side or height x width; default: the teacher's"
    )
    experts: Literal["one", "ensemble", "each"] = Field(
        "one",
        description="a student of one network; or of model.num_experts, of which their ensemble "
        "or each one is compared with the teacher",
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        2.0, description="what both distributions' logits are divided by, above 0"
    )
    balance: Literal["prior", "weights", "none"] = Field(
        "prior", description="how rare classes count in the teacher's term"
    )
    teacher_weight: Weight = Field(1.0, description="of the ensemble's distribution")
    label_weight: Weight = Field(0.3, description="of the labels")
    feature_weight: Weight = Field(0.0, description="of the features, through a projection")
    gate_weight: Weight = Field(0.0, description="of the regional gates")
    teacher_views: Literal[1, 2, 4, 8] = Field(
        4,
        description="flips and turns of each batch that the teacher averages; at most those of "
        "augment.symmetry",
    )
    patience: Positive = Field(
        3, description="times as many images are enough as for training on labels alone"
    )
    unlabelled: tuple[Path, ...] = Field((), description="folders of images without labels")
    unlabelled_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="of each batch, where there are any"
    )
    unlabelled_sampler: Literal["instance", "class_balanced", "square_root"] = Field(
        "square_root", description="by the class that the teacher predicts"
    )
    unlabelled_most: Positive = Field(20_000, description="of more, a sample is taken")

    @field_validator("stages", "size", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        # Not kept as `auto`: a run that teaches nobody leaves nothing to decide.
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _teaches(self) -> DistillConfig:
        if self.teacher_weight == self.label_weight == 0:
            raise ValueError(
                "teacher_weight and label_weight are both 0, so nothing says what the student "
                "should decide: give teacher_weight a value above 0"
            )
        return self
