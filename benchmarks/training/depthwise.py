"""Training steps with torch's and with our weight gradient of depthwise convolutions, on a CPU.

    python benchmarks/training/depthwise.py [--rounds 5]

Forward, backward and AdamW, batches of 64, channels last, both ways in turn on the same weights.
Writes results/depthwise.md. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn import functional

from recame.config import Config
from recame.contracts import PreprocessSpec
from recame.machine import environment
from recame.models import Architecture, MultiExpertClassifier
from recame.models.depthwise import DepthwiseConv2d
from recame.training.loop.allocation import freed_memory_kept

HERE = Path(__file__).parent
BATCH, NUM_CLASSES = 64, 10
#: Name -> architecture; the first is what `recame train` builds.
NETWORKS = {
    "EfficientNet-Lite0": Architecture("tf_efficientnet_lite0", num_experts=1, pooled_stages=6),
    "EfficientNet-Lite0, two experts": Architecture(
        "tf_efficientnet_lite0", num_experts=2, shared_stages=5, pooled_stages=6
    ),
    "EfficientNet-Lite0, five stages": Architecture(
        "tf_efficientnet_lite0", num_experts=1, pooled_stages=4, stages=5
    ),
    "MobileNetV3-Large": Architecture("mobilenetv3_large_100", num_experts=1),
    "ConvNeXt-Atto": Architecture("convnext_atto", num_experts=1),
}


class Steps:
    """A network that is trained one step at a time.

    Args:
        architecture: to build, with random weights.
        size: side of the images in pixels.
    """

    def __init__(self, architecture: Architecture, size: int) -> None:
        torch.manual_seed(0)
        spec = PreprocessSpec(size, size, 1, 8, 255.0, (0.5,), (0.2,))
        model = MultiExpertClassifier(architecture, NUM_CLASSES, spec)
        self.model = model.to(memory_format=torch.channels_last).train()
        settings = Config().finetune
        self.optimizer = torch.optim.AdamW(
            model.parameters(), 1e-4, weight_decay=settings.weight_decay, fused=True
        )
        images = torch.rand(BATCH, 1, size, size)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.target = torch.randint(NUM_CLASSES, (BATCH,))

    def seconds(self, *, own: bool) -> float:
        """What one step takes, with our gradient or torch's."""
        own_where_slow = DepthwiseConv2d._has_own_gradient  # noqa: SLF001 - switched off to compare
        with patch.object(
            DepthwiseConv2d, "_has_own_gradient", own_where_slow if own else lambda *_: False
        ):
            began = time.perf_counter()
            logits = self.model(self.images).logits
            functional.cross_entropy(logits.mean(1), self.target).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            return time.perf_counter() - began


def main() -> None:
    """Measure, write the table, print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    options = parser.parse_args()
    machine = environment()
    how = f"{machine['processor']}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    lines = [
        f"{how}. Images/s, and the median ratio of {options.rounds} pairs of steps.\n",
        "| network | px | torch's gradient | ours where it is slow | ratio |",
        "| --- | --: | --: | --: | --: |",
    ]
    with freed_memory_kept():
        for name, architecture in NETWORKS.items():
            for size in options.sizes:
                steps = Steps(architecture, size)
                for own in (False, True):
                    steps.seconds(own=own)
                pairs = [
                    (steps.seconds(own=False), steps.seconds(own=True))
                    for _ in range(options.rounds)
                ]
                before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
                ratio = statistics.median(a / b for a, b in pairs)
                cells = f"{BATCH / before:.0f} | {BATCH / after:.0f} | {ratio:.2f}"
                lines.append(f"| {name} | {size} | {cells} |")
                print(lines[-1], flush=True)
    (HERE / "results" / "depthwise.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
