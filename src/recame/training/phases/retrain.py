"""Phase 3, if asked for: the heads anew on the fine-tuned network's features.

Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR
2020, classifier re-training (cRT): the network learns from images as they come, the classifier
from classes drawn alike. Deviation: the features are computed once under a few flips and turns
instead of again in each step.
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
        run: its `retrain` settings say how.
        model: fine-tuned; left as it is.

    Returns:
        The same trunk and tails with heads of their own.
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
    """Images that this phase embeds, each counted once a view."""
    view, num_views = _shown(run)
    return len(view) * num_views


def _shown(run: OngoingRun) -> tuple[SplitView, int]:
    """The training images that the heads see, and under how many views."""
    settings = run.config.retrain
    view = capped_view(run.data.view("train"), settings.max_per_class, run.config.run.seed)
    return view, min(settings.views, SYMMETRIES[run.config.augment.symmetry])
