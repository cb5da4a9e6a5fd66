"""Settings of the model: batch -> expert outputs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from recame.config.section import Auto, Count, Fraction, Own, Positive, Section
from recame.plugins import Plugin, as_plugin, registered


class ModelConfig(Section):
    """The model: batch -> expert outputs."""

    backbone: Auto | str = Field(
        "auto",
        description="any timm name, or the import path of your own backbone (docs/extend.md)",
    )
    backbone_from: Own | None = Field(
        None,
        description="what registers your own backbone with timm; recame sets it from "
        "model.backbone",
    )
    pretrained: bool | Literal["package"] | Path = Field(
        "package",
        description="where the first weights come from: package (EfficientNet-Lite0, no network), "
        "true (timm hub), false (random), a file, or the folder of a finished run or a checkpoint "
        "of recame",
    )
    num_experts: Auto | Positive = Field(
        "auto",
        description="number of experts, whose logits are averaged; auto: two if the time allows",
    )
    shared_stages: Auto | int = Field(
        "auto",
        description="how many first stages of the backbone the experts share; 0: none, as "
        "published; -2: all but the last two",
    )
    pooled_stages: Auto | Positive = Field(
        "auto", description="how many last stages feed the classifier; published: 1"
    )
    attention: Literal["none", "regional", "channel", "squeeze_excite"] = Field(
        "regional",
        description="attention gates in every residual block: for each region (regional), for the "
        "whole map (channel), or squeeze-and-excite",
    )
    regions: tuple[Positive, Positive] = Field(
        (2, 2), description="rows and columns of regions in regional attention"
    )
    reduction: Positive = Field(
        16, description="the hidden width of the gates is the number of channels divided by this"
    )
    gate_start: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="value at which gates start and by which they are divided, so that the network "
        "starts unchanged and its gates can still learn, for example 0.5; null: gates start at "
        "0.9975 on pretrained weights and are not divided",
    )
    classifier: Literal["cosine", "linear"] = Field(
        "cosine",
        description="kind of classifier; cosine: it scores the angle between the features and each "
        "class's weights, whatever their lengths",
    )
    cosine_scale: Annotated[float, Field(gt=0.0)] = Field(
        16.0, description="factor on the cosines, above 0"
    )
    hidden: Count = Field(0, description="width of an MLP before the classifier; 0: no MLP")
    dropout: Fraction = Field(
        0.0, description="share of the features that dropout sets to 0 in training, 0 to 1"
    )
    standardise: bool = Field(
        True,
        description="whether pooled features are centred and scaled before the classifier "
        "(feature normalisation); published: false",
    )
    stages: Count = Field(
        0, description="how many first stages of the backbone the model has; 0: all"
    )
    pooling: Literal["average", "token", "both"] = Field(
        "average",
        description="features of a vision transformer: the mean of its patches, its class token, "
        "or both",
    )
    tuning: Literal["full", "lora", "adapter", "bias", "head"] = Field(
        "full",
        description="which weights of the backbone learn beside attention; full: all; head: none",
    )
    tuning_rank: Positive | None = Field(
        None,
        description="rank of lora or adapter; null: from the number of classes, as in LIFT",
    )
    initialisation: Literal["random", "class_means"] | Path = Field(
        "random",
        description="first weights of a cosine classifier; or a file with text features of each "
        "class",
    )

    @model_validator(mode="before")
    @classmethod
    def _own_backbone(cls, values: Any) -> Any:
        """Turn a `backbone` given as a path or a mapping into timm's name and its origin."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        backbone, origin = values.get("backbone"), values.get("backbone_from")
        if origin is not None and backbone == _last(origin):
            return values
        values["backbone_from"] = None  # it belonged to another backbone
        if _is_own(backbone):
            found = as_plugin(backbone)
            values |= {"backbone": _last(found), "backbone_from": found}
        return values

    @field_validator("tuning_rank", mode="before")
    @classmethod
    def _auto_rank(cls, value: object) -> object:
        return None if value == "auto" else value  # the number of classes alone decides it

    @model_validator(mode="after")
    def _initialisable(self) -> ModelConfig:
        if self.initialisation != "random" and (self.classifier != "cosine" or self.hidden):
            raise ValueError(
                f"initialisation={self.initialisation} needs a cosine classifier directly on the "
                "backbone's features: set classifier=cosine and hidden=0, or initialisation=random"
            )
        return self


def _last(origin: object) -> str:
    """The name under which the backbone that is imported from there is registered."""
    if isinstance(origin, Plugin):
        return origin.name
    path = origin.get("class_path") if isinstance(origin, Mapping) else origin
    return str(path).rpartition(".")[2]


def _is_own(backbone: object) -> bool:
    """Whether a backbone is a mapping, an entry point, or an import path, and no name of timm."""
    if not isinstance(backbone, str):
        return isinstance(backbone, Mapping | Plugin)
    top, _, rest = backbone.partition(".")
    if backbone in registered():
        return True
    # A timm name may have a tag behind a dot, too.
    return bool(rest) and top.isidentifier() and find_spec(top) is not None
