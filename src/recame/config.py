"""The one page of knobs: every setting of a run, one section a stage. Imports no torch.

A value of `"auto"` is decided by `recame.training.planner` from the data and the device before
training; the run's saved `config.yaml` holds what was decided.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from recame.config_errors import explain
from recame.errors import ConfigError

CONFIG_SCHEMA = 1

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


#: Name -> how many views of an image it makes: itself, mirrored left to right, both mirrors, and
#: these with quarter turns.
SYMMETRIES = {"none": 1, "mirror": 2, "flips": 4, "square": 8}


class Section(BaseModel):
    """A group of settings: frozen, and no unknown name is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataConfig(Section):
    """Images on disk -> batches."""

    image_column: str = "image"
    label_column: str = "label"
    split_column: str = "split"
    product_column: str = "product"
    group_by: str | None = Field(None, description="no value of this column straddles two splits")
    val_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15
    normal_class: str | None = None
    critical_classes: tuple[str, ...] = ()
    size: Auto | Annotated[int, Field(ge=16, le=2048)] = Field("auto", description="side, pixels")
    channels: Auto | Literal[1, 3] = "auto"
    bit_depth: Auto | Literal[8, 16] = "auto"
    resize: Literal["stretch", "pad", "crop"] = "stretch"
    max_broken_fraction: Fraction = 0.05
    max_pixels: Positive = Field(178_956_970, description="an image with more is refused")
    cache_dir: Path | None = Field(None, description="default: the user's cache folder")


class AugmentConfig(Section):
    """Random changes of a training batch, on the training device."""

    symmetry: Auto | Literal["none", "mirror", "flips", "square"] = Field(
        "auto", description="flips and turns under which an image keeps its class"
    )
    shift: Fraction = Field(0.1, description="largest shift, as a share of the side")
    scale: Fraction = Field(0.0, description="largest relative change of size")
    rotate_deg: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    brightness: Fraction = 0.1
    contrast: Fraction = 0.1
    blur: Fraction = Field(0.0, description="probability of a Gaussian blur")
    rand_augment: Count = Field(0, description="operations of RandAugment; 0 leaves it out")
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    mixup: Weight = Field(0.0, description="alpha of the Beta distribution; 0 leaves it out")
    cutmix: Weight = Field(0.0, description="alpha of the Beta distribution; 0 leaves it out")


class ModelConfig(Section):
    """Batch -> expert outputs."""

    backbone: Auto | str = Field("auto", description="any timm name")
    pretrained: bool | Literal["package"] | Path = Field(
        "package",
        description="package (EfficientNet-Lite0, no network), true (timm hub), false, or a file",
    )
    num_experts: Auto | Positive = "auto"
    shared_stages: Auto | int = Field(
        "auto", description="0: fully separate, as published; -2: all but the last two"
    )
    pooled_stages: Auto | Positive = Field(
        "auto", description="how many last stages feed the classifier; 1 as published"
    )
    attention: Literal["none", "regional", "channel", "squeeze_excite"] = "regional"
    regions: tuple[Positive, Positive] = (2, 2)
    reduction: Positive = 16
    classifier: Literal["cosine", "linear"] = "cosine"
    cosine_scale: Annotated[float, Field(gt=0.0)] = 16.0
    hidden: Count = Field(0, description="width of an MLP before the classifier; 0: none")
    dropout: Fraction = 0.0
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


