"""Fine-tuning steps with and without `recame.training.loop.allocation`, each in a fresh process.

python benchmarks/training/allocation.py [--size 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from recame.machine import environment
from recame.training.loop.allocation import freed_memory_kept

HERE = Path(__file__).parent
BATCH, WARM_UP, TIMED = 64, 3, 12


def step_rate(size: int, *, kept: bool) -> float:
    """Images/s of forward, backward and AdamW of EfficientNet-Lite0; the median step's."""
    import timm
    import torch

    model = timm.create_model("tf_efficientnet_lite0", num_classes=7, in_chans=1)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    images = torch.rand(BATCH, 1, size, size)
    target = torch.randint(7, (BATCH,))
    seconds = []
    with freed_memory_kept() if kept else nullcontext():
        for _ in range(WARM_UP + TIMED):
            began = time.perf_counter()
            torch.nn.functional.cross_entropy(model(images), target).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - began)
    return BATCH / statistics.median(seconds[WARM_UP:])


def main() -> None:
    """Measure in turn, write results/allocation.json, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=["kept", "default"])
    options = parser.parse_args()
    if options.child:
        print(step_rate(options.size, kept=options.child == "kept"))
        return
    rates: dict[str, list[float]] = {"kept": [], "default": []}
    for _ in range(options.rounds):
        for name, found in rates.items():
            command = [sys.executable, __file__, "--size", str(options.size), "--child", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(float(done.stdout.split()[-1]))
    ratios = [k / d for k, d in zip(rates["kept"], rates["default"], strict=True)]
    result = {
        "size": options.size,
        "batch": BATCH,
        "images_per_s": {name: statistics.median(found) for name, found in rates.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "environment": environment(),
    }
    path = HERE / "results" / f"allocation-{options.size}px.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['images_per_s']} images/s, ratio {result['ratio']:.2f} {ratios}")


if __name__ == "__main__":
    main()
