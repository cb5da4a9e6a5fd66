"""Time of the objective: as a share of a ResNet-50 training step, and against plain pair loops.

Run `python benchmarks/objective/run.py`; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
from loops import NUM_HARD, loop_objective
from torch import Tensor
from torch.nn import functional

from recame.contracts import ExpertOutput
from recame.losses import Objective

NUM_CLASSES, NUM_EXPERTS, NUM_FEATURES = 31, 2, 2048
RESULTS = Path(__file__).parent / "results"


def make_calls(
    size: int, device: torch.device
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Forward and backward of the objective and of the loops on the same batch of `size`."""
    generator = torch.Generator().manual_seed(size)
    logits = 4 * torch.randn(size, NUM_EXPERTS, NUM_CLASSES, generator=generator)
    features = torch.rand(size, NUM_EXPERTS, NUM_FEATURES, generator=generator)
    target = torch.randint(0, NUM_CLASSES, (size,), generator=generator).to(device)
    counts = torch.logspace(4, 1, NUM_CLASSES).round()
    logits, features = logits.to(device).requires_grad_(), features.to(device).requires_grad_()
    objective = Objective(counts, num_experts=NUM_EXPERTS, num_hard=NUM_HARD).to(device)
    output, log_counts = ExpertOutput(logits, features), counts.log().to(device)

    def differentiate(total: Tensor) -> Tensor:
        torch.autograd.grad(total, (logits, features))
        return total

    return (
        lambda: differentiate(objective(output, target).total),
        lambda: differentiate(loop_objective(logits, features, target, log_counts)),
    )


def make_step(size: int, pixels: int, device: torch.device) -> Callable[[], Tensor]:
    """One training step of a ResNet-50 in float32: forward, cross-entropy, backward, SGD."""
    torch.manual_seed(0)
    model = timm.create_model("resnet50", num_classes=NUM_CLASSES).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=2e-4)
    images = torch.randn(size, 3, pixels, pixels, device=device)
    target = torch.randint(0, NUM_CLASSES, (size,), device=device)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(images), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Wall time of one call, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved rounds: every round times each contestant, so drift hits all alike."""
    device = torch.device(options.device)
    sizes, loop_sizes, step_size, pixels = (16, 64, 128), (16, 64), 64, 224
    rounds, repeats = options.rounds, 20
    if options.quick:
        sizes, loop_sizes, step_size, pixels, rounds, repeats = (4, 8), (4,), 4, 64, 2, 2
    calls = {size: make_calls(size, device) for size in sizes}
    step = make_step(step_size, pixels, device)
    for size, (fast, slow) in calls.items():
        for _ in range(3):
            fast()
        if size in loop_sizes:
            torch.testing.assert_close(fast(), slow(), rtol=1e-4, atol=0.0)
    step()
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        times.setdefault("step", []).append(seconds(step, device))
        for size, (fast, slow) in calls.items():
            # The first call after a network's step finds cold caches; a training step does too.
            found = [seconds(fast, device) for _ in range(repeats)]
            times.setdefault(f"objective_{size}", []).append(statistics.median(found))
            times.setdefault(f"objective_{size}_first", []).append(found[0])
            if size in loop_sizes:
                times.setdefault(f"loops_{size}", []).append(seconds(slow, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        {
            "batch_size": size,
            "objective_ms": 1e3 * medians[f"objective_{size}"],
            "objective_first_call_ms": 1e3 * medians[f"objective_{size}_first"],
            "share_of_step": medians[f"objective_{size}"] / medians["step"],
            "loops_ms": 1e3 * medians[f"loops_{size}"] if size in loop_sizes else None,
            "times_faster_than_loops": (
                medians[f"loops_{size}"] / medians[f"objective_{size}"]
                if size in loop_sizes
                else None
            ),
        }
        for size in sizes
    ]
    return {
        "quick": options.quick,
        "shape": {"C": NUM_CLASSES, "K": NUM_EXPERTS, "D": NUM_FEATURES},
        "step": {
            "model": "resnet50",
            "batch_size": step_size,
            "pixels": pixels,
            "ms": 1e3 * medians["step"],
        },
        "rows": rows,
        "rounds": rounds,
        "machine": describe_machine(device),
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on."""
    cpu_info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpu_info.read_text().splitlines() if cpu_info.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    step, machine = result["step"], result["machine"]
    print(
        f"{machine['device']} ({machine['cpu']}), {machine['threads']} threads, "
        f"torch {machine['torch']}; {step['model']} step at B = {step['batch_size']}, "
        f"{step['pixels']} px: {step['ms']:.0f} ms\n"
    )
    print("|   B | objective | first call | share of the step |     loops | times faster |")
    print("| --: | --------: | ---------: | ----------------: | --------: | -----------: |")
    for row in result["rows"]:
        loops = "" if row["loops_ms"] is None else f"{row['loops_ms']:.0f} ms"
        faster = "" if row["loops_ms"] is None else f"{row['times_faster_than_loops']:.0f}"
        print(
            f"| {row['batch_size']:>3} | {row['objective_ms']:>6.2f} ms "
            f"| {row['objective_first_call_ms']:>7.2f} ms | {row['share_of_step']:>17.3%} "
            f"| {loops:>9} | {faster:>12} |"
        )


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="result file; default: results/<device>.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny settings: does it run?")
    options = parser.parse_args()
    result = measure(options)
    show(result)
    name = f"{options.device}{'_quick' if options.quick else ''}.json"
    path = options.out or RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
