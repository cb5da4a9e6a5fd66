"""The fine-tuning phase as Lightning sees it: one step, one validation, optimiser and schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recame.config import FinetuneConfig
from recame.contracts import Batch, ExpertOutput, LossResult, ensemble_logits
from recame.data.dataset import to_unit
from recame.data.transforms import Augment, Mix
from recame.losses import Lesson, StudentObjective, TrainingLoss
from recame.models import MultiExpertClassifier
from recame.models.gates import forward_with_gates
from recame.training.loop.cost import StepCost
from recame.training.loop.cuda_graph import GraphedStep
from recame.training.loop.data import FinetuneData
from recame.training.loop.pace import Pace


class FinetuneModule(pl.LightningModule):
    """Fine-tune the experts under the whole objective.

    Every random number of a step comes from a generator seeded by (seed, step), so that a resumed
    run repeats exactly the steps that an interruption took away.

    Args:
        model: the experts.
        objective: the loss; a student's if `data` has a teacher.
        data: what to train on.
        settings: the phase's section of the settings.
        augment: random changes of a batch, or None.
        mix: mixup and cutmix, or None.
        deferred_reweighting: share of training after which classes are re-weighted (DRW).
        compiled: run the forward through `torch.compile`.
        graphed: replay a step's forward, loss and backward as a CUDA graph where it is possible:
            nothing to a CPU, to a frozen trunk, to a student.
        seed: of every random number.
    """

    def __init__(
        self,
        model: MultiExpertClassifier,
        objective: TrainingLoss | StudentObjective,
        data: FinetuneData,
        settings: FinetuneConfig,
        *,
        augment: Augment | None,
        mix: Mix | None,
        deferred_reweighting: float,
        compiled: bool,
        graphed: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self._data = data
        self._settings = settings
        self._augment = augment
        self._mix = mix
        self._deferred_reweighting = deferred_reweighting
        self._seed = seed
        self._forward: Callable[[Tensor], ExpertOutput] = model.__call__
        if compiled:
            self._forward = torch.compile(model)
        self._graphed = graphed and not compiled and data.trunk is None and data.teacher is None
        self._graph: GraphedStep | None = None
        self._confusion = torch.zeros(0)
        self.pace = Pace()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Whole batches; each process of a distributed run draws its own share."""
        batches = self._data.sampler(
            rank=self.trainer.global_rank, world_size=self.trainer.world_size
        )
        # From pinned memory a GPU takes a batch without waiting for its own work to end.
        pinned = next(self.model.parameters()).is_cuda
        return DataLoader(self._data.train, sampler=batches, batch_size=None, pin_memory=pinned)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Whole batches in the split's order."""
        return [] if self._data.val is None else self._data.val

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what draws inside the model; switch deferred re-weighting on when its time comes."""
        torch.manual_seed(self._step_seed(batch_idx))
        # Not of the epochs: the clock may add some, and what has begun must not end again.
        done = self.pace.done(self.trainer.global_step)
        self.objective.set_deferred(done >= self._deferred_reweighting)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Augment, mix, forward, loss."""
        generator = torch.Generator().manual_seed(self._step_seed(batch_idx))
        result = self._step(batch, generator)
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
        return total

    def on_validation_epoch_start(self) -> None:
        """Start an empty confusion matrix."""
        num_classes = self.objective.num_classes
        self._confusion = torch.zeros(num_classes, num_classes, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the ensemble's decisions."""
        output = self._run(to_unit(batch.images, self._data.scale))
        predicted = ensemble_logits(output.logits).argmax(1)
        num_classes = len(self._confusion)
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
        # Lightning cannot clip gradients that a fused step would unscale itself.
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
        """Keep how long training is to go on: the clock may have changed the plan."""
        checkpoint["pace"] = {**self.pace.state_dict(), "epochs": self.trainer.max_epochs}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the plan as it stood."""
        self.pace.load_state_dict(checkpoint["pace"])
        self.trainer.fit_loop.max_epochs = int(checkpoint["pace"]["epochs"])

    def _step(self, batch: Batch, generator: torch.Generator) -> LossResult:
        target = batch.target
        if self._data.trunk is not None:
            maps, pooled = self._data.trunk.take(batch.index, generator, target.device)
            return self._loss(self.model.from_trunk(maps, pooled))(target)
        images = to_unit(batch.images, self._data.scale)
        if self._augment is not None:
            images = self._augment(images, generator)
        labels = [(target, 1.0)]
        if self._mix is not None:
            images, permutation, lam = self._mix(images, generator)
            labels = [(target, lam), (target[permutation], 1 - lam)]
        if self._graphed and images.is_cuda:
            if self._graph is None:
                self._graph = GraphedStep(nn.ModuleList([self.model, self.objective]), self._judge)
            found = self._graph(images, labels, self.objective.deferred)
            if found is not None:
                return found
        return self._judge(images, labels)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate, or take what a replayed graph has differentiated already."""
        if self._graph is None or not self._graph.set_gradients():
            super().backward(loss, *args, **kwargs)

    def _judge(self, images: Tensor, labels: Sequence[tuple[Tensor, Tensor | float]]) -> LossResult:
        """The loss of a batch, of a mixed one by both its labels."""
        loss = self._judged(images)
        if len(labels) == 1:
            return loss(labels[0][0])
        return _weighted([(loss(target), weight) for target, weight in labels])

    def _judged(self, images: Tensor) -> Callable[[Tensor], LossResult]:
        """The loss of a batch as a function of its labels, of which a mixed batch has two."""
        teacher = self._data.teacher
        if teacher is None:
            return self._loss(self._run(images))
        # On the same, augmented and mixed, images: Beyer et al., A good teacher is patient and
        # consistent, CVPR 2022.
        lesson = teacher(images)
        assert isinstance(self.objective, StudentObjective)
        if self.objective.needs_gates:
            return self._loss(*forward_with_gates(self.model, images), lesson)
        return self._loss(self._run(images), None, lesson)

    def _loss(
        self, output: ExpertOutput, gates: Tensor | None = None, lesson: Lesson | None = None
    ) -> Callable[[Tensor], LossResult]:
        def loss(target: Tensor) -> LossResult:
            extra = () if lesson is None else (lesson, gates)
            result: LossResult = self.objective(output, target, *extra)
            return result

        return loss

    def measure_cost(self, warm_up: int, timed: int, precision: str) -> StepCost:
        """Seconds of a training step and of a validation pass on this device.

        Takes real steps, so call it on a module whose weights are thrown away.

        Args:
            warm_up: steps before the clock starts.
            timed: steps on the clock.
            precision: `32`, `bf16` or `16`.
        """
        settings, device = self._settings, next(self.model.parameters()).device
        batches = iter(self._data.sampler())
        groups = self.model.parameter_groups()
        learned = [p for group in groups.values() for p in group if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=0.0)
        dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision)
        self.model.train()
        seconds: list[float] = []
        shortened = 1.0
        for _ in range(warm_up + timed):
            chosen = next(batches, None)
            if chosen is None:
                batches = iter(self._data.sampler())
                chosen = next(batches)
            shortened = settings.batch_size / len(chosen)
            began = time.perf_counter()
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                batch = Batch(*(part.to(device) for part in self._data.train[chosen]))
                total = self._step(batch, torch.Generator().manual_seed(0)).total
            self.backward(total)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append((time.perf_counter() - began) * shortened)
        step_s = sorted(seconds[warm_up:])[timed // 2]
        num_val = 0 if self._data.val is None else len(self._data.val.dataset)  # type: ignore[arg-type]
        # A forward without gradients costs about a third of a training step.
        return StepCost(step_s, num_val / settings.batch_size * step_s / 3)

    def _run(self, images: Tensor) -> ExpertOutput:
        return self._forward(images)

    def _step_seed(self, batch_idx: int) -> int:
        # Distinct for each process: they see different images.
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
        """Keep the average where training runs: the module says `cpu` until it is moved."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the averaged weights in the model, also if no epoch was left to resume."""
        self.on_train_end(trainer, pl_module)


def _decay_groups(
    parameters: list[nn.Parameter], biases: set[int], lr: float, decay: float
) -> list[dict[str, Any]]:
    """Weights decay; biases and the gains of norms do not."""

    def decays(parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and id(parameter) not in biases

    learned = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in learned if decays(p)], "lr": lr, "weight_decay": decay},
        {"params": [p for p in learned if not decays(p)], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _weighted(results: Sequence[tuple[LossResult, Tensor | float]]) -> LossResult:
    """Loss of mixed images: of each of their labels its share (Zhang et al., mixup, ICLR 2018)."""
    (first, weight), (second, other) = results
    parts = {name: weight * first.parts[name] + other * second.parts[name] for name in first.parts}
    return LossResult(weight * first.total + other * second.total, parts)
