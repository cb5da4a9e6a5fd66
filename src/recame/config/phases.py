"""Settings of the phases of a run: probe, fine-tuning, new heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recame.config.section import Auto, Count, Fraction, Positive, Section, Weight


class ProbeConfig(Section):
    """Phase 1: heads on the frozen trunk's cached features."""

    enabled: bool = True
    views: Annotated[int, Field(ge=1, le=8)] = Field(
        8, description="at most this many flips and turns of each image are cached"
    )
    max_per_class: Auto | Positive = Field(
        "auto", description="images of one class that are embedded"
    )
    steps: Auto | Positive = "auto"
    batch_size: Positive = 256
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Weight = 0.05


class FinetuneConfig(Section):
    """Phase 2: the experts' tails, or everything, by gradient descent."""

    enabled: bool = True
    epochs: Auto | Positive = "auto"
    steps: Positive | None = Field(
        None, description="the optimiser's steps, where they end within the last epoch"
    )
    scope: Literal["all", "tails"] = Field(
        "all",
        description="tails: the shared trunk is frozen and computed once, under flips and turns "
        "only",
    )
    trunk_views: Annotated[int, Field(ge=1, le=8)] = Field(
        4, description="flips and turns of each image that scope=tails caches"
    )
    frozen_stages: Auto | Count = Field(
        "auto",
        description="the backbone's first so many stages stay as they were loaded; auto: 2 where a "
        "probe went before",
    )
    freeze_batch_norm: Auto | bool = Field(
        "auto", description="keep the backbone's statistics; auto: where a probe went before"
    )
    sampler: Literal["instance", "class_balanced", "square_root", "m_per_class"] = "square_root"
    samples_per_class: Positive = 4
    epoch_size: Auto | Positive = Field("auto", description="images an epoch; auto: the split's")
    batch_size: Positive = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Auto | Annotated[float, Field(gt=0.0)] = Field(
        "auto", description="auto: 5e-4 with frozen batch norms, else 2e-3"
    )
    head_lr: Annotated[float, Field(gt=0.0)] = 2e-3
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Weight = 0.02
    warmup: Fraction = Field(0.05, description="share of the steps")
    min_lr_fraction: Fraction = 0.0
    ema_decay: Fraction = Field(0.99, description="0: no moving average of the weights")
    clip_norm: Weight = Field(5.0, description="0: no clipping")
    accumulate: Positive = 1

    @model_validator(mode="after")
    def _has_momentum(self) -> FinetuneConfig:
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError(
                "nesterov=true with momentum=0: there is nothing to look ahead with; give a "
                "momentum, for example 0.9, or nesterov=false"
            )
        return self


class RetrainConfig(Section):
    """Phase 3: the heads anew on the fine-tuned network's features (decoupled training, cRT)."""

    enabled: bool = False
    sampler: Literal["instance", "class_balanced", "square_root"] = "class_balanced"
    views: Annotated[int, Field(ge=1, le=8)] = Field(
        4, description="at most this many flips and turns of each image"
    )
    max_per_class: Positive = Field(1500, description="images of one class that are embedded")
    steps: Positive = 400
    batch_size: Positive = 256
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Weight = 0.05
