"""The prior taken off after training: of biases alone, by the shares that a phase showed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recame.contracts import ensemble_logits
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.posthoc import without_prior


@pytest.mark.parametrize(("sampler", "power"), [("instance", 1.0), ("square_root", 0.5)])
def test_logits_lack_tau_times_the_log_of_the_shares(
    sampler: str, power: float, ongoing: Callable[..., OngoingRun]
) -> None:
    run = ongoing(
        objective__base="cross_entropy", objective__posthoc_tau=1.5, finetune__sampler=sampler
    )
    model = run.new_model().eval()
    adjusted = without_prior(run, {"finetune": model})["finetune"]
    view = run.data.view("train")
    counts = view.counts(run.data.label_space.num_classes)
    images = run.data.images(view.rows[:5])
    with torch.no_grad():
        before, after = (ensemble_logits(net(images).logits) for net in (model, adjusted))
    wanted = before.numpy() - 1.5 * power * np.log(counts)
    difference = after.numpy() - wanted
    # A number that all classes share changes no answer.
    np.testing.assert_allclose(
        difference, np.broadcast_to(difference[:, :1], difference.shape), atol=1e-5
    )


def test_nothing_is_touched_where_nothing_is_asked(ongoing: Callable[..., OngoingRun]) -> None:
    run = ongoing()
    model = run.new_model()
    assert without_prior(run, {"finetune": model}) == {"finetune": model}
