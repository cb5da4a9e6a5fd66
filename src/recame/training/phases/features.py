"""Cache features of a frozen network, and train heads on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recame.config import ProbeConfig, RetrainConfig
from recame.data.dataset import SplitView
from recame.data.samplers import SamplerKind, class_prior
from recame.data.transforms import dihedral_view
from recame.errors import TrainingError
from recame.losses import TrainingLoss
from recame.models import ExpertHead, FrozenForward, MultiExpertClassifier
from recame.progress import Progress, silent
from recame.training.ongoing_run import OngoingRun


@dataclass(frozen=True)
class ProbeFeatures:
    """Pooled features of images under several views.

    Attributes:
        pooled: (N, V, P) float32, or (N, V, E, P) if the expert branches differ.
        target: (N,) int64.
    """

    pooled: Tensor
    target: Tensor

    def expand(self, pooled: Tensor, num_experts: int) -> Tensor:
        """Give each expert its features: (B, P) or (B, E, P) -> (B, E, P)."""
        if pooled.ndim == 3:
            return pooled
        return pooled[:, None].expand(-1, num_experts, -1)


def embed(
    run: OngoingRun,
    model: MultiExpertClassifier,
    view: SplitView,
    num_views: int,
    report: Progress = silent,
    forward: FrozenForward | None = None,
) -> ProbeFeatures:
    """Compute pooled features of a split's images under `num_views` flips and rotations, once.

    Args:
        run: gives data, device and batch size.
        model: on the run's device; its heads are not used.
        view: the images.
        num_views: number of flips and rotations, 1 to 8.
        report: called with the progress.
        forward: of `open_forward`; None: opened for these images.
    """
    was_training, batch_size = model.training, run.config.evaluation.batch_size
    if forward is None:
        # Count all 8 views: a run resumed with fewer views must make the same choice.
        forward = open_forward(run, model, len(view) * run.config.probe.views)
    model.eval()
    pieces = run.data.spec.pieces
    parts: list[Tensor] = []
    for start in range(0, len(view), batch_size):
        images = run.data.images(view.rows[start : start + batch_size]).to(run.device)
        views = [forward(dihedral_view(images, v, pieces))[0].cpu() for v in range(num_views)]
        parts.append(torch.stack(views, 1))
        report(f"embedding {view.name}", start + len(images), len(view))
    model.train(was_training)
    return ProbeFeatures(torch.cat(parts), torch.from_numpy(view.targets.copy()))


def open_forward(run: OngoingRun, model: MultiExpertClassifier, num_images: int) -> FrozenForward:
    """The fastest available forward pass from images to the inputs of the heads.

    Args:
        run: gives data and device; the time for making a graph is noted in it.
        model: on the run's device; is left in evaluation mode.
        num_images: number of image views to process.
    """
    pooled = model.pooled_single if model.tails_identical() else model.pooled
    example = run.data.images(run.data.view("train").rows[:1]).to(run.device)
    began = time.monotonic()
    forward = FrozenForward(
        model, example, function=pooled, num_images=num_images, precision=run.precision
    )
    if forward.uses_graph:
        run.measured.graph_s = time.monotonic() - began
    return forward


def fit_heads(
    head: ExpertHead,
    features: ProbeFeatures,
    objective: TrainingLoss,
    settings: ProbeConfig | RetrainConfig,
    *,
    num_experts: int,
    seed: int,
    sampler: SamplerKind = "square_root",
    on_progress: Progress = silent,
    on_loss: Callable[[int, float], None] | None = None,
) -> None:
    """Train the heads in place on cached features; all random numbers are seeded.

    For each image, a random view is drawn. The objective must have the prior of the sampler.

    Args:
        head: the experts' heads; its feature normalisation is set from the features.
        features: of the training images.
        objective: the loss; its memory is reset.
        settings: the phase's section of the settings.
        num_experts: E.
        seed: of all random numbers.
        sampler: how often each class is drawn, see `class_prior`.
        on_progress: called with the number of steps.
        on_loss: called with a step's number and loss, now and then.

    Raises:
        TrainingError: the heads are not finite at the end.
    """
    pooled = features.pooled
    flat = pooled.reshape(-1, head.shape[1])
    head.set_standardisation(flat.mean(0), flat.std(0, correction=0))
    objective.forget()  # a resumed run may lack the memory of an earlier fit
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    counts = torch.bincount(features.target)
    share = torch.from_numpy(class_prior(counts.numpy(), sampler)).float()
    weight = (share / counts.clamp_min(1))[features.target]
    parameters = list(head.parameters())
    optimizer = torch.optim.AdamW(
        parameters, settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / int(settings.steps)))
    )
    device = parameters[0].device
    num_steps = int(settings.steps)
    head.train()
    if head.standardise is not None:
        head.standardise.eval()  # features are fixed, so their statistics are known
    batch = min(settings.batch_size, 4 * len(features.target))
    for step in range(num_steps):
        chosen = torch.multinomial(weight, batch, replacement=True, generator=generator)
        view = torch.randint(pooled.shape[1], (batch,), generator=generator)
        inputs = features.expand(pooled[chosen, view].to(device), num_experts)
        output, target = head(inputs), features.target[chosen].to(device)
        result = objective(output, target)
        if objective.remembers:
            objective.remember(output, [(target, 1.0)])
        optimizer.zero_grad(set_to_none=True)
        result.total.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 20 == 0:
            on_progress("heads", step + 1, num_steps)
            if on_loss is not None:
                on_loss(step + 1, float(result.total.detach()))
    if not all(bool(value.isfinite().all()) for value in head.state_dict().values()):
        raise TrainingError(
            f"The heads are not finite after {num_steps} steps on frozen features (last loss "
            f"{float(result.total.detach())}), so training cannot continue: give the phase a "
            f"smaller lr (it is {settings.lr:g}: probe.lr, or retrain.lr), or check the images."
        )
    head.eval()


def probe_prior(counts: np.ndarray) -> Tensor:
    """The class prior of the images that `fit_heads` draws."""
    return torch.from_numpy(class_prior(counts, "square_root")).float()
