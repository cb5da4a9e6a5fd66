"""Parts of a run's costs, each measured alone: operations, speeds, memory, training of heads."""

from __future__ import annotations

import contextlib
import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from recame.config import SYMMETRIES, ProbeConfig, RetrainConfig
from recame.machine import peak_memory_mib
from recame.models import FrozenForward, MultiExpertClassifier
from recame.runtime.timing import time_calls
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.features import ProbeFeatures, fit_heads
from recame.training.phases.finetune import measure_step

#: Images in one timed forward pass.
INFERENCE_BATCH = 128

_INFERENCE_S, _INFERENCE_MOST_S = 0.3, 10.0
_HEAD_STEPS = 20


def deciding_network(run: OngoingRun) -> MultiExpertClassifier:
    """The network that a run with these settings keeps, untrained."""
    model = run.new_model()
    if run.config.run.keep != "joined":
        return model
    tuned = copy.deepcopy(model)
    groups = tuned.parameter_groups()
    moved = ["tails"] if run.config.finetune.scope == "tails" else ["trunk", "tails"]
    with torch.no_grad():  # change the experts, because equal ones would share one pass
        for parameter in (p for part in moved for p in groups[part]):
            parameter.add_(1.0)
    return model.joined(tuned)


def trained_parameters(run: OngoingRun) -> int:
    """Number of parameters that fine-tuning changes."""
    groups = run.new_model().parameter_groups()
    parts = ("tails", "head") if run.config.finetune.scope == "tails" else tuple(groups)
    return sum(p.numel() for part in parts for p in groups[part] if p.requires_grad)


def count_macs(model: nn.Module, images: torch.Tensor) -> int:
    """Multiply-accumulate operations of a forward pass: convolutions and matrix products.

    Args:
        model: in evaluation mode.
        images: its input, on its device.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    # A multiply-accumulate is two operations.
    return int(counter.get_total_flops()) // 2


def training_rate(run: OngoingRun) -> float | None:
    """Images per second of fine-tuning steps."""
    settings = run.config.finetune
    if not settings.enabled:
        return None
    return settings.images_per_step / measure_step(run, run.new_model()).step_s


@torch.inference_mode()
def inference_rate(run: OngoingRun) -> float:
    """Images per second of eager forward passes, without test-time augmentation."""
    spec, device = run.data.spec, run.device
    model = deciding_network(run).eval()
    images = torch.rand(INFERENCE_BATCH, spec.channels, spec.height, spec.width, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(run.precision)

    def forward() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    forward()
    taken = time_calls(forward, _INFERENCE_S, least=3, most_s=_INFERENCE_MOST_S)
    return INFERENCE_BATCH / (float(np.median(taken)) / 1e9)


class _Pooled(nn.Module):
    """The network without heads; all experts share one pass if their branches are equal."""

    def __init__(self, model: MultiExpertClassifier, *, single: bool) -> None:
        super().__init__()
        self.model, self.single = model, single

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> (B, P) or (B, E, P)."""
        return self.model.pooled_single(images) if self.single else self.model.pooled(images)


def heads_s(run: OngoingRun, settings: ProbeConfig | RetrainConfig, *, single: bool) -> float:
    """Seconds of a phase that embeds the training images once and trains the heads.

    Computed from the time to prepare the fastest forward pass, the time of one batch and the time
    of some steps. The label space of the data counts the images of the whole set.

    Args:
        run: its data needs one batch of images.
        settings: the phase's section.
        single: whether the expert branches are still equal, so that all share one pass.
    """
    config, data = run.config, run.data
    model = run.new_model().eval()
    counts = np.asarray(data.label_space.counts)
    num_views = min(settings.views, SYMMETRIES[config.augment.symmetry])
    num_embedded = int(np.minimum(counts, int(settings.max_per_class)).sum())
    rows = np.arange(min(len(data.table), config.evaluation.batch_size))
    images = data.images(rows).to(run.device)
    began = time.perf_counter()
    forward = FrozenForward(
        _Pooled(model, single=single),
        images,
        num_images=num_embedded * config.probe.views,  # a run chooses by the same number
        precision=run.precision,
    )
    ready_s = time.perf_counter() - began

    def embed() -> torch.Tensor:
        return forward(images)[0].cpu()

    pooled = embed()
    batch_s = float(np.median(time_calls(embed, _INFERENCE_S))) / 1e9
    features = ProbeFeatures(
        pooled[:, None].expand(-1, num_views, *pooled.shape[1:]).contiguous(),
        torch.from_numpy(data.view("train").targets[rows]),
    )
    objective = run.objective(
        torch.ones(len(counts)), model.num_features, fixed_features=config.model.hidden == 0
    )
    short = settings.model_copy(update={"steps": _HEAD_STEPS})
    head = model.head.train()
    began = time.perf_counter()
    fit_heads(head, features, objective, short, num_experts=model.num_experts, seed=0)
    step_s = (time.perf_counter() - began) / _HEAD_STEPS
    return ready_s + num_embedded * num_views / len(rows) * batch_s + int(settings.steps) * step_s


def gpu_peak_mib(run: OngoingRun) -> float:
    """Largest memory on the GPU during training steps, MiB."""
    torch.cuda.synchronize(run.device)
    before = torch.cuda.memory_allocated(run.device)
    torch.cuda.reset_peak_memory_stats(run.device)
    measure_step(run, run.new_model())
    return float(torch.cuda.max_memory_allocated(run.device) - before) / 2**20


def cpu_peak_mib(run: OngoingRun) -> float | None:
    """Memory that training steps add to this process, which should be fresh, MiB."""
    with contextlib.suppress(OSError):  # Linux: reset the peak to the present use
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak_memory_mib()
    measure_step(run, run.new_model())
    after = peak_memory_mib()
    return None if before is None or after is None else after - before
