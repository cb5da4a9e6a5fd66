"""The prior that a run's probabilities speak of: how often it takes each class to come.

A network that met the classes with shares pi, under the cross-entropy of `logits + tau * log pi`,
ends at logits of `log p(image | class) + (1 - tau) * log pi`: as if the classes came as
`pi^(1 - tau)`, equally often where tau is 1 (balanced softmax), as they were shown where it is 0.
Weights of the classes multiply pi. The mean of several experts' logits is that of the geometric
mean of their priors, and a temperature that corrects how sure a network is moves none of it.

That is the minimum of the loss. Terms beside the base share it or see no prior; how near a network
has come to it, nothing here tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from recame.config import Config
from recame.contracts import FloatArray
from recame.data.samplers import SamplerKind, class_prior
from recame.files import read_json
from recame.losses.logit_adjustment import log_class_counts
from recame.losses.reweighting import class_balanced_weights
from recame.plugins import Plugin
from recame.runs.folder import RunFolder


@dataclass(frozen=True)
class Taught:
    """How one of the experts that were kept met the classes.

    Attributes:
        phase: that trained its classifier.
        sampler: how often each class was drawn.
        tau: by which the loss adjusted its logits, or they were after training; 0: not at all.
        weighted: whether the loss weighed the classes.
    """

    phase: str
    sampler: SamplerKind
    tau: float
    weighted: bool


@dataclass(frozen=True)
class TrainingPrior:
    """What a run's probabilities speak of.

    Attributes:
        prior: C shares of sum 1, 0 for a class without training images; none where that is not
            known.
        base: the loss on all classes.
        experts: that were kept.
        unknown: why the prior is not known; empty where it is.
    """

    prior: tuple[float, ...]
    base: str
    experts: tuple[Taught, ...] = ()
    unknown: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return asdict(self)


def prior_of_run(folder: RunFolder, config: Config) -> TrainingPrior:
    """The prior that a finished run's probabilities speak of.

    Args:
        folder: of the run.
        config: its settings.

    Raises:
        CheckpointError: a file of the run is damaged.
    """
    path = folder.path / "phases.json"
    kept = read_json(path).get("kept") if path.exists() else None
    loss = folder.info().get("loss")
    if loss is not None:
        told = f"it was trained by a loss of one's own ({loss}), of which the settings say nothing"
        return TrainingPrior((), config.objective.base, unknown=told)
    return training_prior(config, folder.label_space().counts, kept)


def training_prior(config: Config, counts: Sequence[int], kept: str | None) -> TrainingPrior:
    """The prior that follows from settings.

    Args:
        config: of a finished run.
        counts: C training images.
        kept: which of its phases, as `phases.json` has it; None: it does not say.
    """
    base = config.objective.base
    why = _not_known(config, kept)
    if why:
        return TrainingPrior((), base, unknown=why)
    assert kept is not None
    experts = tuple(_taught(config, phase, expert) for phase, expert in _kept(config, kept))
    images = np.asarray(counts, np.int64)
    there = images > 0
    logs = np.mean([_log_prior(config, images, each)[there] for each in experts], axis=0)
    shares = np.zeros(len(images))
    shares[there] = np.exp(logs - logs.max())
    return TrainingPrior(tuple((shares / shares.sum()).tolist()), base, experts)


def _not_known(config: Config, kept: str | None) -> str:
    """Why no prior follows from the settings; empty where one does."""
    if config.distill.teacher is not None and config.distill.teacher_weight > 0:
        return "it is a student, which follows its teacher's probabilities beside its labels"
    if config.objective.loss is not None:
        name = config.objective.loss.class_path
        return f"it was trained by a loss of one's own ({name}), of which the settings say nothing"
    if isinstance(config.finetune.sampler, Plugin) and kept != "probe":
        return f"its images were drawn as {config.finetune.sampler.class_path} says"
    if config.objective.base == "ldam":
        return "objective.base=ldam moves each class's logits by a margin of its own"
    if kept not in ("probe", "finetune", "retrained", "joined", "joined_first"):
        return f"nothing says which of its phases were kept (phases.json: {kept!r})"
    if config.objective.tau == "auto" or config.model.num_experts == "auto":
        return "its settings leave objective.tau or model.num_experts open"
    return ""


def _kept(config: Config, kept: str) -> list[tuple[str, int]]:
    """Phase and number of each expert that was kept."""
    number = int(config.model.num_experts)
    if kept.startswith("joined"):
        return [("probe", 0), ("finetune", number - 1 if kept == "joined" else 0)]
    return [(kept, expert) for expert in range(number)]


def _taught(config: Config, phase: str, expert: int) -> Taught:
    objective = config.objective
    drawn = config.finetune.sampler
    samplers: dict[str, SamplerKind] = {
        "probe": "square_root",
        "finetune": "square_root" if isinstance(drawn, Plugin) else drawn,
        "retrained": config.retrain.sampler,
    }
    taus = objective.tau
    tau = taus[expert] if isinstance(taus, tuple) else float(taus)
    taught = config.distill.teacher is not None
    posthoc = 0.0 if taught else objective.posthoc_tau
    deferred = phase == "finetune" and objective.deferred_reweighting < 1
    return Taught(
        phase=phase,
        sampler=samplers[phase],
        tau=(tau if objective.base == "balanced_softmax" else 0.0) + posthoc,
        weighted=objective.base == "class_balanced" or deferred,
    )


def _log_prior(config: Config, counts: np.ndarray, taught: Taught) -> FloatArray:
    """(C,) log of what an expert's logits speak of, up to a number; -inf without images."""
    images = torch.from_numpy(counts).double()
    shown = class_prior(counts, taught.sampler)
    with np.errstate(divide="ignore"):
        logs = np.log(shown)
    adjusted = log_class_counts(images, torch.from_numpy(shown)).numpy()
    if taught.weighted:
        beta = config.objective.class_balanced_beta
        logs = logs + np.log(class_balanced_weights(images, beta).numpy())
    found: FloatArray = logs - taught.tau * adjusted
    return found
