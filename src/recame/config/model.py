"""Settings of batch -> expert outputs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from recame.config.section import Auto, Count, Fraction, Own, Positive, Section
from recame.plugins import Plugin, as_plugin, registered


class ModelConfig(Section):
    """Batch -> expert outputs."""

    backbone: Auto | str = Field(
        "auto", description="any timm name, or the path of one's own (docs/extend.md)"
    )
    backbone_from: Own | None = Field(
        None, description="what registers a backbone of one's own; follows from model.backbone"
    )
    pretrained: bool | Literal["package"] | Path = Field(
        "package",
        description="package (EfficientNet-Lite0, no network), true (timm hub), false, a file, or "
        "the folder of a finished run or a checkpoint of recame",
    )
    num_experts: Auto | Positive = Field(
        "auto", description="networks that answer together; auto: two where the time allows"
    )
    shared_stages: Auto | int = Field(
        "auto", description="0: fully separate, as published; -2: all but the last two"
    )
    pooled_stages: Auto | Positive = Field(
        "auto", description="how many last stages feed the classifier; 1 as published"
    )
    attention: Literal["none", "regional", "channel", "squeeze_excite"] = Field(
        "regional",
        description="gates in every residual block: of each region, of the whole map, or as "
        "squeeze and excite",
    )
    regions: tuple[Positive, Positive] = Field(
        (2, 2), description="rows and columns of regional attention"
    )
    reduction: Positive = Field(
        16, description="channels divided by this are the hidden width of the gates"
    )
    gate_start: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="gates start there and are divided by it, so that the network starts as it was "
        "while its gates can still learn: 0.5; null: they start at 0.9975 on pretrained weights",
    )
    classifier: Literal["cosine", "linear"] = Field(
        "cosine",
        description="cosine: of the angle between features and class, whatever their lengths",
    )
    cosine_scale: Annotated[float, Field(gt=0.0)] = Field(
        16.0, description="what cosines are multiplied by, above 0"
    )
    hidden: Count = Field(0, description="width of an MLP before the classifier; 0: none")
    dropout: Fraction = Field(
        0.0, description="share of the features that is left out in training, 0 to 1"
    )
    standardise: bool = Field(
        True, description="centre and scale pooled features for the classifier; false as published"
    )
    stages: Count = Field(0, description="only the backbone's first so many stages; 0: all")
    pooling: Literal["average", "token", "both"] = Field(
        "average", description="of a vision transformer: its patches, class token, or both"
    )
    tuning: Literal["full", "lora", "adapter", "bias", "head"] = Field(
        "full", description="what of the backbone learns beside attention; head: nothing"
    )
    tuning_rank: Positive | None = Field(
        None, description="of lora or adapter; auto: by the number of classes, as LIFT"
    )
    initialisation: Literal["random", "class_means"] | Path = Field(
        "random", description="of a cosine classifier; or a file of each class's text features"
    )

    @model_validator(mode="before")
    @classmethod
    def _own_backbone(cls, values: Any) -> Any:
        """`backbone` as a path or a mapping becomes the name that timm knows, and where from."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        backbone, origin = values.get("backbone"), values.get("backbone_from")
        if origin is not None and backbone == _last(origin):
            return values
        values["backbone_from"] = None  # another one was asked for since
        if _is_own(backbone):
            found = as_plugin(backbone)
            values |= {"backbone": _last(found), "backbone_from": found}
        return values

    @field_validator("tuning_rank", mode="before")
    @classmethod
    def _auto_rank(cls, value: object) -> object:
        return None if value == "auto" else value  # nothing to decide but by the classes

    @model_validator(mode="after")
    def _initialisable(self) -> ModelConfig:
        if self.initialisation != "random" and (self.classifier != "cosine" or self.hidden):
            raise ValueError(
                f"initialisation={self.initialisation} sets the directions of a cosine on the "
                "backbone's features: set classifier=cosine and hidden=0, or initialisation=random"
            )
        return self


def _last(origin: object) -> str:
    """The name under which what is imported from there is registered."""
    if isinstance(origin, Plugin):
        return origin.name
    path = origin.get("class_path") if isinstance(origin, Mapping) else origin
    return str(path).rpartition(".")[2]


def _is_own(backbone: object) -> bool:
    """Whether a backbone is named by a mapping, an entry point, or a path that a module begins."""
    if not isinstance(backbone, str):
        return isinstance(backbone, Mapping | Plugin)
    top, _, rest = backbone.partition(".")
    if backbone in registered():
        return True
    # A timm name may have a tag behind a point, too.
    return bool(rest) and top.isidentifier() and find_spec(top) is not None
