"""Balanced accuracy on `test` of finished runs under 1, 4 and 8 views; prints CSV.

    python benchmarks/defaults/views.py RUN [RUN ...]

The runs are not changed: a copy of each is evaluated. Their images must bear the views.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import recame


def main() -> None:
    """Evaluate and print."""
    print("run,views,balanced_accuracy")
    for run in map(Path, sys.argv[1:]):
        for views in (1, 4, 8):
            with tempfile.TemporaryDirectory() as folder:
                copy = recame.RunFolder(Path(shutil.copytree(run, Path(folder) / run.name)))
                copy.save_config(copy.load_config().updated({"evaluation.views": views}))
                recame.evaluate(copy.path, report=False)
                found = json.loads((copy.path / "metrics.json").read_text(encoding="utf-8"))
                print(f"{run.name},{views},{found['test']['balanced_accuracy']['value']:.4f}")


if __name__ == "__main__":
    main()
