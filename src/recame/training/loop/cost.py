"""What a fine-tuning step costs, measured by a few real ones."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch

from recame.contracts import Batch
from recame.training.loop.data import FinetuneData
from recame.training.loop.step import TrainingStep

# Few: on a small machine each takes seconds of the budget, and the epochs correct the plan.
_WARM_UP_STEPS = 1
_TIMED_STEPS = 3


@dataclass(frozen=True)
class StepCost:
    """What a fine-tuning step costs on this device.

    Attributes:
        step_s: seconds a training step.
        val_s: seconds one pass over the validation split takes.
    """

    step_s: float
    val_s: float


def graph_cost_s(image_s: float) -> float:
    """Seconds that a run's graph takes at its end: made, compared with torch, timed.

    Args:
        image_s: seconds that a forward of one image takes.
    """
    # Loading, writing and timing; torch answers for a second, or at least some 80 images.
    return 2.0 + max(1.0, 80 * image_s)


def measure_cost(
    step: TrainingStep, data: FinetuneData, batch_size: int, precision: str
) -> StepCost:
    """Take a few steps on the clock.

    Args:
        step: on its device; its model takes real steps: throw it away afterwards.
        data: what it trains and validates on.
        batch_size: images of a whole batch.
        precision: `32`, `bf16` or `16`.
    """
    device = next(step.model.parameters()).device
    groups = step.model.parameter_groups()
    learned = [p for group in groups.values() for p in group if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.0)
    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision)
    step.model.train()
    batches = itertools.chain.from_iterable(data.sampler() for _ in itertools.count())
    seconds: list[float] = []
    for chosen in itertools.islice(batches, _WARM_UP_STEPS + _TIMED_STEPS):
        began = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            batch = Batch(*(part.to(device) for part in data.train[chosen]))
            total = step(batch, torch.Generator().manual_seed(0)).total
        step.backward(total)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        # A short batch counts for a whole one.
        seconds.append((time.perf_counter() - began) * batch_size / len(chosen))
    step_s = sorted(seconds[_WARM_UP_STEPS:])[_TIMED_STEPS // 2]
    num_val = 0 if data.val is None else len(data.val.dataset)  # type: ignore[arg-type]
    # A forward without gradients costs about a third of a training step.
    return StepCost(step_s, num_val / batch_size * step_s / 3)
