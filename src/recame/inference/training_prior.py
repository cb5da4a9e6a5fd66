"""The class prior of a run's probabilities: how frequent the network assumes each class to be.

A network that is trained on class shares pi, with the cross-entropy of `logits + tau * log pi`
(tau: the logit-adjustment strength), converges to logits of
`log p(image | class) + (1 - tau) * log pi`. Its prior is then `pi^(1 - tau)`: equal shares for
tau 1 (balanced softmax), the shares in training for tau 0. Class weights in the loss multiply pi.
The mean of several experts' logits has the geometric mean of their priors. A temperature does not
change the prior.

This is the minimum of the loss. Other loss terms have the same minimum or do not depend on the
prior. How near a network has come to the minimum is not known.
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
    """How one of the kept experts was trained on the classes.

    Attributes:
        phase: that trained its classifier.
        sampler: how often each class was drawn.
        tau: logit-adjustment strength in the loss or after training; 0: no adjustment.
        weighted: whether the loss had class weights.
    """

    phase: str
    sampler: SamplerKind
    tau: float
    weighted: bool


@dataclass(frozen=True)
class TrainingPrior:
    """The class prior of a run's probabilities.

    Attributes:
        prior: C shares that sum to 1; 0 for a class without training images; empty if not known.
        base: the loss on all classes.
        experts: the kept experts.
        unknown: why the prior is not known; empty if it is.
    """

    prior: tuple[float, ...]
    base: str
    experts: tuple[Taught, ...] = ()
    unknown: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return asdict(self)


def prior_of_run(folder: RunFolder, config: Config) -> TrainingPrior:
    """Find the class prior of a finished run's probabilities.

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
        told = f"it was trained with a loss of the user ({loss}), whose prior is not known"
        return TrainingPrior((), config.objective.base, unknown=told)
    return training_prior(config, folder.label_space().counts, kept)


def training_prior(config: Config, counts: Sequence[int], kept: str | None) -> TrainingPrior:
    """Derive the class prior from settings.

    Args:
        config: of a finished run.
        counts: training images of the C classes.
        kept: the kept phase in `phases.json`; None: not given.
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
    """Say why the prior does not follow from the settings; empty if it does."""
    if config.distill.teacher is not None and config.distill.teacher_weight > 0:
        return "it is a student, which also learns from its teacher's probabilities"
    if config.objective.loss is not None:
        name = config.objective.loss.class_path
        return f"it was trained with a loss of the user ({name}), whose prior is not known"
    if isinstance(config.finetune.sampler, Plugin) and kept != "probe":
        return (
            f"its images were drawn by a sampler of the user ({config.finetune.sampler.class_path})"
        )
    if config.objective.base == "ldam":
        return "objective.base=ldam shifts the logits of each class by its own margin"
    if kept not in ("probe", "finetune", "retrained", "joined", "joined_first"):
        return f"it is not known which of its phases was kept (phases.json: {kept!r})"
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
    """(C,) log prior of an expert's logits, up to a constant; -inf without images."""
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
