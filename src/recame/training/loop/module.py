"""Fine-tuning as a Lightning module: training step, validation, optimiser and schedule."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recame.config import FinetuneConfig
from recame.contracts import Batch
from recame.training.loop.data import FinetuneData
from recame.training.loop.pace import Pace
from recame.training.loop.step import TrainingStep


class FinetuneModule(pl.LightningModule):
    """Fine-tune the experts with the whole objective.

    All random numbers of a step come from a generator that is seeded by (seed, step), so a resumed
    run repeats exactly the steps that an interruption lost.

    Args:
        step: computes a training step; holds the model and the loss.
        data: the data to train and validate on.
        settings: the phase's section of the settings.
        deferred_reweighting: share of training after which classes are re-weighted (DRW).
        seed: of every random number.
    """

    def __init__(
        self,
        step: TrainingStep,
        data: FinetuneData,
        settings: FinetuneConfig,
        *,
        deferred_reweighting: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.step = step
        self.model, self.objective = step.model, step.objective
        self._data = data
        self._settings = settings
        self._deferred_reweighting = deferred_reweighting
        self._seed = seed
        self._confusion = torch.zeros(0)
        self.pace = Pace()
        self._batches: Any = None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Loader of whole batches; each process of a distributed run draws its own share."""
        self._batches = batches = self._data.sampler(
            rank=self.trainer.global_rank, world_size=self.trainer.world_size
        )
        # A GPU reads pinned memory without waiting for its own work to end.
        pinned = next(self.model.parameters()).is_cuda
        return DataLoader(self._data.train, sampler=batches, batch_size=None, pin_memory=pinned)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Loader of whole batches in the split's order."""
        return [] if self._data.val is None else self._data.val

    def on_train_start(self) -> None:
        """Tell the step whether several processes train."""
        self.step.together = self.trainer.world_size > 1

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed random layers of the model; switch deferred re-weighting on when it is due."""
        torch.manual_seed(self._step_seed(batch_idx))
        # By steps, not epochs: the time budget may add epochs, which must not switch it off again.
        done = self.pace.done(self.trainer.global_step)
        self.objective.set_deferred(done >= self._deferred_reweighting)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the step, and log its loss and the parts of the loss."""
        generator = torch.Generator().manual_seed(self._step_seed(batch_idx))
        result = self.step(batch, generator)
        self.log_dict(
            {f"loss/{name}": value for name, value in result.parts.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch.target),
            prog_bar=False,
            sync_dist=True,
        )
        self.log(
            "loss",
            result.total.detach(),
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch.target),
            sync_dist=True,
        )
        total: Tensor = result.total
        if (
            self.trainer.world_size > 1
        ):  # gradients are averaged over the processes with equal weight
            total = total * self._batches.weight(batch_idx)
        return total

    def on_validation_epoch_start(self) -> None:
        """Start an empty confusion matrix."""
        num_classes = self.objective.num_classes
        self._confusion = torch.zeros(num_classes, num_classes, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the ensemble's decisions."""
        num_classes = len(self._confusion)
        predicted = self.step.decide(batch)
        cells = torch.bincount(batch.target * num_classes + predicted, minlength=num_classes**2)
        self._confusion += cells.view(num_classes, num_classes)

    def on_validation_epoch_end(self) -> None:
        """Log balanced accuracy over the classes that the split holds."""
        confusion = self._confusion
        if self.trainer.world_size > 1:
            confusion = self.trainer.strategy.reduce(confusion, reduce_op="sum")
        support = confusion.sum(1)
        recall = confusion.diagonal()[support > 0] / support[support > 0]
        self.log("val/balanced_accuracy", recall.mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW or SGD over backbone and head, cosine schedule with warm-up, stepped per batch."""
        settings = self._settings
        groups = self.model.parameter_groups()
        backbone = groups["tails"] + (groups["trunk"] if settings.scope == "all" else [])
        named = self.model.named_parameters()
        biases = {id(p) for name, p in named if name.endswith("bias")}
        parameters = [
            *_decay_groups(backbone, biases, float(settings.lr), settings.weight_decay),
            *_decay_groups(groups["head"], biases, settings.head_lr, settings.weight_decay),
            *_decay_groups(
                list(self.objective.parameters()), set(), settings.head_lr, settings.weight_decay
            ),
        ]
        fused = all(p.device.type in {"cpu", "cuda"} for p in backbone + groups["head"])
        # Lightning cannot clip gradients if a fused optimiser step unscales them itself.
        mixed = isinstance(self.trainer.precision_plugin, MixedPrecision)
        fused &= not (mixed and settings.clip_norm)
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "adamw":
            optimizer = torch.optim.AdamW(parameters, fused=fused)
        else:
            optimizer = torch.optim.SGD(
                parameters, momentum=settings.momentum, nesterov=settings.nesterov, fused=fused
            )
        num_steps = max(1, int(self.trainer.estimated_stepping_batches))
        if settings.steps is not None:
            num_steps = min(num_steps, settings.steps)
        self.pace.begin(num_steps, max(1, round(settings.warmup * num_steps)))

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / self.pace.warmup)
            fall = 0.5 * (1 + math.cos(math.pi * self.pace.done(step)))
            return rise * (settings.min_lr_fraction + (1 - settings.min_lr_fraction) * fall)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the planned number of steps, which the time budget may have changed."""
        checkpoint["pace"] = {**self.pace.state_dict(), "epochs": self.trainer.max_epochs}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the planned number of steps."""
        self.pace.load_state_dict(checkpoint["pace"])
        self.trainer.fit_loop.max_epochs = int(checkpoint["pace"]["epochs"])
        for name in {"state_dict", "current_model_state"} & checkpoint.keys():
            # Version 0.1 kept a compiled network's weights twice.
            checkpoint[name] = {
                key: value
                for key, value in checkpoint[name].items()
                if not key.startswith("_forward.")
            }

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward pass of the step; a replayed graph has computed it already."""
        self.step.backward(loss, *args, **kwargs)

    def _step_seed(self, batch_idx: int) -> int:
        # Different for each process, because they see different images.
        words = [self._seed, self.current_epoch, batch_idx, self.global_rank]
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, whose memory grows with the steps taken.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), so that a short run is not
    dominated by its first weights.

    Args:
        decay: the decay after many steps.
    """

    def __init__(self, decay: float) -> None:
        def update(average: Any, current: Any, num_averaged: Tensor | int) -> None:
            n = int(num_averaged)
            weight = 1 - min(decay, (1 + n) / (10 + n))
            # Called once for each dtype; batch norms count their batches in integers.
            if average[0].is_floating_point():
                torch._foreach_lerp_(average, current, weight)
            else:
                torch._foreach_copy_(average, current)

        super().__init__(multi_avg_fn=update)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the average on the device of training; until it moves, the module reports `cpu`."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the averaged weights into the model, also if a resumed run had no epoch left."""
        self.on_train_end(trainer, pl_module)


def _decay_groups(
    parameters: list[nn.Parameter], biases: set[int], lr: float, decay: float
) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for weights, none for biases and gains of norms."""

    def decays(parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and id(parameter) not in biases

    learned = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in learned if decays(p)], "lr": lr, "weight_decay": decay},
        {"params": [p for p in learned if not decays(p)], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
