"""Choose the number of images and views of the probe by a measured speed.

The numbers are written to the run's settings before the probe begins, so that a resumed probe uses
the same images, even if the speed of the machine has changed.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from functools import partial

import numpy as np

from recame.contracts import IntArray
from recame.models import FrozenForward, MultiExpertClassifier, becomes_graph
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.features import open_forward
from recame.training.planner import (
    LEAST_PER_CLASS,
    budget_s,
    embedding_share,
)

#: Images for timing a forward pass, and number of timings.
_TIMED_IMAGES, _TIMED_ROUNDS = 64, 2
#: Largest expected speed-up by a graph; a graph is tried only if it would pay off then.
_HOPED_GAIN = 4.0
#: Largest number of validation images of a class for choosing the symmetry.
VAL_PER_CLASS = 200


def settle_probe(run: OngoingRun, model: MultiExpertClassifier) -> tuple[OngoingRun, FrozenForward]:
    """Measure the speed of embedding, and decide the number of images and views.

    Args:
        run: `probe` settings that are `auto` are decided, printed and written.
        model: on the run's device; is left in evaluation mode.

    Returns:
        The run, and the forward pass that embeds its images.
    """
    settings = run.config.probe
    counts, val_counts = _counts(run)
    forward: FrozenForward | None = None
    if settings.max_per_class == "auto":
        cap, views, why, forward = _measured(run, model, counts, val_counts)
        config = run.config.updated({"probe.max_per_class": cap, "probe.views": views})
        reasons = [f"probe.max_per_class = {cap}: {why}"]
        if views < settings.views:
            reasons.append(f"probe.views = {views}: a few images under more take longer than that")
        run = run.decided(config, reasons)
    settings = run.config.probe
    # Only the settings decide whether a graph is used, as in a resumed run.
    images = num_embedded(counts, val_counts, int(settings.max_per_class)) * settings.views
    pixels = images * run.data.spec.height * run.data.spec.width
    if forward is None or forward.uses_graph != becomes_graph(run.device, pixels):
        forward = open_forward(run, model, images)
    return run, forward


def _measured(
    run: OngoingRun, model: MultiExpertClassifier, counts: IntArray, val_counts: IntArray
) -> tuple[int, int, str, FrozenForward]:
    """`max_per_class` and `views` that fit, a reason, and the measured forward pass."""
    settings, side = run.config.probe, run.data.spec.height * run.data.spec.width
    budget = budget_s(run.config, run.device)
    assert budget is not None  # without a budget, nothing is measured
    spent = time.monotonic() - run.started
    share_s = max(0.0, min(embedding_share(run.config) * budget, (budget - spent) / 2))
    ends = time.monotonic() + share_s
    draws = int(settings.steps) * settings.batch_size

    def plan(image_s: float, most_pixels: float = np.inf) -> tuple[int, int]:
        fits = min((ends - time.monotonic()) / image_s, most_pixels / side)
        return plan_probe(fits, counts, val_counts, views=settings.views, draws=draws)

    forward = open_forward(run, model, 0)
    image_s = eager_s = run.measured.forward_s = _image_s(run, forward)
    cap, views = plan(eager_s / _HOPED_GAIN)
    if becomes_graph(run.device, num_embedded(counts, val_counts, cap) * views * side):
        graph = open_forward(run, model, num_embedded(counts, val_counts, cap) * views)
        if graph.uses_graph:
            graph_s = run.measured.graph_image_s = _image_s(run, graph)
            cap, views = plan(graph_s)
            if becomes_graph(run.device, num_embedded(counts, val_counts, cap) * views * side):
                forward, image_s = graph, graph_s
    if not forward.uses_graph:
        cap, views = plan(eager_s)
    why = (
        f"an image takes {1000 * image_s:.1f} ms a view, measured, and embedding may take "
        f"{share_s:.0f} of the {budget:.0f} s"
    )
    return cap, views, why, forward


def _image_s(run: OngoingRun, forward: FrozenForward) -> float:
    """Seconds per image after a first batch: the least of a few timings; some may stall."""
    few = min(_TIMED_IMAGES, run.config.evaluation.batch_size)
    images = run.data.images(run.data.view("train").rows[:few]).to(run.device)

    def taken() -> float:
        began = time.monotonic()
        for output in forward(images):
            output.cpu()
        return max(1e-6, time.monotonic() - began)

    taken()
    return min(taken() for _ in range(_TIMED_ROUNDS)) / len(images)


def _counts(run: OngoingRun) -> tuple[IntArray, IntArray]:
    """(C,) training images of each class, and validation images of each class (maybe 0)."""
    num_classes = run.data.label_space.num_classes
    train = run.data.view("train").counts(num_classes)
    if "val" not in run.data.splits:
        return train, np.zeros_like(train)
    return train, run.data.view("val").counts(num_classes)


def plan_probe(
    fits: float, counts: IntArray, val_counts: IntArray, *, views: int, draws: int
) -> tuple[int, int]:
    """Largest number of images of a class for the probe, and the number of views.

    All images if they fit. The number of views is reduced last, if not even a few images of each
    class fit.

    Args:
        fits: number of image views that there is time for.
        counts: (C,) training images.
        val_counts: (C,) validation images.
        views: largest number of views.
        draws: number of images in the heads' training; embedding more is useless.

    Examples:
        >>> plan_probe(1600, np.array([900, 50]), np.array([0, 0]), views=8, draws=10**6)
        (150, 8)
    """
    while views > 1 and num_embedded(counts, val_counts, LEAST_PER_CLASS) * views > fits:
        views //= 2
    larger = range(LEAST_PER_CLASS + 1, max(LEAST_PER_CLASS, int(counts.max())) + 1)
    none = np.zeros_like(val_counts)
    fitting = bisect_right(larger, fits / views, key=partial(num_embedded, counts, val_counts))
    shown = bisect_right(larger, draws / views, key=partial(num_embedded, counts, none))
    return LEAST_PER_CLASS + min(fitting, shown), views


def num_embedded(counts: IntArray, val_counts: IntArray, cap: int) -> int:
    """Number of images that a probe with at most `cap` per class embeds, including `val`."""
    decide = np.minimum(val_counts, min(cap, VAL_PER_CLASS))
    return int(np.minimum(counts, cap).sum() + decide.sum())
