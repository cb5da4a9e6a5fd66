"""Give the backbone's batch norms some of the set's own statistics, before the probe."""

from __future__ import annotations

import numpy as np

from recame.contracts import IntArray
from recame.data.dataset import InspectionSet
from recame.data.samplers import class_prior
from recame.models import MultiExpertClassifier, adapt_batch_norms
from recame.training.ongoing_run import OngoingRun

#: Images whose statistics are taken, and too few to take any.
_MOST, _LEAST = 128, 16
#: Images of a forward pass.
_BATCH = 64


def adapt_to_set(run: OngoingRun, model: MultiExpertClassifier) -> None:
    """Move the statistics by the run's share of the set's own (docs/decisions/0051).

    Args:
        run: planned.
        model: new; is left in evaluation mode.
    """
    share, rows = run.config.probe.adapt_batch_norm, adapting_rows(run.data, run.config.run.seed)
    assert share != "auto"
    if len(rows):
        batches = (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
        images = (run.data.images(batch).to(run.device) for batch in batches)
        adapt_batch_norms(model, images, share)


def adapting_rows(data: InspectionSet, seed: int) -> IntArray:
    """(n,) rows of training images for the statistics, drawn as heads see them; 0 of a handful."""
    view = data.view("train")
    if len(view) < _LEAST:
        return view.rows[:0]
    counts = view.counts(data.label_space.num_classes)
    weight = (class_prior(counts, "square_root") / counts.clip(1))[view.targets]
    drawn = np.random.default_rng(seed).choice(
        len(view), min(len(view), _MOST), replace=False, p=weight / weight.sum()
    )
    return view.rows[drawn]
