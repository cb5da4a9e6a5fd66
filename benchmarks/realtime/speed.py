"""Ratios side by side: eager torch and bundles take turns, round by round, in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from models import Eager, bundle_path, export_missing, exported, train_once, views_of
from recame.config import load_config
from recame.contracts import PreprocessSpec
from recame.runs.folder import RunFolder
from recame.runtime import load
from recame.runtime.timing import Timing, time_calls

HERE = Path(__file__).parent
#: Sides of the images that one backbone is timed at, in eager torch and as a bundle.
SIZES = (64, 128)
#: One network with a plain head and no test-time views, trained just enough to be exported.
PLAIN: dict[str, object] = {
    "model.num_experts": 1,
    "model.attention": "none",
    "model.pooled_stages": 1,
    "probe.max_per_class": 40,
    "probe.views": 1,
    "probe.steps": 20,
    "finetune.enabled": False,
    "evaluation.views": 1,
}
_WARM_UP_S = 0.05


def alternate(
    calls: dict[str, Callable[[], object]], rounds: int, seconds: float, console: Console
) -> dict[str, Timing]:
    """Time calls in turn.

    Args:
        calls: name -> what is timed.
        rounds: how often each has its turn.
        seconds: of a turn.
        console: for progress.

    Returns:
        Name -> timing over all rounds; `p50_ms` is what ratios are made of.
    """
    durations: dict[str, list[int]] = {name: [] for name in calls}
    for number in range(rounds):
        console.print(f"round {number + 1} of {rounds}", highlight=False)
        for name, call in calls.items():
            # Threads of the one before may still wait for work.
            time.sleep(0.02)
            time_calls(call, _WARM_UP_S, least=1)
            durations[name] += time_calls(call, seconds, least=1)
    return {name: Timing.of(nanoseconds) for name, nanoseconds in durations.items()}


def noise(spec: PreprocessSpec, count: int) -> np.ndarray:
    """(count, H, W, C) random stored pixels."""
    shape = (count, spec.height, spec.width, spec.channels)
    return np.random.default_rng(0).integers(0, 2**spec.bit_depth, shape, spec.dtype)


def student_against_teacher(
    runs: Path, seed: int, threads: int, rounds: int, seconds: float, console: Console
) -> dict[str, Any]:
    """Throughput of the student's bundles and of two separate experts in eager torch.

    The teacher is timed with as many test-time views as the bundles have, and with those by which
    it is judged. Each has its own best batch size.
    """
    teacher, student = runs / f"teacher-{seed}", runs / f"student-{seed}"
    judged = int(RunFolder.open(teacher).load_config().evaluation.views)
    names = exported(student)
    own = views_of(bundle_path(student, names[0]))
    calls: dict[str, Callable[[], object]] = {}
    images: dict[str, int] = {}
    for views in sorted({own, judged}):
        for layout, channels_last in (("nchw", False), ("nhwc", True)):
            eager = Eager(teacher, views=views, channels_last=channels_last)
            for batch in (8, 32, 128) if views == 1 else (32,):
                name = f"teacher eager, {views} views, {layout}, batch {batch}"
                calls[name] = partial(eager, noise(eager.spec, batch))
                images[name] = batch
    for bundle in names:
        path = bundle_path(student, bundle)
        predictor = load(path, threads=threads, batch_size=128)
        for batch in (8, 32, 128):
            name = f"student {bundle}, {own} views, batch {batch}"
            calls[name] = partial(predictor.probabilities, noise(predictor.spec, batch))
            images[name] = batch
        # As a folder is scored: batch size and batches side by side chosen by measuring.
        streaming = load(path, threads=threads)
        arrays = list(noise(predictor.spec, 256))
        name = f"student {bundle}, {own} views, stream"
        calls[name] = partial(_drain, streaming, arrays)
        images[name] = len(arrays)
    timings = alternate(calls, rounds, seconds, console)
    rates = {name: images[name] / t.p50_ms * 1e3 for name, t in timings.items()}

    def best(start: str) -> float:
        return max(rate for name, rate in rates.items() if name.startswith(start))

    return {
        "seed": seed,
        "images_per_s": rates,
        "teacher_views": judged,
        "student_views": own,
        "teacher_equal_views": best(f"teacher eager, {own} views"),
        "teacher_as_judged": best(f"teacher eager, {judged} views"),
        "student": {name: best(f"student {name},") for name in names},
    }


def _drain(predictor: Any, arrays: list[np.ndarray]) -> None:
    for _ in predictor.stream(arrays, num_images=len(arrays)):
        pass


def same_backbone(
    manifest: Path,
    runs: Path,
    threads: int,
    rounds: int,
    seconds: float,
    console: Console,
    sizes: tuple[int, ...] = SIZES,
) -> dict[str, Any]:
    """One network, batch 32 and batch 1: eager torch fp32 and each runtime.

    Eager torch is the faster of its two memory formats.
    """
    found: dict[str, Any] = {}
    for size in sizes:
        run = runs / f"plain-{size}"
        config = load_config(HERE / "teacher.yaml").updated({**PLAIN, "data.size": size})
        train_once(manifest, config, run, console)
        export_missing(run, console, only_timed=True)
        calls: dict[str, Callable[[], object]] = {}
        for layout, channels_last in (("nchw", False), ("nhwc", True)):
            eager = Eager(run, views=1, channels_last=channels_last)
            for batch in (32, 1):
                calls[f"eager-{layout}, batch {batch}"] = partial(eager, noise(eager.spec, batch))
        names = exported(run)
        for bundle in names:
            predictor = load(bundle_path(run, bundle), threads=threads, batch_size=32)
            for batch in (32, 1):
                pixels = noise(predictor.spec, batch)
                calls[f"{bundle}, batch {batch}"] = partial(predictor.probabilities, pixels)
        timings = alternate(calls, rounds, seconds, console)
        eager_ms = min(timings[f"eager-{layout}, batch 32"].p50_ms for layout in ("nchw", "nhwc"))
        found[str(size)] = {
            "ms": {name: timing.p50_ms for name, timing in timings.items()},
            "eager_images_per_s": 32e3 / eager_ms,
            "times_eager": {name: eager_ms / timings[f"{name}, batch 32"].p50_ms for name in names},
        }
    return found


def without_torch(
    python: Path, bundle: Path, folder: Path, threads: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """End to end in an environment that has no torch."""
    asked = {
        "bundle": str(bundle),
        "folder": str(folder),
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
    }
    done = subprocess.run(
        [str(python), str(HERE / "light.py"), json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    if done.returncode:
        sys.exit(f"{python} light.py failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if found["torch_installed"]:
        sys.exit(f"{python} has torch: make the environment as README.md says.")
    return found


def gather_files(manifest: Path, folder: Path, count: int, distinct: int = 2000) -> Path:
    """A folder of PNG files, 1,000 in each subfolder: hard links to (or copies of) real crops."""
    import pandas as pd

    marker = folder / ".complete"
    if marker.exists() and marker.read_text() == str(count):
        return folder
    table = pd.read_csv(manifest)
    names = table[table["split"] == "test"]["image"].tolist()
    names += table[table["split"] != "test"]["image"].tolist()
    crops = [(manifest.parent / name).read_bytes() for name in names[:distinct]]
    for first in range(0, count, 1000):
        part = folder / f"{first // 1000:03d}"
        part.mkdir(parents=True, exist_ok=True)
        for number in range(first, min(first + 1000, count)):
            target = part / f"{number:06d}.png"
            source = folder / "000" / f"{number % len(crops):06d}.png"
            # A file system allows some ten thousand links to one file.
            if number >= len(crops) and source.exists():
                target.unlink(missing_ok=True)
                os.link(source, target)
            else:
                target.write_bytes(crops[number % len(crops)])
    marker.write_text(str(count))
    return folder


def set_threads(threads: int) -> None:
    """For torch in this process; the runtimes are told by `load`."""
    torch.set_num_threads(threads)
