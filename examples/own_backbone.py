"""Your own backbone: register a small network in timm, and name it in the settings of a run.

    python examples/own_backbone.py --out FOLDER

The network needs the same interface as timm's networks: `forward_features`, `forward_head` and
`num_features`, and the arguments `in_chans` and `num_classes`.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

import recame


class StripeNet(nn.Module):
    """A network with long horizontal and vertical kernels, for the lines of printed boards.

    `stem` and `stages` are found by these names, so that experts can share the first stages.

    Args:
        in_chans: channels of an image.
        num_classes: of its own classifier; 0: no classifier.
        width: channels of the first stage; each further one has twice as many.
    """

    def __init__(self, in_chans: int = 3, num_classes: int = 1000, width: int = 16) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width]
        self.stem = nn.Conv2d(in_chans, width, 3, 2, 1)
        self.stages = nn.Sequential(*(_stage(before, after) for before, after in pairwise(widths)))
        self.num_features = widths[-1]
        self.fc = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, c, h, w)."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits, or to the classifier's input."""
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.forward_head(self.forward_features(x))


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, (1, 7), 1, (0, 3)),
        nn.Conv2d(after, after, (7, 1), 2, (3, 0)),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


@register_model
def stripe_net(pretrained: bool = False, **settings: Any) -> StripeNet:
    """Make the network for timm; there are no pretrained weights."""
    known = ("in_chans", "num_classes", "width")
    return StripeNet(**{name: settings[name] for name in known if name in settings})


def main(out: Path) -> recame.RunFolder:
    """Train on a small generated set."""
    spec = recame.SyntheticSpec(num_images=120, num_classes=3, imbalance=4, size=32, seed=1)
    data = recame.synth(spec, out / "data")
    backbone = {"class_path": "own_backbone.stripe_net", "init_args": {"width": 8}}
    settings = {
        "model.backbone": backbone,
        "model.pretrained": False,
        "data.size": 32,
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
