"""Decide every setting that is `auto`, from the data and the device, and give the reasons."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recame.config import SYMMETRIES, Config, RunConfig, as_size, largest_symmetry
from recame.config.objective import usual_tau
from recame.data.dataset import InspectionSet
from recame.data.proposal import MOST_ELONGATED, candidate_sizes, is_elongated, working_side
from recame.errors import ConfigError
from recame.inference.device import choose_precision
from recame.models import PACKAGED_BACKBONE, build_backbone
from recame.plugins import Plugin
from recame.runs.folder import RunFolder
from recame.training.loop.cost import StepCost
from recame.training.resolved_config import ResolvedConfig
from recame.training.starting_weights import own_source
from recame.training.views import fit_views

#: Default time budget on a CPU. On a GPU, epochs are planned instead.
DEFAULT_CPU_BUDGET_S = 600.0
#: Default length on a GPU without a time budget, in passes over the training images.
DEFAULT_GPU_PASSES = 60
#: Largest planned fine-tuning, in images or in passes, whichever is more, however much time there
#: is: longer training would only memorise the few images of the rarest classes
#: (docs/decisions/0003).
ENOUGH_IMAGES, ENOUGH_PASSES = 40_000, 5
#: Share of the time budget that the probe's embedding may take, by its measured speed.
EMBEDDING_SHARE = 0.15
#: The same where nothing is learnt but the probe's heads, and their steps in other runs' steps.
EMBEDDING_SHARE_ALONE, STEPS_ALONE = 0.6, 4
#: Assumed pixels per second (about 600 images of 64 x 64) for a run with given epochs and without a
#: time budget, so that its plan is the same on any machine.
EMBEDDED_PIXELS_PER_S = 2.5e6
#: Limits of the probe without a time budget.
PROBE_MAX_PER_CLASS, PROBE_STEPS = 1500, 800
#: Least number of images of a class for the probe.
LEAST_PER_CLASS = 8
#: Least number of steps of fine-tuning; after a probe, a shorter one is left out.
LEAST_STEPS = 8
#: If fewer steps than this fit, steps of half as many images are taken (docs/decisions/0048).
FEW_STEPS = 30
#: Learning rate of the backbone, and with frozen batch norms (docs/decisions/0009).
LR, FROZEN_LR = 2e-3, 5e-4
#: Share of the set's own statistics in batch norms where heads alone learn (docs/decisions/0051).
ADAPTED_SHARE = 0.5
#: Number of first stages that are frozen (docs/decisions/0022).
FROZEN_STAGES = 2
#: Logit-adjustment strength of a student, for which labels matter little.
STUDENT_TAU = 1.0
#: Two experts take a quarter to a half longer per image than one. They are planned only if they see
#: each training image this often, or enough images in all (docs/decisions/0011). The estimate uses
#: the pixels per second of training on one core, since the probe needs the number before any step.
PASSES_OF_TWO = 12
TRAINED_PIXELS_PER_S, TRAINED_SHARE = 4.0e5, 0.75


def choose_size(native: tuple[int, int]) -> tuple[int | str, str]:
    """The value of `data.size`, and the reason.

    Args:
        native: median height and width of the images.
    """
    height, width = candidate_sizes(native)[0]
    size, side = as_size((height, width)), working_side(native)
    if is_elongated(native):
        far = max(native) > MOST_ELONGATED * min(native)
        return size, (
            f"images are about {native[0]} x {native[1]} pixels (height x width); {size} has about "
            f"as many as {side} x {side}, in their shape"
            + (f" as far as 1:{MOST_ELONGATED}" if far else "")
            + ", and keeps an epoch short (set data.size for more)"
        )
    return size, (
        f"images are about {native[1]} x {native[0]} pixels; {size} keeps an epoch short "
        "(64 to 128 is planned; set data.size for more)"
    )


def plan_model(config: Config, data: InspectionSet, device: torch.device) -> ResolvedConfig:
    """Choose network, loss and lengths, as far as they follow from the set and the device.

    Args:
        config: settings that may hold `auto`.
        data: the set, loaded.
        device: where the run trains.

    Raises:
        ConfigError: more stages are to be frozen than the network has.
    """
    chosen = _Choices(fit_views(config, *data.spec.piece_size))
    num_stages = _choose_network(chosen, data, device)
    _choose_learning(chosen, num_stages)
    _choose_probe(chosen, data, device)
    precision = choose_precision(config.run.precision, device)
    chosen.settle("run.precision", precision, f"the fastest that is safe on {device.type}")
    chosen.changes |= {"data.channels": data.spec.channels, "data.bit_depth": data.spec.bit_depth}
    return ResolvedConfig(chosen.config, tuple(dict.fromkeys(chosen.reasons)))


class _Choices:
    """Values for settings that are `auto`, and the reasons.

    Attributes:
        changes: values by name.
        reasons: the sentences.
    """

    def __init__(self, begun: ResolvedConfig) -> None:
        self._asked = begun.config
        self.changes: dict[str, Any] = {}
        self.reasons = list(begun.reasons)

    @property
    def config(self) -> Config:
        """The settings with all choices so far."""
        return self._asked.updated(self.changes)

    def settle(self, name: str, value: object, why: str) -> None:
        """Choose a value, unless there is one."""
        if self[name] == "auto":
            self.changes[name] = value
            self.reasons.append(f"{name} = {value}: {why}")

    def __getitem__(self, name: str) -> Any:
        section, key = name.split(".")
        return self.changes.get(name, getattr(getattr(self._asked, section), key))


def _choose_network(chosen: _Choices, data: InspectionSet, device: torch.device) -> int:
    """Choose backbone, experts, and what they share; the backbone's number of stages."""
    config = chosen.config
    source = own_source(config.model.pretrained)
    if source is not None:
        # Absolute, so that the run can be resumed from another folder.
        path = chosen.changes["model.pretrained"] = Path(str(config.model.pretrained)).resolve()
        plan, sha256 = source.architecture, RunFolder(path).weights_sha256()
        chosen.reasons.append(
            f"model.pretrained = {path}: its {plan.backbone} (SHA-256 {sha256[:12]}), "
            "with the mean and std that it saw images with"
        )
        if config.model.backbone == "auto" and plan.backbone_from is not None:
            chosen.changes["model.backbone_from"] = plan.backbone_from
        chosen.settle("model.backbone", plan.backbone, f"the network of {path} has it")
    chosen.settle(
        "model.backbone",
        PACKAGED_BACKBONE,
        "its ImageNet weights are installed with recame and need no network",
    )
    # With given epochs, a frozen shared backbone, or a GPU, time is not the limit.
    timed = config.finetune.epochs == "auto" and config.finetune.scope == "all"
    num_experts, why = plan_experts(
        budget_s(config, device) if timed and device.type == "cpu" else None,
        sum(data.label_space.counts),
        pixels=data.spec.height * data.spec.width,
        cores=torch.get_num_threads(),
    )
    chosen.settle("model.num_experts", num_experts, why)
    num_stages = config.model.stages or _num_stages(
        chosen["model.backbone"], chosen["model.backbone_from"], data.spec.channels
    )
    if config.model.shared_stages != "auto" and -num_stages <= config.model.shared_stages < 0:
        chosen.changes["model.shared_stages"] = num_stages + config.model.shared_stages
    chosen.settle(
        "model.shared_stages",
        max(0, num_stages - 2),
        f"all but the last two of {num_stages} stages are shared: experts that differ, cheaply"
        if chosen["model.num_experts"] > 1
        else f"finetune.scope=tails would train the last two of {num_stages} stages",
    )
    return num_stages


