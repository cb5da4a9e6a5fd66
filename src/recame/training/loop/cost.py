"""Measure the cost of a fine-tuning step and of an epoch's end by a few real steps."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import torch

from recame.contracts import Batch
from recame.training.loop.data import FinetuneData
from recame.training.loop.step import TrainingStep

# Few steps: on a small machine each takes seconds of the budget, and the plan is corrected later.
_WARM_UP_STEPS = 1
_TIMED_STEPS = 3
#: Images of the validation split for timing a forward pass.
_FORWARD_IMAGES, _TIMED_FORWARDS = 32, 2

#: Real images for comparing a run's graph with torch: as many as torch answers in this time, within
#: a least and a largest number; if there are fewer than a third number, all is kept short.
_PARITY_S, _PARITY_IMAGES, _BRIEF = 0.5, (24, 1000), 48
#: Seconds of timing the graph's answers, and images per call.
PRICE_S, PRICE_BATCH = 0.4, 16


@dataclass(frozen=True)
class StepCost:
    """The costs of fine-tuning on this device.

    Attributes:
        step_s: seconds per training step.
        val_s: seconds of one pass over the validation split.
        forward_s: seconds of one image's forward pass without gradients.
        checkpoint_s: seconds for writing a checkpoint.
    """

    step_s: float
    val_s: float
    forward_s: float = 0.0
    checkpoint_s: float = 0.0

    @property
    def epoch_end_s(self) -> float:
        """Seconds between two epochs."""
        return self.val_s + self.checkpoint_s


def graph_cost_s(
    image_s: float, graph_image_s: float | None = None, *, views: int = 1, made_s: float = 0.0
) -> float:
    """Seconds for a run's graph at its end: making it, comparing it with torch, timing it.

    Args:
        image_s: seconds of one image's forward pass through all networks that answer.
        graph_image_s: the same for its graph; None: not measured.
        views: largest number of views in test-time augmentation.
        made_s: seconds for making a graph earlier; 0: none was made.
    """
    answers = image_s if graph_image_s is None else graph_image_s
    # Loading, recording, writing and messages take as long as making four graphs; on a slow machine
    # they are slow too.
    beside = min(max(1.3, 4 * made_s), 10.0)
    compared, brief = compared_images(image_s)
    # Some more images run in torch, others in batches of several sizes; then answers are timed.
    in_torch, in_batches = (25, 40) if brief else (45, 190)
    passing = (compared + in_torch) * image_s + (compared + in_batches) * answers
    round_s = PRICE_BATCH * views * answers
    return beside + passing + round_s + max(PRICE_S, round_s)


def compared_images(image_s: float) -> tuple[int, bool]:
    """Number of real images for comparing a run's graph with torch; whether to keep it short.

    Args:
        image_s: seconds that torch takes for one image.

    Examples:
        >>> compared_images(0.002), compared_images(0.1)
        ((250, False), (24, True))
    """
    affordable = _PARITY_S / max(image_s, 1e-6)
    least, most = _PARITY_IMAGES
    return int(min(max(affordable, least), most)), affordable < _BRIEF


def measure_cost(
    step: TrainingStep,
    data: FinetuneData,
    batch_size: int,
    precision: str,
    *,
    most_s: float = math.inf,
) -> StepCost:
    """Time a few training steps and a forward pass.

    Args:
        step: on its device; its model takes real steps, so discard it afterwards.
        data: the data to train and validate on.
        batch_size: images of a full batch.
        precision: `32`, `bf16` or `16`.
        most_s: no further step begins after so many seconds; at least two steps are taken.
    """
    device = next(step.model.parameters()).device
    groups = step.model.parameter_groups()
    learned = [p for group in groups.values() for p in group if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.0)
    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision)
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
    step.model.train()
    batches = itertools.chain.from_iterable(data.sampler() for _ in itertools.count())
    seconds: list[float] = []
    for chosen in itertools.islice(batches, _WARM_UP_STEPS + _TIMED_STEPS):
        if len(seconds) > _WARM_UP_STEPS and sum(seconds) > most_s:
            break
        began = time.perf_counter()
        with autocast:
            batch = Batch(*(part.to(device) for part in data.train[chosen]))
            total = step(batch, torch.Generator().manual_seed(0)).total
        step.backward(total)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        # A short batch counts as a full one.
        seconds.append((time.perf_counter() - began) * batch_size / len(chosen))
    timed = sorted(seconds[_WARM_UP_STEPS:])
    step_s = timed[len(timed) // 2]
    if data.val is None:
        return StepCost(step_s, 0.0, step_s / batch_size / 3)  # about a third of a step
    with autocast:
        forward_s = _forward_s(step, next(iter(data.val)), device)
    num_val = len(data.val.dataset)  # type: ignore[arg-type]
    return StepCost(step_s, num_val * forward_s, forward_s)


def _forward_s(step: TrainingStep, batch: Batch, device: torch.device) -> float:
    """Seconds of one image's forward pass: the least of a few after the first; some may stall."""
    few = Batch(*(part[:_FORWARD_IMAGES].to(device) for part in batch))
    step.model.eval()
    seconds: list[float] = []
    with torch.inference_mode():
        for _ in range(1 + _TIMED_FORWARDS):
            began = time.perf_counter()
            step.decide(few).cpu()
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) / len(few.target)
