"""Settings of judging, and of the run itself: seed, time, device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from recame.config.section import Auto, Count, Own, Positive, Section, Weight


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
    metrics: tuple[Own, ...] = Field(
        (), description="metrics of one's own, beside the usual ones (docs/extend.md)"
    )
    batch_size: Positive = Field(128, description="images that pass the network at once")
    bootstrap: Count = Field(1000, description="resamples for the intervals")


class RunConfig(Section):
    """The run itself: seed, time, device."""

    seed: Count = Field(
        0, description="of the split, the first weights and the order of the images"
    )
    time_budget_s: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="seconds that the whole command may take; null: 10 minutes on a CPU, else by "
        "the epochs",
    )
    keep: Literal["best_on_val", "best_phase", "last", "joined"] = Field(
        "best_on_val",
        description="of probe, fine-tuning and the two joined: the best on val; best_phase judges "
        "no joined experts; last keeps the last phase and joined the two, whatever val says",
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="where it trains and answers; auto: on a GPU where there is one"
    )
    devices: Auto | Positive = Field(
        1,
        description="processes of a machine that train together, each on a GPU where there are any",
    )
    num_nodes: Positive = Field(1, description="machines that train together")
    strategy: str = Field(
        "auto",
        description="Lightning's, of several processes: auto, ddp or "
        "ddp_find_unused_parameters_true",
    )
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto", description="bits of a number in training; auto: bf16 on a GPU that has it, else 32"
    )
    compile: bool = Field(
        default=False,
        description="whether torch.compile makes the network faster: minutes at first",
    )
    cuda_graph: bool = Field(
        default=True,
        description="on one GPU, replay each step's forward, loss and backward as one CUDA graph: "
        "the same kernels without Python between them. Steps of a student, a frozen trunk, "
        "precision 16, compile, accumulate > 1 or a loss of one's own run as usual",
    )
    channels_last: bool = Field(
        default=True,
        description="whether maps lie in memory with their channels last, as convolutions like it",
    )
    loggers: tuple[Literal["csv", "tensorboard", "mlflow", "wandb"], ...] = Field(
        (), description="experiment trackers that are told of the run (docs/extend.md)"
    )
    tensorboard: bool = Field(
        default=False, description="whether losses are written for TensorBoard, too"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _bits(cls, value: object) -> object:
        return str(value) if type(value) is int else value  # as YAML reads it without quotes
