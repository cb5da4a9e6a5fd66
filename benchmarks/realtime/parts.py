"""An OpenVINO bundle's large batches: whole, or in parts that fit each core's cache.

    python benchmarks/realtime/parts.py BUNDLE ... --out FILE.json

Sizes of parts take turns, round by round, in one process; medians of images/s over the rounds. Run
nothing beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from recame.files import write_json
from recame.machine import describe_machine
from recame.runtime import load, open_bundle
from recame.runtime.timing import time_calls, warm_up

BATCHES = (32, 128, 256)
#: Images a part; the first is the whole batch.
PARTS = (sys.maxsize, 8, 16, 32, 64)


def measure(bundle: Path, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians of images/s by batch size and part, and what recame itself takes for a part."""
    predictor = load(bundle, threads=threads)
    session: Any = predictor._session  # noqa: SLF001 - what is compared has no public name
    own = session._at_once  # noqa: SLF001
    shape = (predictor.spec.height, predictor.spec.width, predictor.spec.channels)
    rng = np.random.default_rng(0)
    pixels = {size: rng.integers(0, 256, (size, *shape), np.uint8) for size in BATCHES}
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for size, images in pixels.items():
            for part in PARTS:
                if part != sys.maxsize and part >= size:
                    continue
                session._at_once = part  # noqa: SLF001

                def call(images: Any = images) -> object:
                    return predictor.probabilities(images)

                warm_up(call)
                rate = 1e9 * size / statistics.median(time_calls(call, seconds))
                name = "whole" if part == sys.maxsize else f"parts of {part}"
                rates.setdefault(f"batch {size}, {name}", []).append(rate)
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    return {"precision": open_bundle(bundle).precision, "own_part": own, "images_per_s": medians}


def main() -> None:
    """Measure each bundle and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each turn")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if len({bundle.name for bundle in options.bundles}) < len(options.bundles):
        parser.error("two bundles have the same name, by which the file tells them apart")
    found = {
        bundle.name: measure(bundle, options.threads, options.rounds, options.seconds)
        for bundle in options.bundles
    }
    write_json(options.out, {"machine": describe_machine(), "bundles": found})
    for name, measured in found.items():
        print(f"{name}: recame takes parts of {measured['own_part']}")
        for what, rate in measured["images_per_s"].items():
            print(f"  {what}: {rate:,} images/s")


if __name__ == "__main__":
    main()
