"""What estimating the class prior of a lot wins and costs, on Gaussian scores.

Six classes whose features are Gaussian, all equally far apart, and logits that are too sure by a
factor and tilted towards some classes. Labelled images calibrate them (`fit_calibrator`); lots of
unlabelled images follow. Prints the accuracy on the known images of lots whose prior has changed,
of lots whose prior has not, and of lots with unknown images, and how often nothing is estimated.

    OMP_NUM_THREADS=1 python benchmarks/decisions/shift_simulated.py --distance 4 --images 100 100
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.decisions.calibrators import Calibrator, fit_calibrator
from recame.decisions.prior_shift import Known, PriorEstimate, estimate_prior, reweighted

CLASSES = 6
EQUAL = np.full(CLASSES, 1 / CLASSES)
#: 50:1 from the first class to the last.
FALLING = 50.0 ** -np.linspace(0, 1, CLASSES)
FALLING /= FALLING.sum()
RISING = FALLING[::-1]
SHIFTS = (
    ("50:1 -> 1:50", FALLING, RISING),
    ("equal -> 50:1", EQUAL, FALLING),
    ("50:1 -> equal", FALLING, EQUAL),
)
UNKNOWN = ("none", "one more class", "between two classes", "everywhere")
TOO_SURE, TILT = 1.6, np.linspace(0.8, -0.8, CLASSES)


class World:
    """Draws images of known and unknown classes."""

    def __init__(self, distance: float, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        corners = np.eye(CLASSES + 1) - 1 / (CLASSES + 1)
        axes = np.linalg.svd(corners)[2][:CLASSES]
        #: The last is a class that the network never saw, as far from each as they are.
        self.means = corners @ axes.T * distance / np.sqrt(2)

    def logits(self, centres: FloatArray) -> FloatArray:
        """Of images around such features, (N, 6)."""
        seen = centres + self.random.normal(size=centres.shape)
        return TOO_SURE * (seen @ self.means[:CLASSES].T) + TILT

    def known(self, target: IntArray) -> FloatArray:
        """Logits of images of such classes."""
        return self.logits(self.means[target])

    def lot(self, images: int, prior: FloatArray) -> tuple[FloatArray, IntArray]:
        """Logits and classes of images drawn by a prior."""
        target = self.random.choice(CLASSES, images, p=prior)
        return self.known(target), target

    def unknown(self, images: int, kind: str) -> FloatArray:
        """Logits of images of no known class; everywhere: each from a place of its own."""
        if kind == "one more class":
            return self.known(np.full(images, CLASSES))
        if kind == "between two classes":
            return self.logits(np.tile(self.means[:2].mean(0), (images, 1)))
        away = self.random.normal(size=(images, CLASSES))
        away *= np.linalg.norm(self.means[0]) / np.linalg.norm(away, axis=1, keepdims=True)
        return self.logits(away)


class Outcome(NamedTuple):
    """Of one lot: accuracy on its known images under three priors."""

    old: float
    estimated: float
    true: float
    refused: bool
    covered: float
    noticed_from: float


def outcome(
    calibrator: Calibrator,
    labelled: tuple[FloatArray, IntArray],
    lot: tuple[FloatArray, IntArray],
    others: FloatArray,
    priors: tuple[FloatArray, FloatArray],
) -> Outcome:
    """Estimate a lot's prior, the unknown images among it, and judge by its known images."""
    old, new = priors
    probabilities = reweighted(calibrator.apply(np.concatenate([lot[0], others])), EQUAL, old)
    known = Known(reweighted(calibrator.apply(labelled[0]), EQUAL, old), labelled[1])
    found: PriorEstimate = estimate_prior(probabilities, old, known=known)
    own = probabilities[: len(lot[1])]

    def accuracy(prior: FloatArray) -> float:
        return float((reweighted(own, old, prior).argmax(1) == lot[1]).mean())

    covered = float(((found.low <= new) & (new <= found.high)).mean())
    noticed = np.nan if found.noticed_from is None else found.noticed_from
    accuracies = accuracy(old), accuracy(found.prior), accuracy(new)
    return Outcome(*accuracies, bool(found.refused), np.nan if found.refused else covered, noticed)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--distance", type=float, default=4.0, help="of classes, in deviations")
    parser.add_argument(
        "--images", type=int, nargs=2, default=(100, 100), help="labelled, first and last class"
    )
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began, world = time.process_time(), World(asked.distance, asked.seed)
    cases = [(name, 1000, "none", (old, new)) for name, old, new in SHIFTS]
    cases += [
        (f"stays {word}", 200, "none", (p, p)) for word, p in (("50:1", FALLING), ("equal", EQUAL))
    ]
    cases += [(name, 1000, kind, (old, new)) for kind in UNKNOWN[1:] for name, old, new in SHIFTS]
    rows: list[list[Outcome]] = [[] for _ in cases]
    labels = np.geomspace(*asked.images, CLASSES).round().astype(np.int64)
    methods = []
    for _ in range(asked.repetitions):
        target = np.repeat(np.arange(CLASSES), labels)
        labelled = world.known(target), target
        calibrator = fit_calibrator(*labelled)
        methods.append(calibrator.method)
        for (_, images, kind, priors), row in zip(cases, rows, strict=True):
            others = np.zeros((0, CLASSES))
            if kind != "none":
                others = world.unknown(images // 10, kind)
            lot = world.lot(images - len(others), priors[1])
            row.append(outcome(calibrator, labelled, lot, others, priors))

    chosen = ", ".join(f"{name} {methods.count(name)}" for name in sorted(set(methods)))
    print(f"{asked.repetitions} repetitions, {labels.tolist()} labelled images, classes")
    print(f"{asked.distance:g} deviations apart; calibrators: {chosen}\n")
    print(
        "| prior | images | 10 % unknown | old | estimated | true | share of the gain | refused |"
        " 95 % covers | noticed from |"
    )
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for (name, images, kind, _), row in zip(cases, rows, strict=True):
        table = np.array(row, np.float64)
        old, found, true, refused = table[:, :4].mean(0)
        covered, noticed = (
            f"{np.nanmean(c):.2f}" if np.isfinite(c).any() else "" for c in table[:, 4:].T
        )
        gain = f"{(found - old) / (true - old):.2f}" if "->" in name else ""
        print(
            f"| {name} | {images} | {kind} | {old:.4f} | {found:.4f} | {true:.4f} | {gain} | "
            f"{refused:.2f} | {covered} | {noticed} |"
        )
    print(f"\n{time.process_time() - began:.1f} s of processor time")


if __name__ == "__main__":
    main()
