"""Settings of the phases of a run: probe, fine-tuning, new heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recame.config.section import Auto, Count, Fraction, Own, Positive, Section, Weight


class ProbeConfig(Section):
    """Phase 1: heads on the frozen trunk's cached features."""

    enabled: bool = Field(
        default=True, description="whether heads are trained on frozen features first"
    )
    views: Annotated[int, Field(ge=1, le=8)] = Field(
        8, description="at most this many flips and turns of each image are cached"
    )
    max_per_class: Auto | Positive = Field(
        "auto", description="images of one class that are embedded"
    )
    steps: Auto | Positive = Field("auto", description="the optimiser's steps; auto: by the time")
    batch_size: Positive = Field(256, description="images a step")
    lr: Annotated[float, Field(gt=0.0)] = Field(
        1e-3, description="largest learning rate of AdamW, above 0"
    )
    weight_decay: Weight = Field(0.05, description="of AdamW, 0 or more")


class FinetuneConfig(Section):
    """Phase 2: the experts' tails, or everything, by gradient descent."""

    enabled: bool = Field(default=True, description="whether the network is fine-tuned")
    epochs: Auto | Positive = Field(
        "auto", description="passes over the training images; auto: by the time"
    )
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
    sampler: Literal["instance", "class_balanced", "square_root", "m_per_class"] | Own = Field(
        "square_root",
        description="how often an image is drawn: all alike, each class alike, by the root of its "
        "class's size, so many images of each class a batch, or as one's own says "
        "(docs/extend.md)",
    )
    samples_per_class: Positive = Field(
        4, description="images of a class in a batch, of the sampler m_per_class"
    )
    epoch_size: Auto | Positive = Field("auto", description="images an epoch; auto: the split's")
    batch_size: Positive = Field(64, description="images a step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum")
    lr: Auto | Annotated[float, Field(gt=0.0)] = Field(
        "auto", description="auto: 5e-4 with frozen batch norms, else 2e-3"
    )
    head_lr: Annotated[float, Field(gt=0.0)] = Field(
        2e-3, description="largest learning rate of the heads, above 0"
    )
    momentum: Fraction = Field(0.9, description="of SGD, 0 to 1")
    nesterov: bool = Field(default=False, description="whether SGD's momentum looks ahead")
    weight_decay: Weight = Field(0.02, description="of either optimiser, 0 or more")
    warmup: Fraction = Field(0.05, description="share of the steps")
    min_lr_fraction: Fraction = Field(
        0.0, description="share of the learning rate at which its cosine ends, 0 to 1"
    )
    ema_decay: Fraction = Field(0.99, description="0: no moving average of the weights")
    clip_norm: Weight = Field(5.0, description="0: no clipping")
    accumulate: Positive = Field(
        1, description="batches whose gradients are added up before a step"
    )

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

    enabled: bool = Field(
        default=False, description="whether the heads are trained anew at the end"
    )
    sampler: Literal["instance", "class_balanced", "square_root"] = Field(
        "class_balanced",
        description="how often an image is drawn: all alike, each class alike, or by the root of "
        "its class's size",
    )
    views: Annotated[int, Field(ge=1, le=8)] = Field(
        4, description="at most this many flips and turns of each image"
    )
    max_per_class: Positive = Field(1500, description="images of one class that are embedded")
    steps: Positive = Field(400, description="the optimiser's steps")
    batch_size: Positive = Field(256, description="images a step")
    lr: Annotated[float, Field(gt=0.0)] = Field(
        1e-3, description="largest learning rate of AdamW, above 0"
    )
    weight_decay: Weight = Field(0.05, description="of AdamW, 0 or more")
