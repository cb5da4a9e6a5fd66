"""What a bias and a scale for each class win where logits need them, and cost where they do not.

Six Gaussian classes whose logits need a temperature alone, a bias for each class too, or a scale
for each class besides. Log loss on fresh images, every class counting alike, of each method and of
the one that `fit_calibrator` chooses.

    OMP_NUM_THREADS=1 python benchmarks/decisions/calibrators_simulated.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.decisions.calibrators import METHODS, Calibrator, fit_calibrator, fit_method

CLASSES = 6
TILT = np.linspace(1.8, -1.8, CLASSES)
SCALES = np.array([0.8, 1.0, 1.3, 1.6, 2.0, 2.5])
NEEDS = {"a temperature": (1.6, 0.0), "biases": (1.6, TILT), "scales and biases": (SCALES, TILT)}


def drawn(images: int, needs: str, random: np.random.Generator) -> tuple[FloatArray, IntArray]:
    """Logits and classes of so many images of each class."""
    target = np.repeat(np.arange(CLASSES), images)
    means = np.eye(CLASSES) * 2.4
    factor, offset = NEEDS[needs]
    logits = (means[target] + random.normal(size=(len(target), CLASSES))) @ means.T
    return logits * factor + offset, target


def log_loss(calibrator: Calibrator, logits: FloatArray, target: IntArray) -> float:
    """Mean over images, of which there are as many in each class."""
    own = calibrator.apply(logits)[np.arange(len(target)), target]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began, random = time.process_time(), np.random.default_rng(asked.seed)
    print(
        "| needed | images a class | temperature | biases too | scales too | chosen | chosen - "
        "temperature, worst | chosen |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for needs in NEEDS:
        fresh = drawn(1500, needs, random)
        for images in (20, 40, 100):
            losses, methods = [], []
            for _ in range(asked.repetitions):
                labelled = drawn(images, needs, random)
                chosen = fit_calibrator(*labelled)
                methods.append(chosen.method)
                fitted = [fit_method(*labelled, method) for method in METHODS]
                losses.append([log_loss(one, *fresh) for one in (*fitted, chosen)])
            table = np.array(losses)
            means = " | ".join(f"{mean:.4f}" for mean in table.mean(0))
            worst = (table[:, 3] - table[:, 0]).max()
            counts = " / ".join(str(methods.count(method)) for method in METHODS)
            print(f"| {needs} | {images} | {means} | {worst:+.4f} | {counts} |")
    print(f"\n{time.process_time() - began:.1f} s of processor time")


if __name__ == "__main__":
    main()
