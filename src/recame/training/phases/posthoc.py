"""Logit adjustment after training: the classes' prior is taken off the classifiers' biases.

Source: Menon et al., Long-tail Learning via Logit Adjustment, ICLR 2021, section 4.1, "post-hoc":
answer `argmax logits - tau * log prior`. A bias of the classifier says the same, so that run,
graph and bundle answer alike and nothing at the line needs to know of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from recame.contracts import IntArray
from recame.data.samplers import class_prior
from recame.losses.logit_adjustment import log_class_counts
from recame.models import MultiExpertClassifier
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.finetune import shown_classes


def without_prior(
    run: OngoingRun, candidates: Mapping[str, MultiExpertClassifier]
) -> dict[str, MultiExpertClassifier]:
    """Networks whose logits lack `objective.posthoc_tau` times the log prior of their phase.

    A student learns its teacher's answers, from which the prior is taken off already: it stays.

    Args:
        run: its settings say by how much, and how each phase drew its images.
        candidates: phase -> network; left as they are.

    Returns:
        The same networks where nothing is to be taken off, else copies with other biases.
    """
    config = run.config
    taken_off = config.objective.posthoc_tau
    if taken_off == 0 or config.distill.teacher is not None:
        return dict(candidates)
    view = run.data.view("train")
    counts = view.counts(run.data.label_space.num_classes)
    found = {}
    for phase, model in candidates.items():
        logs = log_class_counts(torch.from_numpy(counts).double(), _shown(run, phase, counts))
        found[phase] = copy.deepcopy(model)
        bias = found[phase].head.classifier.bias
        with torch.no_grad():
            bias.sub_((taken_off * (logs - logs.mean())).to(bias))
    return found


def _shown(run: OngoingRun, phase: str, counts: IntArray) -> Tensor:
    """(C,) share of each class among the images that a phase has shown."""
    if phase == "finetune":
        return torch.from_numpy(shown_classes(run))
    kind = run.config.retrain.sampler if phase == "retrained" else "square_root"
    return torch.from_numpy(class_prior(counts, kind))