def _choose_learning(chosen: _Choices, num_stages: int) -> None:
    """Choose tau, pooled stages, and what learns at which rate.

    Raises:
        ConfigError: more stages are to be frozen than there are.
    """
    config, num_experts = chosen.config, int(chosen["model.num_experts"])
    why = "a larger one makes an expert of the rare classes"
    if num_experts == 1:
        why = "above balanced softmax's 1: rare classes are learnt last"
    if config.objective.loss is not None:
        why = "not used: objective.loss replaces the terms that would"
    chosen.settle("objective.tau", usual_tau(num_experts), why)
    chosen.settle(
        "model.pooled_stages",
        max(1, num_stages - 1),
        "stages of several depths feed the classifier: fine marks and their surroundings",
    )
    probed = config.probe.enabled and config.model.pretrained is not False
    why = "its statistics fit the probe's heads" if probed else "no probe's heads rely on them"
    chosen.settle("finetune.freeze_batch_norm", probed, why)
    frozen = bool(chosen["finetune.freeze_batch_norm"])
    if chosen["probe.adapt_batch_norm"] == "auto":
        foreign = probed and own_source(config.model.pretrained) is None
        if foreign and config.learns_heads_alone:
            why = "heads alone learn, and the set's images are unlike those of the weights"
            chosen.settle("probe.adapt_batch_norm", ADAPTED_SHARE, why)
        chosen.changes.setdefault("probe.adapt_batch_norm", 0.0)  # as usual: no reason to tell
    why = "with frozen batch norms small steps suffice, and large ones diverge"
    chosen.settle("finetune.lr", FROZEN_LR if frozen else LR, why if frozen else "batch norms move")
    stages, why = plan_frozen_stages(config, num_stages, probed=frozen)
    chosen.settle("finetune.frozen_stages", stages, why)
    if (asked := config.finetune.frozen_stages) != "auto" and asked > num_stages:
        raise ConfigError(
            f"finetune.frozen_stages={asked}, but {chosen['model.backbone']} has {num_stages} "
            f"stages: give 0 (all learn) to {num_stages} (heads alone)."
        )