class ObjectiveConfig(Section):
    """Expert outputs + target -> loss. A weight of 0 leaves a term out and costs nothing."""

    base: Literal["cross_entropy", "class_balanced", "focal", "ldam", "balanced_softmax"] = (
        "balanced_softmax"
    )
    tau: Auto | float | tuple[float, ...] = Field(
        "auto", description="of the prior; one an expert: BalPoE; 1 as published"
    )
    base_weight: Weight = 1.0
    hard_weight: Weight = 1.0
    hard_fraction: Fraction = Field(0.3, description="share of the classes kept as hard")
    hard_mode: Literal["reference", "gather"] = "reference"
    hard_selection: Literal["reference", "own"] = "reference"
    distillation_weight: Weight = Field(0.0, description="between the experts; 0.6 as published")
    hard_distillation_weight: Weight = Field(0.0, description="0.6 as published")
    detach_target: bool = False
    diversity_weight: Weight = Field(0.0, description="RIDE: experts apart from their ensemble")
    contrastive_weight: Weight = 0.05
    intra_weight: Weight = 0.000625
    margin: Annotated[float, Field(gt=0.0)] = Field(1.0, description="20 as published")
    normalise_features: bool = Field(
        True, description="false as published; if true the margin lies in (0, 2]"
    )
    class_balanced_beta: Fraction = 0.9999
    focal_gamma: Weight = 2.0
    ldam_max_margin: Weight = 0.5
    deferred_reweighting: Fraction = Field(
        1.0, description="share of training after which classes are re-weighted; 1: never"
    )

    @model_validator(mode="after")
    def _margin_fits(self) -> ObjectiveConfig:
        if self.normalise_features and self.contrastive_weight > 0 and self.margin > 2:
            raise ValueError(
                f"margin={self.margin} with normalise_features: unit vectors are never further "
                "than 2 apart; give a margin in (0, 2], for example 1"
            )
        return self


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
    scope: Literal["all", "tails"] = Field(
        "all",
        description="tails: the shared trunk is frozen and computed once, under flips and turns "
        "only",
    )
    trunk_views: Annotated[int, Field(ge=1, le=8)] = Field(
        4, description="flips and turns of each image that scope=tails caches"
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


class DistillConfig(Section):
    """A student taught by a finished run's experts: `recame distill`."""

    teacher: Path | None = Field(None, description="the run that teaches; set by recame distill")
    stages: Count | None = Field(
        None,
        description="of the backbone, from the first; 0: all; default: without the last quarter "
        "of the teacher's own backbone, all of another one",
    )
    attention: Literal["none", "keep"] = Field("none", description="keep: as the teacher's")
    size: Annotated[int, Field(ge=16, le=2048)] | None = Field(
        None, description="side in pixels; default: the teacher's"
    )
    experts: Literal["one", "ensemble", "each"] = Field(
        "one",
        description="a student of one network; or of model.num_experts, of which their ensemble "
        "or each one is compared with the teacher",
    )
    temperature: Annotated[float, Field(gt=0.0)] = 2.0
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


class EvaluationConfig(Section):
    """Model + data -> predictions -> numbers."""

    views: Auto | Literal[1, 2, 4, 8] = Field(
        "auto", description="test-time flips and turns, averaged; auto: those of augment.symmetry"
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


class Config(Section):
    """Every setting of a run."""

    schema_version: int = CONFIG_SCHEMA
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    probe: ProbeConfig = ProbeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    retrain: RetrainConfig = RetrainConfig()
    distill: DistillConfig = DistillConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.schema_version > CONFIG_SCHEMA:
            raise ValueError(
                f"the settings have schema {self.schema_version}, this version reads up to "
                f"{CONFIG_SCHEMA}: update recame"
            )
        if not (self.probe.enabled or self.finetune.enabled):
            raise ValueError("probe.enabled and finetune.enabled are both false: nothing to train")
        if self.run.keep == "joined" and not self.judges_joined:
            raise ValueError(
                "run.keep=joined joins an expert of each phase, and one phase is switched off: "
                "enable probe and finetune, or choose another run.keep"
            )
        taus, experts = self.objective.tau, self.model.num_experts
        if isinstance(taus, tuple) and experts != "auto" and len(taus) != experts:
            raise ValueError(
                f"objective.tau has {len(taus)} values for model.num_experts={experts}: "
                "give one value, or one for each expert"
            )
        return self

    @property
    def judges_joined(self) -> bool:
        """Whether an expert of each phase, together, is a candidate to keep."""
        wanted = self.run.keep in {"best_on_val", "joined"}
        return wanted and self.probe.enabled and self.finetune.enabled

    def updated(self, changes: dict[str, Any]) -> Config:
        """A copy with `section.key` settings changed, validated as a whole.

        Args:
            changes: dotted names to values.

        Raises:
            ConfigError: an unknown name or an ill-typed value.
        """
        values = self.model_dump()
        for dotted, value in changes.items():
            section, _, key = dotted.partition(".")
            if not key or not isinstance(values.get(section), dict):
                raise ConfigError(
                    f"Unknown setting {dotted!r}: write section.key, with a section of "
                    f"{', '.join(k for k, v in values.items() if isinstance(v, dict))}."
                )
            values[section][key] = value
        return parse_config(values)


def parse_config(values: object, source: str = "the settings") -> Config:
    """Validate nested settings.

    Args:
        values: what a YAML file held.
        source: how an error names where they came from.

    Raises:
        ConfigError: names each unknown or ill-typed setting and what is allowed.
    """
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} must hold sections of settings, found {type(values).__name__}: "
            "start from a file of configs/."
        )
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, _known_names)}") from error


def _known_names(section: str | None) -> list[str]:
    if section is None:
        return list(Config.model_fields)
    annotation = Config.model_fields[section].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel)
    return list(annotation.model_fields)
