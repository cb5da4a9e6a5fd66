"""Settings of the phases of a run: frozen-feature probing, fine-tuning, new heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recame.config.section import Auto, Count, Fraction, Own, Positive, Section, Weight


class ProbeConfig(Section):
    """Phase 1, frozen-feature probing: heads learn on cached features of the frozen backbone."""

    enabled: bool = Field(
        default=True, description="whether heads are trained on frozen features first"
    )
    adapt_batch_norm: Auto | Fraction = Field(
        "auto",
        description="share of the set's own statistics in the backbone's batch norms (AdaBN); 0: "
        "those of the pretrained weights alone; auto: half, where nothing but heads learns",
    )
    views: Annotated[int, Field(ge=1, le=8)] = Field(
        8, description="most flips and rotations of each image whose features are cached"
    )
    max_per_class: Auto | Positive = Field(
        "auto", description="most images of one class whose features are computed"
    )
    steps: Auto | Positive = Field(
        "auto", description="steps of the optimiser; auto: as many as the time allows"
    )
    batch_size: Positive = Field(256, description="images in each step")
    lr: Annotated[float, Field(gt=0.0)] = Field(
        1e-3, description="largest learning rate of AdamW, above 0"
    )
    weight_decay: Weight = Field(0.05, description="weight decay of AdamW, 0 or more")


#: Images in each step of fine-tuning, unless another number is asked for or decided.
USUAL_BATCH = 64


class FinetuneConfig(Section):
    """Phase 2, fine-tuning: the whole network, or only the expert branches, by gradient descent."""

    enabled: bool = Field(default=True, description="whether the network is fine-tuned")
    epochs: Auto | Positive = Field(
        "auto", description="passes over the training images; auto: as many as the time allows"
    )
    steps: Positive | None = Field(
        None, description="steps of the optimiser, if training ends within the last epoch"
    )
    scope: Literal["all", "tails"] = Field(
        "all",
        description="what learns; tails: only the expert branches; the shared backbone is frozen, "
        "and its features are computed once, for flips and rotations only",
    )
    trunk_views: Annotated[int, Field(ge=1, le=8)] = Field(
        4, description="flips and rotations of each image whose features scope=tails caches"
    )
    frozen_stages: Auto | Count = Field(
        "auto",
        description="how many first stages of the backbone keep their loaded weights; auto: 2 "
        "after a probe",
    )
    freeze_batch_norm: Auto | bool = Field(
        "auto",
        description="whether batch norms of the backbone keep their statistics; auto: after a "
        "probe",
    )
    sampler: Literal["instance", "class_balanced", "square_root", "m_per_class"] | Own = Field(
        "square_root",
        description="how often an image is drawn: all images equally often (instance), all classes "
        "equally often, each class by the square root of its size, a fixed number of images of "
        "each class in a batch (m_per_class), or as your own sampler does (docs/extend.md)",
    )
    samples_per_class: Positive = Field(
        4, description="images of each class in a batch with the sampler m_per_class"
    )
    epoch_size: Auto | Positive = Field(
        "auto", description="images in each epoch; auto: as many as train has"
    )
    batch_size: Auto | Positive = Field(
        "auto",
        description="images in each step; auto: 64, and after a probe 32 if fewer than 30 steps "
        "of 64 fit into the time",
    )
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="optimiser: AdamW, or SGD with momentum"
    )
    lr: Auto | Annotated[float, Field(gt=0.0)] = Field(
        "auto",
        description="largest learning rate, above 0; auto: 5e-4 with frozen batch norms, else 2e-3",
    )
    head_lr: Annotated[float, Field(gt=0.0)] = Field(
        2e-3, description="largest learning rate of the heads, above 0"
    )
    momentum: Fraction = Field(0.9, description="momentum of SGD, 0 to 1")
    nesterov: bool = Field(default=False, description="whether SGD uses Nesterov momentum")
    weight_decay: Weight = Field(0.02, description="weight decay of either optimiser, 0 or more")
    warmup: Fraction = Field(
        0.05, description="share of the steps in which the learning rate rises"
    )
    min_lr_fraction: Fraction = Field(
        0.0,
        description="learning rate at the end of the cosine schedule, as a share of the largest, "
        "0 to 1",
    )
    ema_decay: Fraction = Field(
        0.99, description="decay of the moving average of the weights; 0: no average"
    )
    clip_norm: Weight = Field(
        5.0, description="norm to which gradients are clipped; 0: no clipping"
    )
    accumulate: Positive = Field(
        1, description="batches whose gradients are added up before each step"
    )

    @property
    def images_per_step(self) -> int:
        """Images in each step; while `batch_size` is open, the usual number."""
        return USUAL_BATCH if self.batch_size == "auto" else self.batch_size

    @model_validator(mode="after")
    def _has_momentum(self) -> FinetuneConfig:
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError(
                "nesterov=true with momentum=0: Nesterov needs a momentum; give one, for example "
                "0.9, or nesterov=false"
            )
        return self


class RetrainConfig(Section):
    """Phase 3: new heads on the fine-tuned network's features (decoupled training, cRT)."""

    enabled: bool = Field(default=False, description="whether new heads are trained at the end")
    sampler: Literal["instance", "class_balanced", "square_root"] = Field(
        "class_balanced",
        description="how often an image is drawn: all images equally often (instance), all classes "
        "equally often, or each class by the square root of its size",
    )
    views: Annotated[int, Field(ge=1, le=8)] = Field(
        4, description="most flips and rotations of each image whose features are computed"
    )
    max_per_class: Positive = Field(
        1500, description="most images of one class whose features are computed"
    )
    steps: Positive = Field(400, description="steps of the optimiser")
    batch_size: Positive = Field(256, description="images in each step")
    lr: Annotated[float, Field(gt=0.0)] = Field(
        1e-3, description="largest learning rate of AdamW, above 0"
    )
    weight_decay: Weight = Field(0.05, description="weight decay of AdamW, 0 or more")
