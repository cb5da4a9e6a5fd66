"""Your own loss: cross-entropy with label smoothing.

    python examples/own_loss.py --out FOLDER

The run's settings name the loss, so `recame train --resume` and other commands find it, if this
file's folder is on PYTHONPATH or the file is in an installed package.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import recame
from recame.losses import TrainingLoss


class Smoothed(TrainingLoss):
    """Cross-entropy with label smoothing, on logits adjusted by the sampler's class prior.

    Label smoothing: Szegedy et al., CVPR 2016. Logit adjustment: Ren et al., NeurIPS 2020.

    Args:
        counts: (C,) training images.
        num_experts: E.
        prior: (C,) share of each class among the images that are shown.
        smoothing: share of the label that is spread over all classes.
    """

    log_prior: Tensor

    def __init__(
        self, counts: Sequence[int], num_experts: int, prior: Tensor, smoothing: float = 0.1
    ) -> None:
        super().__init__(len(counts))
        self.smoothing = smoothing
        self.register_buffer("log_prior", prior.clamp_min(1e-9).log())

    def forward(self, output: recame.ExpertOutput, target: Tensor) -> recame.LossResult:
        """The loss of logits (B, E, C) and class indices (B,)."""
        experts = output.logits.shape[1]
        logits = (output.logits.float() + self.log_prior).flatten(0, 1)
        labels = target.repeat_interleave(experts)
        total = cross_entropy(logits, labels, label_smoothing=self.smoothing)
        return recame.LossResult(total, {"smoothed": total.detach()})


def main(out: Path) -> recame.RunFolder:
    """Train on a small generated set."""
    spec = recame.SyntheticSpec(num_images=120, num_classes=3, imbalance=4, size=32, seed=1)
    data = recame.synth(spec, out / "data")
    settings = {
        "objective.loss": {"class_path": "own_loss.Smoothed", "init_args": {"smoothing": 0.05}},
        "data.size": 32,
        "model.backbone": "resnet20_cifar",
        "model.pretrained": False,
        "probe.steps": 20,
        "finetune.epochs": 1,
        "run.accelerator": "cpu",
    }
    return recame.train(data, recame.Config().updated(settings), out=out / "run")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    torch.set_num_threads(1)
    print(f"Trained: {main(parser.parse_args().out).path}")
