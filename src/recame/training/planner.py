"""Decide every setting that is left at `auto`, from the data and the device, and say why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recame.config import SYMMETRIES, Config, RunConfig
from recame.contracts import Array
from recame.data.dataset import InspectionSet
from recame.data.proposal import working_side
from recame.inference.device import choose_precision
from recame.models import PACKAGED_BACKBONE, build_backbone
from recame.runs.folder import RunFolder
from recame.training.loop.cost import StepCost, graph_cost_s
from recame.training.starting_weights import own_source

#: Time for a run on a CPU that was given none. On a GPU epochs are planned instead.
DEFAULT_CPU_BUDGET_S = 600.0
#: Epochs of a run on a GPU that was given no time, counted in passes over the training images.
DEFAULT_GPU_PASSES = 60
#: Fine-tuning on more images than these, or more passes than these if that is more, is not planned,
#: however much time there is: the rarest classes' few images would only be learnt by heart
#: (docs/decisions/0003).
ENOUGH_IMAGES, ENOUGH_PASSES = 40_000, 5
#: Share of the budget that the probe's embedding may take, and the pixels a second it is reckoned
#: with (about 600 images of 64 x 64). Reckoned, not measured, on purpose: a resumed
#: probe must see the same images.
EMBEDDING_SHARE = 0.15
EMBEDDED_PIXELS_PER_S = 2.5e6
#: The probe without a time budget.
PROBE_MAX_PER_CLASS, PROBE_STEPS = 1500, 800
#: Learning rate of the backbone, and with frozen batch norms (docs/decisions/0009).
LR, FROZEN_LR = 2e-3, 5e-4
#: The first and the last expert's factor of the log prior (docs/decisions/0006, 0007), and that of
#: an expert who is alone (0011), and of a student, whose labels count little.
TAUS, LONE_TAU, STUDENT_TAU = (1.0, 2.0), 1.5, 1.0
#: Two experts take a quarter to a half longer for an image than one: planned only where they
#: see each training image this often, or images enough in all (docs/decisions/0011). Reckoned with
#: the pixels a second that they train on with one core: the probe needs the number before a step.
PASSES_OF_TWO = 12
TRAINED_PIXELS_PER_S, TRAINED_SHARE = 4.0e5, 0.75
#: Share of the budget that is planned; the rest covers loading, saving and a noisy machine.
PLANNED_SHARE = 0.95
#: The last judgement on val runs in a graph: seconds of a pass, to those of one between epochs.
JUDGING_SHARE = 0.5


@dataclass(frozen=True)
class ResolvedConfig:
    """Settings without `auto`, and a sentence for each decision.

    Attributes:
        config: the settings.
        reasons: the sentences.
        epochs_s: seconds that the epochs may take, where time decided their number.
        most_epochs: and no more than these, however fast they turn out.
    """

    config: Config
    reasons: tuple[str, ...]
    epochs_s: float | None = None
    most_epochs: int = 0


def choose_size(native: tuple[int, int]) -> tuple[int, str]:
    """Side in pixels that images are resized to, and why.

    Args:
        native: median height and width of the images.
    """
    size = working_side(native)
    return size, (
        f"images are about {native[1]} x {native[0]} pixels; {size} keeps an epoch short "
        "(64 to 128 is planned; set data.size for more)"
    )


def plan_model(config: Config, data: InspectionSet, device: torch.device) -> ResolvedConfig:
    """Choose backbone, experts and sharing.

    Args:
        config: settings that may hold `auto`.
        data: the set, loaded.
        device: where the run trains.
    """
    changes: dict[str, Any] = {}
    reasons: list[str] = []

    def decide(name: str, value: object, why: str) -> None:
        section, key = name.split(".")
        if getattr(getattr(config, section), key) == "auto" and name not in changes:
            changes[name] = value
            reasons.append(f"{name} = {value}: {why}")

    source = own_source(config.model.pretrained)
    if source is not None:
        # Resolved, so that the run can be resumed from another folder.
        path = changes["model.pretrained"] = Path(str(config.model.pretrained)).resolve()
        plan, sha256 = source.architecture, RunFolder(path).weights_sha256()
        reasons.append(
            f"model.pretrained = {path}: its {plan.backbone} (SHA-256 {sha256[:12]}), "
            "with the mean and std that it saw images with"
        )
        decide("model.backbone", plan.backbone, f"the network of {path} has it")
    decide(
        "model.backbone",
        PACKAGED_BACKBONE,
        "its ImageNet weights are installed with recame and need no network",
    )
    backbone = str(changes.get("model.backbone", config.model.backbone))
    # Given epochs, or a frozen trunk, it is not time that is short, nor on a GPU.
    timed = config.finetune.epochs == "auto" and config.finetune.scope == "all"
    num_experts, why = plan_experts(
        budget_s(config, device) if timed and device.type == "cpu" else None,
        sum(data.label_space.counts),
        pixels=data.spec.height * data.spec.width,
        cores=torch.get_num_threads(),
    )
    decide("model.num_experts", num_experts, why)
    num_experts = int(changes.get("model.num_experts", config.model.num_experts))
    num_stages = config.model.stages or _num_stages(backbone, data.spec.channels)
    if config.model.shared_stages != "auto" and -num_stages <= config.model.shared_stages < 0:
        changes["model.shared_stages"] = num_stages + config.model.shared_stages
    decide(
        "model.shared_stages",
        max(0, num_stages - 2),
        f"all but the last two of {num_stages} stages are shared: experts that differ, cheaply"
        if num_experts > 1
        else f"finetune.scope=tails would train the last two of {num_stages} stages",
    )
    if num_experts > 1:
        taus = tuple(np.linspace(*TAUS, num_experts).tolist())
        decide("objective.tau", taus, "a larger one makes an expert of the rare classes")
    decide("objective.tau", LONE_TAU, "above balanced softmax's 1: rare classes are learnt last")
    decide(
        "model.pooled_stages",
        max(1, num_stages - 1),
        "stages of several depths feed the classifier: fine marks and their surroundings",
    )
    frozen = config.probe.enabled and config.model.pretrained is not False
    why = "its statistics fit the probe's heads" if frozen else "no probe's heads rely on them"
    decide("finetune.freeze_batch_norm", frozen, why)
    frozen = bool(changes.get("finetune.freeze_batch_norm", config.finetune.freeze_batch_norm))
    why = "with frozen batch norms small steps suffice, and large ones diverge"
    decide("finetune.lr", FROZEN_LR if frozen else LR, why if frozen else "batch norms move")
    max_per_class, steps = plan_probe(
        budget_s(config, device),
        np.asarray(data.label_space.counts),
        pixels=config.probe.views * data.spec.height * data.spec.width,
    )
    why = "embedding and heads stay a small part of the time"
    decide("probe.max_per_class", max_per_class, why)
    decide("probe.steps", steps, why)
    if not config.probe.enabled:
        decide("augment.symmetry", "square", "no probe to ask; inspection images seldom have an up")
        symmetry = str(changes.get("augment.symmetry", config.augment.symmetry))
        decide("evaluation.views", SYMMETRIES[symmetry], f"the views of symmetry {symmetry!r}")
    elif config.augment.symmetry != "auto":
        decide(
            "evaluation.views",
            SYMMETRIES[config.augment.symmetry],
            f"the views of symmetry {config.augment.symmetry!r}",
        )
    precision = choose_precision(config.run.precision, device)
    decide("run.precision", precision, f"the fastest that is safe on {device.type}")
    changes |= {"data.channels": data.spec.channels, "data.bit_depth": data.spec.bit_depth}
    return ResolvedConfig(config.updated(changes), tuple(dict.fromkeys(reasons)))


def num_processes(settings: RunConfig, device: torch.device) -> int:
    """Processes that fine-tune: one a device, on all nodes."""
    devices = settings.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if device.type == "cuda" else 1
    return devices * settings.num_nodes


def budget_s(config: Config, device: torch.device) -> float | None:
    """Seconds for the whole run: as given, else a default on a CPU and none on a GPU."""
    if config.run.time_budget_s is None and device.type == "cpu":
        return DEFAULT_CPU_BUDGET_S
    return config.run.time_budget_s


def plan_experts(
    budget: float | None, num_train: int, *, pixels: int, cores: int
) -> tuple[int, str]:
    """How many experts the time is best spent on, and why.

    Args:
        budget: seconds for the whole run; None where time is not what is short, as on a GPU.
        num_train: training images.
        pixels: of one image.
        cores: that train.
    """
    if budget is None:
        return 2, "the second expert buys most of what an ensemble can"
    images = TRAINED_SHARE * budget * cores * TRAINED_PIXELS_PER_S / pixels
    enough = max(ENOUGH_IMAGES, ENOUGH_PASSES * num_train)
    passes = f"two would see each of {num_train:,} images about {images / num_train:.0f} times"
    if images >= min(enough, PASSES_OF_TWO * num_train):
        return 2, f"{passes}, so that the second one brings more than further passes"
    return 1, f"{passes}, and further passes bring more than a second expert"


def plan_probe(budget: float | None, counts: Array, *, pixels: int) -> tuple[int, int]:
    """How many images of a class the probe embeds, and its steps.

    Args:
        budget: seconds for the whole run, or None.
        counts: (C,) training images.
        pixels: of one image under all its views.

    Returns:
        `max_per_class` and `steps`.
    """
    if budget is None:
        return PROBE_MAX_PER_CLASS, PROBE_STEPS
    affordable = EMBEDDING_SHARE * budget * EMBEDDED_PIXELS_PER_S / pixels
    caps = np.array([8, 16, 32, 64, 125, 250, 500, 1000, PROBE_MAX_PER_CLASS])
    images = np.minimum(counts[None, :], caps[:, None]).sum(1)
    cap = caps[max(0, int(np.searchsorted(images, affordable, side="right")) - 1)]
    return int(cap), int(np.clip(1.3 * budget, 50, PROBE_STEPS))


def _num_stages(backbone: str, channels: int) -> int:
    return len(build_backbone(backbone, pretrained=False, in_channels=channels).stages)


def plan_epochs(
    config: Config,
    cost: StepCost,
    *,
    num_train: int,
    elapsed_s: float,
    device: torch.device,
    patience: int = 1,
    retrained: int = 0,
) -> ResolvedConfig:
    """Choose how many epochs of how many images, from the time left and the measured step.

    Args:
        config: settings; `finetune.epochs` and `finetune.epoch_size` may be `auto`.
        cost: measured on this device.
        num_train: training images.
        elapsed_s: seconds since the run began.
        device: where the run trains.
        patience: how many times the images are enough that are enough to learn from labels alone.
        retrained: images, each under all its views, that a third phase embeds afterwards.
    """
    settings = config.finetune
    size = settings.epoch_size
    if settings.epochs != "auto":
        chosen = num_train if size == "auto" else size
        return ResolvedConfig(config.updated({"finetune.epoch_size": chosen}), ())
    budget = budget_s(config, device)
    least = settings.batch_size * num_processes(config.run, device)  # a step of all devices
    images_per_s = least / cost.step_s
    enough = patience * max(ENOUGH_IMAGES, ENOUGH_PASSES * num_train)
    if budget is None:
        left_s, images = math.inf, float(DEFAULT_GPU_PASSES * num_train)
        why = f"{DEFAULT_GPU_PASSES} passes over {num_train:,} images (no time budget given)"
    else:
        # More passes over the validation split decide which of the phases' networks is kept.
        passes = (2 + config.retrain.enabled) * int(config.evaluation.views)
        left_s = PLANNED_SHARE * budget - elapsed_s - JUDGING_SHARE * passes * cost.val_s
        # A forward takes about a third of a step.
        left_s -= retrained / settings.batch_size * cost.step_s / 3
        if device.type == "cpu":
            left_s -= graph_cost_s(cost.step_s / settings.batch_size / 3)
        images = max(1.0, left_s) * images_per_s
        why = (
            f"{budget:.0f} s in all, {elapsed_s:.0f} s are spent, a step of "
            f"{settings.batch_size} images takes {1000 * cost.step_s:.0f} ms"
        )
        if images > enough:
            images = enough
            why += f"; {enough:,} images in all are enough for {num_train:,}"
    images = max(images, least)
    open_size = size == "auto"
    if size == "auto":
        # An epoch is what lies between two checkpoints: long enough to be worth one.
        shortest = 20.0 * images_per_s
        size = int(max(least, min(max(num_train, shortest), images / 4)))
    epochs = max(1, round(images / size))
    epoch_s = size / images_per_s + cost.val_s
    if epochs * epoch_s > left_s:
        epochs = max(1, int(left_s / epoch_s))
    if open_size:  # epochs of a length that uses what whole ones would leave
        affordable = (left_s / epochs - cost.val_s) * images_per_s
        size = int(max(least, min(affordable, images / epochs)))
    changes = {"finetune.epochs": epochs, "finetune.epoch_size": size}
    reason = f"finetune = {epochs} epochs of {size:,} images: {why}"
    planned = config.updated(changes)
    if budget is None:
        return ResolvedConfig(planned, (reason,))
    return ResolvedConfig(planned, (reason,), left_s, max(epochs, int(enough // size)))


def with_symmetry(config: Config, name: str) -> Config:
    """The settings with a symmetry decided, and the test-time views that follow from it."""
    changes: dict[str, object] = {"augment.symmetry": name}
    if config.evaluation.views == "auto":
        changes["evaluation.views"] = SYMMETRIES[name]
    return config.updated(changes)
