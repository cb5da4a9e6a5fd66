"""What Lightning's trainer adds to a step: a tiny network trains under it and in a bare loop.

python benchmarks/training/trainer.py [--steps 300] [--rounds 5]

The loop does the same to the same batches: seeds, loss, backward, clipping, optimiser, schedule and
sums of the loss's parts. It leaves both with equal weights. CPU milliseconds of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from rich.console import Console

from recame.config import Config
from recame.data.dataset import load_inspection_set
from recame.runs.folder import RunFolder
from recame.training.begin import quiet_libraries
from recame.training.loop.module import FinetuneModule
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.finetune import _step
from recame.training.planner import plan_model

SETTINGS = {
    "data.size": 16,
    "model.backbone": "test_resnet",
    "model.pretrained": False,
    "model.num_experts": 1,
    "augment.symmetry": "square",
    "evaluation.views": 1,
    "finetune.batch_size": 4,
    "finetune.epochs": 1,
    "run.accelerator": "cpu",
}


class Timed(FinetuneModule):
    """Notes when each step begins."""

    silent = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Note the time first."""
        self.__dict__.setdefault("begins", []).append(time.process_time())
        super().on_train_batch_start(batch, batch_idx)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Record, unless it is left out to see what it costs."""
        if not self.silent:
            super().log(*args, **kwargs)


def make(run: OngoingRun) -> Timed:
    """The module of a run, its network new and seeded."""
    return Timed(
        *_step(run, run.new_model().train()),
        run.config.finetune,
        deferred_reweighting=1.0,
        seed=0,
    )


def by_trainer(run: OngoingRun, *, silent: bool = False) -> Timed:
    """One epoch under the trainer, as `recame train` sets it up, without callbacks."""
    module = make(run)
    module.silent = silent
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=run.config.finetune.clip_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module)
    return module


def by_loop(run: OngoingRun, steps: int) -> Timed:
    """The same epoch in a loop."""
    module = make(run)
    trainer = SimpleNamespace(
        global_rank=0,
        world_size=1,
        current_epoch=0,
        global_step=0,
        precision_plugin=None,
        estimated_stepping_batches=steps,
    )
    module._trainer = trainer  # type: ignore[assignment]  # noqa: SLF001
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(module.train_dataloader()):
        module.on_train_batch_start(batch, number)
        seed = module._step_seed(number)  # noqa: SLF001
        result = module.step(batch, torch.Generator().manual_seed(seed))
        optimizer.zero_grad(set_to_none=True)
        module.step.backward(result.total)
        learned = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(learned, run.config.finetune.clip_norm)
        optimizer.step()
        schedule.step()
        trainer.global_step += 1
        for name, value in {**result.parts, "loss": result.total.detach()}.items():
            sums[name] = sums.get(name, 0) + value * len(batch.target)
    return module


@quiet_libraries()
def main() -> None:
    """Measure in turn; print medians of a step over all rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"loop": [], "trainer": [], "trainer, nothing recorded": []}
    with tempfile.TemporaryDirectory() as name:
        for kind in ("a", "b", "c", "d"):
            (Path(name) / "set" / kind).mkdir(parents=True)
            for number in range(40):
                pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(name) / "set" / kind / f"{number}.png")
        size = {"finetune.epoch_size": 4 * options.steps, "data.cache_dir": name}
        config = Config().updated({**SETTINGS, **size})
        data = load_inspection_set(Path(name) / "set", config.data, seed=0)
        device = torch.device("cpu")
        config = plan_model(config, data, device).config
        folder = RunFolder(Path(name))
        run = OngoingRun(folder, config, data, device, Console(quiet=True), 0.0)
        for _ in range(options.rounds):
            ends = {
                "loop": by_loop(run, options.steps),
                "trainer": by_trainer(run),
                "trainer, nothing recorded": by_trainer(run, silent=True),
            }
            weights = [list(module.model.state_dict().values()) for module in ends.values()]
            for mine, *others in zip(*weights, strict=True):
                assert all(torch.equal(mine, other) for other in others)
            for key, module in ends.items():
                steps = np.diff(module.__dict__["begins"])[10:]
                found[key].append(1000 * float(np.median(steps)))
    for key, values in found.items():
        print(f"{key:28} {statistics.median(values):6.2f} ms  {np.round(values, 2).tolist()}")


if __name__ == "__main__":
    main()
