"""Is this version as fast as another one? Both in turn, pair by pair, by the public verbs alone.

`python benchmarks/structure/speed.py BEFORE --pairs 20` takes the other version from the checkout
BEFORE and prints, as Markdown, median milliseconds of both and the median of the pairs' ratios
(this version over the other; below 1 is faster): a training step, predictions of a run folder and
of a bundle, `import recame`, `recame --help`. Nothing else should run meanwhile. It needs no data:
images and the run that predicts are made first, by the other version.
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
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
BATCH, EPOCHS, BATCHES = 64, 2, 4
PASSES = 8
PREDICTING = ("run", "bundle")
ANSWER = "= "

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
    command = [sys.executable, "-c", "from recame.cli import main; main()", "--help"]
    took["recame --help"] = timed(lambda: subprocess.run(command, capture_output=True, check=True))
    print(ANSWER + json.dumps(took), flush=True)
    images = sorted((folder / "images").rglob("*.png"))[::4]
    models = {name: recame.load(folder / name) for name in PREDICTING}
    for name in map(str.strip, sys.stdin):
        seconds = timed(lambda m=models[name]: m.predict(images))
        print(ANSWER + json.dumps(seconds / len(images)), flush=True)


def take_turns(
    versions: dict[str, Path], folder: Path, words: list[str]
) -> dict[str, dict[str, float]]:
    """What each version's process measures by itself, and predictions: one pass each, in turn.

    A machine's pace drifts by more between two processes' lives than two versions differ.
    """
    children, took = {}, {}
    for name, path in versions.items():
        children[name] = subprocess.Popen(
            [sys.executable, __file__, str(folder), *words],
            env=os.environ | {"PYTHONPATH": str(path / "src"), "CHILD": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        took[name] = answer(children[name])
    for what in PREDICTING:
        passes: dict[str, list[float]] = {name: [] for name in children}
        for turn in range(PASSES + 1):
            for name in list(children)[:: -1 if turn % 2 else 1]:
                child = children[name]
                assert child.stdin
                child.stdin.write(f"{what}\n")
                child.stdin.flush()
                passes[name].append(answer(child))
        for name in children:
            took[name][f"predict, {what}, an image"] = statistics.median(passes[name][1:])
    for child in children.values():
        child.communicate()
    return took


def answer(child: subprocess.Popen[str]) -> Any:
    """The child's next line that is an answer; other lines are the training's own words."""
    assert child.stdout
    for line in child.stdout:
        if line.startswith(ANSWER):
            return json.loads(line.removeprefix(ANSWER))
    sys.exit("a version failed; what it said stands above")


def prepare(folder: Path) -> None:
    """Images of two classes, a run and its bundle; of the other version, since both read them."""
    import recame
    from recame.cli import main as verb

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
    sys.argv = ["recame", "export", str(folder / "run"), "--out", str(folder / "bundle")]
    verb()


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
        paths = {"PYTHONPATH": str(versions["before"] / "src"), "CHILD": "prepare"}
        subprocess.run([sys.executable, __file__, folder], env=os.environ | paths, check=True)
        for pair in range(-1, asked.pairs):  # the first one warms caches up
            order = list(versions) if pair % 2 else list(versions)[::-1]
            took = take_turns({name: versions[name] for name in order}, folder, sys.argv[2:])
            if pair >= 0:
                for name in versions:
                    rows[name].append(took[name])
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
    if os.environ.get("CHILD") == "prepare":
        prepare(Path(sys.argv[1]))
    elif os.environ.get("CHILD"):
        measure(Path(sys.argv[1]))
    else:
        main()
