"""Speed of ICDefectSynth: images a second drawn, and written as PNG files, on so many cores.

Run `python benchmarks/synthetic/run.py`; the result is written to results/cpu.json and cpu.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recame.datasets.generated import SyntheticSpec, plan, render, write

RESULTS = Path(__file__).parent / "results"
#: Name -> settings of a set, and how many images.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "64 x 64, grey, 8 bit": ({}, 8000),
    "64 x 64, grey, 16 bit": ({"bit_depth": 16}, 8000),
    "64 x 64, colour, 8 bit": ({"colour": True}, 8000),
    "128 x 128, grey, 8 bit": ({"size": 128}, 2000),
}
#: Rows of the plan of a large set.
LARGE = 100_000


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    """Median wall time of a call, the first one left out."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(rounds: int, shrink: int) -> dict[str, Any]:
    """Images a second of each case, and seconds of a large plan."""
    rows = []
    for name, (settings, count) in CASES.items():
        spec = SyntheticSpec(num_images=count // shrink, **settings)
        table = plan(spec)
        seconds = median_seconds(lambda table=table, spec=spec: render(table, spec), rounds)
        digest = hashlib.sha256(render(table, spec).tobytes()).hexdigest()[:16]
        rows.append({"what": name, "images_per_s": len(table) / seconds, "sha256": digest})
    spec = SyntheticSpec(num_images=CASES["64 x 64, grey, 8 bit"][1] // shrink)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write(spec, Path(folder) / "set")
        seconds = time.perf_counter() - start
    rows.append({"what": "64 x 64, with PNG files", "images_per_s": spec.num_images / seconds})
    large = SyntheticSpec(num_images=LARGE // shrink)
    return {
        "rows": rows,
        "rounds": rounds,
        "plan": {"images": large.num_images, "s": median_seconds(lambda: plan(large), 1)},
        "machine": describe_machine(),
    }


def describe_machine() -> dict[str, Any]:
    """What the times depend on."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "numpy": np.__version__,
        "pandas": pd.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The table of a result."""
    machine, large = result["machine"], result["plan"]
    rounds = f"median of {result['rounds']} rounds"
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, numpy {machine['numpy']}; {rounds}",
        "",
        "| what | images/s | sha256 of the pixels |",
        "| --- | --: | --- |",
        *(
            f"| {row['what']} | {row['images_per_s']:.0f} | {row.get('sha256', '')} |"
            for row in result["rows"]
        ),
        "",
        f"Plan of {large['images']:,} images: {large['s']:.2f} s",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few images: does it run?")
    options = parser.parse_args()
    result = measure(options.rounds, 20 if options.quick else 1)
    text = as_markdown(result)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
