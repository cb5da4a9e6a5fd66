"""Settings of evaluation, and of the run itself: seed, time, device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from recame.config.section import Auto, Count, Own, Positive, Section, Weight


class EvaluationConfig(Section):
    """Evaluation: model + data -> predictions -> figures."""

    views: Auto | Literal[1, 2, 4, 8] = Field(
        "auto",
        description="test-time augmentation: over how many flips and rotations of an image the "
        "answer is averaged; auto: as many of those of augment.symmetry as improve val",
    )
    least_images_per_s: Weight | None = Field(
        20.0,
        description="speed that the model must keep: test-time views and a second network are "
        "added one by one if they improve val, as long as two cores answer this many images/s; 0: "
        "at any speed; null: all are kept",
    )
    weighting: Literal["mean", "stability"] = Field(
        "mean",
        description="how the experts' logits are weighted; stability: weights are learned without "
        "labels on the images that are evaluated together (SADE)",
    )
    metrics: tuple[Own, ...] = Field(
        (), description="your own metrics, beside the usual ones (docs/extend.md)"
    )
    batch_size: Positive = Field(128, description="images that pass the network at once")
    bootstrap: Count = Field(1000, description="number of bootstrap resamples for the intervals")


class RunConfig(Section):
    """The run itself: seed, time, device."""

    seed: Count = Field(
        0, description="seed of the split, the first weights and the order of the images"
    )
    time_budget_s: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="seconds that the whole command may take; null: 10 minutes on a CPU, on a GPU "
        "as long as the epochs take",
    )
    keep: Literal["best_on_val", "best_phase", "last", "joined"] = Field(
        "best_on_val",
        description="which model is kept; best_on_val: the best on val of probe, fine-tuning and "
        "the ensemble of both; best_phase: the better of probe and fine-tuning; last: the last "
        "phase, and joined: the ensemble, whatever val says",
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="device of training and inference; auto: a GPU if there is one"
    )
    devices: Auto | Positive = Field(
        1,
        description="processes of each machine that train together, each on its own GPU if there "
        "are any",
    )
    num_nodes: Positive = Field(1, description="machines that train together")
    strategy: str = Field(
        "auto",
        description="Lightning's strategy for several processes: auto, ddp or "
        "ddp_find_unused_parameters_true",
    )
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto",
        description="number format in training; auto: bf16 on a GPU that supports it, else 32 bits",
    )
    compile: bool = Field(
        default=False,
        description="whether torch.compile makes the network faster; it needs minutes at first",
    )
    cuda_graph: bool = Field(
        default=True,
        description="whether one GPU replays forward, loss and backward of each step as one CUDA "
        "graph: the same kernels, without Python between them. Steps of a student, a frozen "
        "backbone, precision 16, compile, accumulate > 1 or your own loss run without it",
    )
    channels_last: bool = Field(
        default=True,
        description="whether feature maps lie in memory with their channels last, which makes "
        "convolutions faster",
    )
    loggers: tuple[Literal["csv", "tensorboard", "mlflow", "wandb"], ...] = Field(
        (), description="experiment trackers that record the run (docs/extend.md)"
    )
    tensorboard: bool = Field(
        default=False, description="whether losses are also written for TensorBoard"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _bits(cls, value: object) -> object:
        return str(value) if type(value) is int else value  # as YAML reads it without quotes
