"""Phase 3, optional: re-train the heads on the fine-tuned network's features.

Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR
2020, classifier re-training (cRT): the network learns with instance-balanced sampling, the
classifier with class-balanced sampling. Deviation: the features are computed once, under a few
flips and rotations, instead of in each step.
"""

from __future__ import annotations

import copy
import time

import torch

from recame.config import SYMMETRIES
from recame.data.dataset import SplitView
from recame.data.samplers import class_prior
from recame.data.sampling import capped_view
from recame.models import MultiExpertClassifier
from recame.names import counted
from recame.progress import progress_bars, say
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.features import embed, fit_heads


def run_retrain(run: OngoingRun, model: MultiExpertClassifier) -> MultiExpertClassifier:
    """Train new heads on the network's features of the training images.

    Args:
        run: has the `retrain` settings.
        model: fine-tuned; is not changed.

    Returns:
        A network with the same stages and new heads.
    """
    began = time.monotonic()
    settings, seed = run.config.retrain, run.config.run.seed
    view, num_views = _shown(run)
    counts = view.counts(run.data.label_space.num_classes)
    objective = run.objective(
        torch.from_numpy(class_prior(counts, settings.sampler)).float(),
        model.num_features,
        fixed_features=run.config.model.hidden == 0,
    )
    model = copy.deepcopy(model)
    with progress_bars(run.console) as report:
        features = embed(run, model, view, num_views, report)
        model.head = run.new_model().head
        fit_heads(
            model.head,
            features,
            objective,
            settings,
            num_experts=model.num_experts,
            sampler=settings.sampler,
            on_loss=run.trackers.losses_of("retrain"),
            seed=seed,
            on_progress=report,
        )
    say(
        run.console,
        f"Retrained: new heads on features of {len(view):,} images, "
        f"{counted(num_views, 'view')} each, {time.monotonic() - began:.0f} s",
    )
    return model.eval()


def num_retrained(run: OngoingRun) -> int:
    """Number of image views that this phase embeds."""
    view, num_views = _shown(run)
    return len(view) * num_views


def _shown(run: OngoingRun) -> tuple[SplitView, int]:
    """The training images of the heads, and the number of views."""
    settings = run.config.retrain
    view = capped_view(run.data.view("train"), settings.max_per_class, run.config.run.seed)
    return view, min(settings.views, SYMMETRIES[run.config.augment.symmetry])
