"""The architecture of a network: its description in files, and its derivation from settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from recame.config import ModelConfig
from recame.errors import CheckpointError
from recame.models.backbone import build_backbone
from recame.models.pretrained import PACKAGED_BACKBONE
from recame.plugins import Plugin


@dataclass(frozen=True)
class Architecture:
    """All that is needed, besides classes and preprocessing, to build a model again.

    Attributes:
        backbone: a timm name.
        num_experts: E.
        shared_stages: number of first stages that the experts share (shared backbone); 0 as
            published.
        pooled_stages: number of last stages that feed the head.
        attention: `none`, `regional`, `channel` or `squeeze_excite`.
        regions: grid of the regional attention.
        reduction: factor that reduces the attention's hidden width.
        gate_start: start value of the attention's gates, which are divided by it; None: they are
            not divided.
        classifier: `cosine` or `linear`.
        cosine_scale: factor of the cosine.
        hidden: width of the head's hidden layer; 0: none.
        dropout: of the head.
        standardise: whether the head normalises the pooled features.
        stages: number of first stages of the backbone that are used; 0: all.
        pooling: input of the head for a vision transformer: `average` of the patches, class
            `token`, or `both`.
        tuning: which part of the backbone learns: `full`, `lora`, `adapter`, `bias` or `head`
            (nothing).
        tuning_rank: of LoRA or of the adapters; None: by the number of classes.
        backbone_from: object that registers a custom backbone with timm; None: timm has it.
    """

    backbone: str
    num_experts: int = 2
    shared_stages: int = 0
    pooled_stages: int = 1
    attention: str = "regional"
    regions: tuple[int, int] = (2, 2)
    reduction: int = 16
    classifier: str = "cosine"
    cosine_scale: float = 16.0
    hidden: int = 0
    dropout: float = 0.0
    standardise: bool = True
    stages: int = 0
    pooling: str = "average"
    tuning: str = "full"
    tuning_rank: int | None = None
    gate_start: float | None = None
    backbone_from: Plugin | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; without divided gates, older versions can read it."""
        values = {**asdict(self), "regions": list(self.regions)}
        for name in ("gate_start", "backbone_from"):
            if values[name] is None:
                del values[name]
        return values

    def same_attention(self, other: Architecture) -> bool:
        """Whether both have the same attention at the same places, so that its weights fit."""
        mine, others = (
            (plan.attention, plan.reduction, plan.gate_start, plan.pooling == "token")
            for plan in (self, other)
        )
        return mine == others

    @classmethod
    def of(cls, settings: object) -> Architecture:
        """The architecture from an object with these attributes, such as a run's settings."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @classmethod
    def usual(cls, settings: ModelConfig, in_channels: int = 3) -> Architecture:
        """The architecture from settings; open ones get training's defaults without a time budget.

        These are the packaged backbone with two experts, which share all but its last two stages,
        and whose classifiers see all stages but the first.

        Raises:
            ConfigError: the backbone is unknown.
        """
        usual: dict[str, Any] = {"backbone": PACKAGED_BACKBONE, "num_experts": 2}
        shared, pooled = settings.shared_stages, settings.pooled_stages
        if "auto" in (shared, pooled) or (shared != "auto" and shared < 0):
            backbone = PACKAGED_BACKBONE if settings.backbone == "auto" else settings.backbone
            origin = settings.backbone_from
            built = build_backbone(
                backbone, pretrained=False, in_channels=in_channels, origin=origin
            )
            stages = settings.stages or len(built.stages)
            usual |= {"shared_stages": max(0, stages - 2), "pooled_stages": max(1, stages - 1)}
            if shared != "auto" and shared < 0:
                settings = settings.model_copy(update={"shared_stages": stages + shared})
        decided = {n: v for n, v in usual.items() if getattr(settings, n) == "auto"}
        return cls.of(settings.model_copy(update=decided))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: a field is missing or unknown.
        """
        try:
            rows, cols = values["regions"]
            origin = values.get("backbone_from")
            known = {} if origin is None else {"backbone_from": Plugin(**origin)}
            return cls(**{**values, "regions": (int(rows), int(cols)), **known})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The model's architecture cannot be read ({error!r}): the file was edited, "
                "damaged or written by another version of recame."
            ) from error
