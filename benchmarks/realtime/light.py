"""Run inside an environment without torch: latency, and a folder of files from end to end.

    python light.py '{"bundle": ..., "folder": ..., "threads": 2, "seconds": 2, "rounds": 5}'

The last line printed is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from recame.machine import peak_memory_mib
from recame.runtime import load, predict_files
from recame.runtime.latency import measure_latency


def files_end_to_end(asked: dict[str, Any]) -> dict[str, Any]:
    """Images/s from files to the finished table, all choices by measuring included."""
    rates = []
    images = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked["rounds"]):
            predictor = load(asked["bundle"], threads=asked["threads"])
            out = Path(folder) / f"{number}.csv"
            summary = predict_files(predictor, [asked["folder"]], out, resume=False)
            images = summary.num_images
            rates.append(images / summary.seconds)
    return {
        "images": images,
        "images_per_s": statistics.median(rates),
        "rounds": rates,
        "runtime": predictor.describe(),
    }


def main() -> None:
    """Measure what was asked for."""
    asked = json.loads(sys.argv[1])
    found: dict[str, Any] = {
        "torch_installed": importlib.util.find_spec("torch") is not None,
        "files": files_end_to_end(asked),
        "peak_mib": peak_memory_mib(),
    }
    report = measure_latency(
        asked["bundle"],
        batches=(1, 8, 32),
        seconds=asked["seconds"],
        threads=asked["threads"],
        images=asked["folder"],
    )
    found["latency"] = report.to_dict()
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
