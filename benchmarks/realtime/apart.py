"""Each variant in a process of its own, as its user would run it.

In one process a variant helps or hinders the next: eager torch finds an allocator that others have
warmed up, or cores on which a runtime's threads still spin. Here nothing is left behind.

    python apart.py '{"bundle": ..., "run": ..., "size": 64, "channels_last": false, ...}'

prints the images/s of one variant.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

HERE = Path(__file__).parent
BATCH = 32


def measure_apart(
    runs: Path, deployed: str, threads: int, rounds: int, seconds: float, console: Console
) -> dict[str, Any]:
    """All variants in turn, round by round; medians of images/s.

    Args:
        runs: with `plain-<size>` and `teacher-0`, `student-0` and their bundles.
        deployed: name of the student's bundle.
        threads: of torch and of the runtimes.
        rounds: processes of each variant.
        seconds: that each is timed.
        console: for progress.
    """
    asked: dict[str, dict[str, Any]] = {}
    for size in (64, 128):
        for layout, channels_last in (("nchw", False), ("nhwc", True)):
            asked[f"{size} px, eager {layout}"] = {"size": size, "channels_last": channels_last}
        for bundle in sorted(runs.glob(f"plain-{size}-*")):
            name = bundle.name.removeprefix(f"plain-{size}-")
            asked[f"{size} px, {name}"] = {"size": size, "bundle": str(bundle)}
    for layout, channels_last in (("nchw", False), ("nhwc", True)):
        teacher = {"run": str(runs / "teacher-0"), "channels_last": channels_last}
        asked[f"two experts, eager {layout}"] = {"size": 64, **teacher}
    asked["student"] = {"size": 64, "bundle": str(runs / f"student-0-{deployed}"), "batch": 128}
    rates: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(rounds):
        console.print(f"round {number + 1} of {rounds}", highlight=False)
        for name, words in asked.items():
            rates[name].append(_in_a_process({"threads": threads, "seconds": seconds, **words}))
    return {"images_per_s": {name: statistics.median(values) for name, values in rates.items()}}


def _in_a_process(words: dict[str, Any]) -> float:
    done = subprocess.run(
        [sys.executable, str(HERE / "apart.py"), json.dumps(words)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Time what was asked for."""
    words = json.loads(sys.argv[1])
    batch = words.get("batch", BATCH)
    call = _bundle(words, batch) if "bundle" in words else _eager(words, batch)
    call()
    durations: list[float] = []
    end = time.perf_counter() + words["seconds"]
    while len(durations) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        durations.append(time.perf_counter() - began)
    print(batch / statistics.median(durations))


def _bundle(words: dict[str, Any], batch: int) -> Callable[[], object]:
    from recame.runtime import load

    predictor = load(words["bundle"], threads=words["threads"], batch_size=batch)
    pixels = np.random.default_rng(0).integers(
        0, 256, (batch, words["size"], words["size"], predictor.spec.channels), np.uint8
    )
    return lambda: predictor.probabilities(pixels)


def _eager(words: dict[str, Any], batch: int) -> Callable[[], object]:
    """The plain timm network of the bundles, or a finished run's."""
    import torch

    torch.set_num_threads(words["threads"])
    layout = torch.channels_last if words["channels_last"] else torch.contiguous_format
    if "run" in words:
        from recame.models import load_checkpoint

        model: torch.nn.Module = load_checkpoint(Path(words["run"])).model
    else:
        import timm

        model = timm.create_model("tf_efficientnet_lite0", num_classes=7, in_chans=1)
    model = model.eval().to(memory_format=layout)
    images = torch.rand(batch, 1, words["size"], words["size"]).contiguous(memory_format=layout)

    def call() -> object:
        with torch.inference_mode():
            return model(images)

    return call


if __name__ == "__main__":
    main()
