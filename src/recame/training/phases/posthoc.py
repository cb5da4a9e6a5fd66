"""Post-hoc logit adjustment: subtract the log of the class prior from the classifiers' biases.

Source: Menon et al., Long-tail Learning via Logit Adjustment, ICLR 2021, section 4.1, "post-hoc":
answer `argmax logits - tau * log prior`. Here the classifier's bias is changed, so that run, graph
and bundle give the same answers without further code.
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
    """Subtract `objective.posthoc_tau` times the log prior of each phase from the logits.

    Students are not changed: the answers of their teacher are adjusted already.

    Args:
        run: its settings give the strength, and the sampling of each phase.
        candidates: phase -> network; are not changed.

    Returns:
        The same networks if there is nothing to subtract, else copies with other biases.
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
    """(C,) share of each class among the training images of a phase."""
    if phase == "finetune":
        return torch.from_numpy(shown_classes(run))
    kind = run.config.retrain.sampler if phase == "retrained" else "square_root"
    return torch.from_numpy(class_prior(counts, kind))
