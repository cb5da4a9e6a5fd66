"""Is this version as fast as another one? Both in turn, pair by pair, by the public verbs alone.

`python benchmarks/structure/speed.py BEFORE --pairs 20` takes the other version from the checkout
BEFORE and prints, as Markdown, median milliseconds of both and the median of the pairs' ratios
(this version over the other; below 1 is faster): a training step, predictions of a run folder and
of a bundle, `import recame`, `recame --help`. Nothing else should run meanwhile. It needs no data:
images and the run that predicts are made first, by this version.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
BATCH, EPOCHS, BATCHES = 64, 2, 4
PASSES = 6

SETTINGS = {
    "data.size": 64,
    "data.val_fraction": 0.02,
    "data.test_fraction": 0.02,
    "model.num_experts": 1,
    "probe.enabled": False,
    "finetune.batch_size": BATCH,
    "finetune.epochs": EPOCHS,
    "finetune.epoch_size": BATCH * BATCHES,
    "evaluation.views": 1,
    "evaluation.bootstrap": 50,
}


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(folder: Path) -> None:
    """What a child process measures with the version that it imports; prints seconds as JSON."""
    began = time.perf_counter()
    import recame

    took = {"import recame": time.perf_counter() - began}
    if "--predict" not in sys.argv:
        config = recame.Config().updated(SETTINGS)
        with tempfile.TemporaryDirectory() as out:
            path = Path(out) / "run"
            seconds = timed(lambda: recame.train(folder / "images", config, out=path))
        took["training, a step with its share of a run"] = seconds / (EPOCHS * BATCHES)
    images = sorted((folder / "images").rglob("*.png"))[::4]
    for name in ("run", "bundle"):
        model = recame.load(folder / name)
        passes = [timed(lambda m=model: m.predict(images)) for _ in range(PASSES)][1:]
        took[f"predict, {name}, an image"] = statistics.median(passes) / len(images)
    command = [sys.executable, "-c", "from recame.cli import main; main()", "--help"]
    took["recame --help"] = timed(lambda: subprocess.run(command, capture_output=True, check=True))
    print(json.dumps(took))


def prepare(folder: Path) -> None:
    """Images of two classes, a run and its bundle."""
    import recame
    from recame.export.export import export

    rng = np.random.default_rng(0)
    for name, count in (("ok", 700), ("spot", 120)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.normal(120, 20, (64, 64))
            if name == "spot":
                pixels[20:34, 20:34] += 80
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / "images" / name / f"{number:04d}.png")
    config = recame.Config().updated(SETTINGS)
    recame.train(folder / "images", config, out=folder / "run")
    export(folder / "run", out=folder / "bundle")


def main() -> None:
    """Measure pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="a checkout of the other version")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--predict", action="store_true", help="leave training out")
    asked = parser.parse_args()
    versions = {"before": asked.before.resolve(), "now": ROOT}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # GOMP_SPINCOUNT as `recame` itself sets it.
        os.environ |= {"RECAME_CACHE": str(folder / "cache"), "GOMP_SPINCOUNT": "5000"}
        prepare(folder)
        for pair in range(-1, asked.pairs):  # the first one warms caches up
            order = list(versions) if pair % 2 else list(versions)[::-1]
            for name in order:
                done = subprocess.run(
                    [
                        sys.executable,
                        __file__,
                        str(folder),
                        *(["--predict"] if asked.predict else []),
                    ],
                    env=os.environ | {"PYTHONPATH": str(versions[name] / "src"), "CHILD": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    sys.exit(f"{name}: {done.stderr}")
                if pair >= 0:
                    rows[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"pair {pair + 1} of {asked.pairs}", file=sys.stderr)
    print("| what | before, ms | now, ms | now / before, median of pairs (quartiles) |")
    print("| --- | ---: | ---: | ---: |")
    for what in rows["now"][0]:
        before, now = ([1000 * row[what] for row in rows[name]] for name in versions)
        ratios = sorted(b / a for a, b in zip(before, now, strict=True))
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        medians = " | ".join(f"{statistics.median(values):.2f}" for values in (before, now))
        print(f"| {what} | {medians} | {middle:.3f} ({low:.3f} to {high:.3f}) |")


if __name__ == "__main__":
    if os.environ.get("CHILD"):
        measure(Path(sys.argv[1]))
    else:
        main()
