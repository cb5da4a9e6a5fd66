"""Training alone and beside other busy programs, with and without OpenMP's long wait.

    python benchmarks/training/busy.py [--size 64] [--rounds 3]

The busy programs are one endless loop for each core. Every measurement is a fresh process, because
libgomp reads its variables once; the variants take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from run import bare_loop

from recame.cli import share_the_cores
from recame.machine import environment

#: Steps of 64 images that are timed.
STEPS = 6
VARIANTS = ("recame", "openmp")
PLACES = {"alone": 0, "beside a busy loop for each core": os.cpu_count() or 1}


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Keep that many cores busy with programs that do nothing else."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measured(variant: str, size: int) -> float:
    """Images a second of a plain training loop in a process of its own."""
    words = [sys.executable, __file__, "--size", str(size), "--child", variant]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure in turn, print the table and write results/busy.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=VARIANTS)
    options = parser.parse_args()
    if options.child:
        print(bare_loop(options.size, STEPS, torch.device("cpu"), autocast=False))
        return
    os.environ.pop("GOMP_SPINCOUNT", None)
    as_it_is = dict(os.environ)
    rates: dict[str, dict[str, list[float]]] = {p: {v: [] for v in VARIANTS} for p in PLACES}
    for _ in range(options.rounds):
        for place, loops in PLACES.items():
            with busy_loops(loops):
                for variant, found in rates[place].items():
                    os.environ.clear()
                    os.environ.update(as_it_is)
                    if variant == "recame":
                        share_the_cores()
                    found.append(measured(variant, options.size))
    print("| where | as `recame` starts | OpenMP's own wait | ratio (its range) |")
    print("| --- | --- | --- | --- |")
    for place, found in rates.items():
        ratios = [ours / own for ours, own in zip(found["recame"], found["openmp"], strict=True)]
        medians = " | ".join(f"{statistics.median(found[v]):.0f}" for v in VARIANTS)
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {place} | {medians} | {ratio} |")
    result = {"options": vars(options), "images_per_s": rates, "environment": environment()}
    path = Path(__file__).parent / "results" / "busy.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
