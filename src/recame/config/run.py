"""Settings of judging, and of the run itself: seed, time, device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from recame.config.section import Auto, Count, Positive, Section, Weight


class EvaluationConfig(Section):
    """Model + data -> predictions -> numbers."""

    views: Auto | Literal[1, 2, 4, 8] = Field(
        "auto",
        description="test-time flips and turns, averaged; auto: of those of augment.symmetry, as "
        "many as pay",
    )
    least_images_per_s: Weight | None = Field(
        100.0,
        description="test-time views and a second network are bought one by one where val says "
        "that they pay, as long as two cores answer so many images a second; 0: at any price; "
        "null: all are kept",
    )
    weighting: Literal["mean", "stability"] = Field(
        "mean",
        description="of the experts' logits; stability: learned without labels on the images that "
        "are judged together (SADE)",
    )
    batch_size: Positive = 128
    bootstrap: Count = Field(1000, description="resamples for the intervals")


class RunConfig(Section):
    """The run itself: seed, time, device."""

    seed: Count = 0
    time_budget_s: Annotated[float, Field(gt=0.0)] | None = None
    keep: Literal["best_on_val", "best_phase", "last", "joined"] = Field(
        "best_on_val",
        description="of probe, fine-tuning and the two joined: the best on val; best_phase judges "
        "no joined experts; last keeps the last phase and joined the two, whatever val says",
    )
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Auto | Positive = 1
    num_nodes: Positive = 1
    strategy: str = "auto"
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    compile: bool = False
    cuda_graph: bool = Field(
        default=True,
        description="on one GPU, replay each step's forward, loss and backward as one CUDA graph: "
        "the same kernels without Python between them. Steps of a student, a frozen trunk, "
        "precision 16, compile, accumulate > 1 or a loss of one's own run as usual",
    )
    channels_last: bool = True
    tensorboard: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _bits(cls, value: object) -> object:
        return str(value) if type(value) is int else value  # as YAML reads it without quotes