def _choose_probe(chosen: _Choices, data: InspectionSet, device: torch.device) -> None:
    """Choose the probe's length, and the views of a symmetry that need not be asked for."""
    config = chosen.config
    budget = budget_s(config, device)
    alone = config.learns_heads_alone
    why = "nothing else learns" if alone else "embedding and heads stay a small part of the time"
    if not measures_probe(config, device):
        chosen.settle("probe.max_per_class", _reckoned_cap(budget, config, data), why)
    most = PROBE_STEPS if budget is None else 1.3 * budget * (STEPS_ALONE if alone else 1)
    steps = int(np.clip(most, 50, PROBE_STEPS))
    chosen.settle("probe.steps", steps, why)
    if not config.probe.enabled:
        largest = largest_symmetry(*data.spec.piece_size)
        why = "no probe to ask; inspection images seldom have an up"
        chosen.settle("augment.symmetry", largest, why)
    if (symmetry := chosen["augment.symmetry"]) != "auto":
        why = f"the views of symmetry {symmetry!r}"
        chosen.settle("evaluation.views", SYMMETRIES[symmetry], why)


def num_processes(settings: RunConfig, device: torch.device) -> int:
    """Number of processes that fine-tune: one per device, on all nodes."""
    devices = settings.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if device.type == "cuda" else 1
    return devices * settings.num_nodes


def budget_s(config: Config, device: torch.device) -> float | None:
    """Time budget of the whole run, seconds; by default a constant on a CPU, None on a GPU."""
    if config.run.time_budget_s is None and device.type == "cpu":
        return DEFAULT_CPU_BUDGET_S
    return config.run.time_budget_s


def plan_experts(
    budget: float | None, num_train: int, *, pixels: int, cores: int
) -> tuple[int, str]:
    """The number of experts that makes the best use of the time, and the reason.

    Args:
        budget: seconds for the whole run; None if time is not the limit, as on a GPU.
        num_train: number of training images.
        pixels: of one image.
        cores: number of CPU cores that train.
    """
    if budget is None:
        return 2, "the second expert buys most of what an ensemble can"
    images = TRAINED_SHARE * budget * cores * TRAINED_PIXELS_PER_S / pixels
    enough = max(ENOUGH_IMAGES, ENOUGH_PASSES * num_train)
    times = round(images / num_train)
    often = f"about {times} times" if times > 1 else "about once" if times else "less than once"
    passes = f"two would see each of {num_train:,} images {often}"
    if images >= min(enough, PASSES_OF_TWO * num_train):
        return 2, f"{passes}, so that the second one brings more than further passes"
    return 1, f"{passes}, and further passes bring more than a second expert"


def plan_frozen_stages(config: Config, num_stages: int, *, probed: bool) -> tuple[int, str]:
    """The number of first stages to freeze, and the reason.

    Args:
        config: settings; what `finetune.scope` and `model.tuning` freeze is frozen anyway.
        num_stages: of the backbone.
        probed: whether a probe on pretrained weights runs before, with frozen batch norms.
    """
    if not probed or config.finetune.scope != "all" or config.model.tuning != "full":
        return 0, "every stage that may learn does"
    frozen = min(FROZEN_STAGES, num_stages // 2)
    return frozen, (
        "pretrained edges and textures serve as they are, and the largest maps need no gradient"
    )


def embedding_share(config: Config) -> float:
    """Share of the time budget that the probe's embedding may take."""
    return EMBEDDING_SHARE_ALONE if config.learns_heads_alone else EMBEDDING_SHARE


def measures_probe(config: Config, device: torch.device) -> bool:
    """Whether a measured speed limits the probe's images: if a time budget ends the run."""
    given, timed = config.run.time_budget_s is not None, budget_s(config, device) is not None
    return config.probe.enabled and (given or (timed and config.finetune.epochs == "auto"))


def _reckoned_cap(budget: float | None, config: Config, data: InspectionSet) -> int:
    """Largest number of images of a class for the probe if no speed is measured."""
    if budget is None:
        return PROBE_MAX_PER_CLASS
    pixels = config.probe.views * data.spec.height * data.spec.width
    affordable = embedding_share(config) * budget * EMBEDDED_PIXELS_PER_S / pixels
    caps = np.array([LEAST_PER_CLASS, 16, 32, 64, 125, 250, 500, 1000, PROBE_MAX_PER_CLASS])
    images = np.minimum(np.asarray(data.label_space.counts)[None, :], caps[:, None]).sum(1)
    return int(caps[max(0, int(np.searchsorted(images, affordable, side="right")) - 1)])


def _num_stages(backbone: str, origin: Plugin | None, channels: int) -> int:
    made = build_backbone(backbone, pretrained=False, in_channels=channels, origin=origin)
    return len(made.stages)


def plan_epochs(
    config: Config,
    cost: StepCost,
    *,
    num_train: int,
    left_s: float,
    device: torch.device,
    patience: int = 1,
) -> ResolvedConfig:
    """Choose the numbers of images per step and epoch and of epochs, from the time left.

    Args:
        config: settings; `finetune.batch_size`, `epochs` and `epoch_size` may be `auto`.
        cost: measured on this device.
        num_train: number of training images.
        left_s: seconds for the epochs, without the work after them; ignored for a run without a
            time budget.
        device: where the run trains.
        patience: factor of the number of images that is enough when training on labels alone.
    """
    size, budget = config.finetune.epoch_size, budget_s(config, device)
    if config.finetune.epochs != "auto":
        changes = {"finetune.batch_size": config.finetune.images_per_step}
        changes["finetune.epoch_size"] = num_train if size == "auto" else size
        return ResolvedConfig(config.updated(changes), ())
    batch, reasons = plan_batch(config, cost.step_s, math.inf if budget is None else left_s)
    step_s = cost.step_s * batch / config.finetune.images_per_step
    config = config.updated({"finetune.batch_size": batch})
    settings = config.finetune
    least = settings.images_per_step * num_processes(config.run, device)  # a step of all devices
    images_per_s = least / step_s
    enough = patience * max(ENOUGH_IMAGES, ENOUGH_PASSES * num_train)
    if budget is None:
        left_s, images = math.inf, float(DEFAULT_GPU_PASSES * num_train)
        why = f"{DEFAULT_GPU_PASSES} passes over {num_train:,} images (no time budget given)"
    else:
        images = max(1.0, left_s) * images_per_s
        why = (
            f"of {budget:.0f} s in all {max(0.0, left_s):.0f} s are left for them, a step of "
            f"{settings.images_per_step} images takes {1000 * step_s:.0f} ms"
        )
        if images > enough:
            images = enough
            why += f"; {enough:,} images in all are enough for {num_train:,}"
    images = max(images, least)
    open_size = size == "auto"
    if size == "auto":
        # An epoch ends with a checkpoint, so it must be long enough for one.
        shortest = 20.0 * images_per_s
        size = int(max(least, min(max(num_train, shortest), images / 4)))
    epochs = max(1, round(images / size))
    epoch_s = size / images_per_s + cost.epoch_end_s
    if epochs * epoch_s > left_s:
        epochs = max(1, int(left_s / epoch_s))
    if open_size:  # choose a length of the epochs that uses the whole time
        affordable = (left_s / epochs - cost.epoch_end_s) * images_per_s
        size = int(max(least, min(affordable, images / epochs)))
    changes = {"finetune.epochs": epochs, "finetune.epoch_size": size}
    reason = f"finetune = {epochs} epochs of {size:,} images: {why}"
    planned = config.updated(changes)
    reasons = (*reasons, reason)
    if budget is None:
        return ResolvedConfig(planned, reasons)
    most_steps = max(1, enough // (least * settings.accumulate))
    return ResolvedConfig(planned, reasons, most_steps)


def fewest_images(config: Config) -> int:
    """Images in the smallest step that `plan_batch` may choose.

    A batch is never made smaller where batch norms move: they would see too few images.
    """
    settings = config.finetune
    may_shrink = settings.batch_size == "auto" and settings.freeze_batch_norm is True
    return settings.images_per_step // 2 if may_shrink else settings.images_per_step


def plan_batch(config: Config, step_s: float, left_s: float) -> tuple[int, tuple[str, ...]]:
    """Choose the number of images per step, and the reason unless it is the usual number.

    Args:
        config: settings; `finetune.batch_size` may be `auto`.
        step_s: seconds for a batch of the usual number.
        left_s: seconds for all steps.
    """
    settings = config.finetune
    usual, fewest = settings.images_per_step, fewest_images(config)
    steps = left_s / (step_s * settings.accumulate)
    if fewest == usual or steps >= FEW_STEPS:
        return usual, ()
    why = f"{max(0.0, steps):.0f} steps of {usual} images fit; more, smaller ones teach more"
    return fewest, (f"finetune.batch_size = {fewest}: {why}",)
