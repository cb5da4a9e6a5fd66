"""Is a batch of a product line that nobody has labelled told without its name?

    python benchmarks/decisions/new_lines.py MANIFEST.csv RUN [RUN ...] [--out FILE]

Batches of 50 images of one line each, as `boards.py` has them: of `test` (known lines) and of
`new_product_query` (new ones, which choose nothing here). To see what would be found without new
lines at hand, each known line in turn is hidden from the scorer (the network has seen it).

- `ranks`: do the images' unknown scores (`knn`) rank above those of `val`? (Wilcoxon, 5 %.)
- `nearest`, `hull`: where is the batch's mean in the space that tells the training's products
  apart (Fisher's discriminant, within-product covariance shrunk by a tenth), beside the nearest
  product's mean, or the convex hull of all means, in which mixed lots of known lines lie? From
  features whose class means are taken away (`of called classes`), so that a lot of another mix of
  defects is no new product, or as they are (`plain`). The threshold is the 95 % quantile over
  batches of `val`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from boards import BATCH, Answers, answers
from scipy.optimize import nnls

from recame.contracts import Array, BoolArray, FloatArray, IntArray
from recame.decisions.unknown import fit_scorer
from recame.machine import environment
from recame.metrics.statistics import area_under_roc

DRAWS, KEPT, SHRINKAGE, LEAST = 40, 200, 0.1, 5


class Images(NamedTuple):
    """Of N images: features (N, P), the class each is called, its product."""

    features: FloatArray
    called: IntArray
    product: Array

    @classmethod
    def of(cls, found: Answers) -> Images:
        """Experts' features side by side."""
        flat = found.features.reshape(len(found.features), -1).astype(np.float64)
        return cls(flat, found.probabilities.argmax(1), found.product)

    def rows(self, chosen: BoolArray) -> Images:
        """Some of the images."""
        return Images(*(values[chosen] for values in self))


class Lines:
    """The space in which the training's products lie apart."""

    def __init__(self, train: Images, *, of_classes: bool) -> None:
        self.mean, self.scale = train.features.mean(0), train.features.std(0) + 1e-6
        standard = (train.features - self.mean) / self.scale
        self.axes = np.linalg.svd(standard, full_matrices=False)[2][:KEPT].T
        seen = standard @ self.axes
        self.classes = np.zeros((int(train.called.max()) + 1, seen.shape[1]))
        for index in np.unique(train.called) if of_classes else ():
            own = train.called == index
            if own.sum() >= LEAST:
                self.classes[index] = seen[own].mean(0)
        left = seen - self.classes[train.called]
        names, code = np.unique(train.product, return_inverse=True)
        centres = np.stack([left[code == index].mean(0) for index in range(len(names))])
        within = left - centres[code]
        spread = within.T @ within / len(within)
        even = np.trace(spread) / len(spread) * np.eye(len(spread))
        spread = (1 - SHRINKAGE) * spread + SHRINKAGE * even
        self.whiten = np.linalg.cholesky(np.linalg.inv(spread))
        self.centres = centres @ self.whiten

    def places(self, images: Images) -> FloatArray:
        """(N, Q) of images in that space."""
        seen = (images.features - self.mean) / self.scale @ self.axes
        found: FloatArray = (seen - self.classes[images.called]) @ self.whiten
        return found


def nearest(mean: FloatArray, centres: FloatArray) -> float:
    """Squared distance to the nearest product."""
    return float(((centres - mean) ** 2).sum(1).min())


def hull(mean: FloatArray, centres: FloatArray) -> float:
    """Squared distance to the nearest mixture of products."""
    heavy = 1e3  # weights that sum to 1
    weights, _ = nnls(np.vstack([centres.T, np.full(len(centres), heavy)]), np.append(mean, heavy))
    return float(((mean - centres.T @ weights) ** 2).sum())


def means(places: FloatArray, product: Array, rng: np.random.Generator) -> FloatArray:
    """Means of batches, each of one product."""
    found = []
    for line in np.unique(product):
        own = np.flatnonzero(product == line)
        size = min(BATCH, len(own))
        drawn = (rng.choice(own, size, replace=False) for _ in range(DRAWS))
        found += [places[batch].mean(0) for batch in drawn] if size >= BATCH // 2 else []
    return np.array(found)


def flagged(
    train: Images,
    val: Images,
    others: dict[str, Images],
    distance: Callable[..., float],
    **how: Any,
) -> dict[str, float]:
    """Share of the batches that are flagged, of each kind."""
    rng, lines = np.random.default_rng(0), Lines(train, **how)
    known = [distance(m, lines.centres) for m in means(lines.places(val), val.product, rng)]
    above = float(np.quantile(known, 0.95))
    told = {}
    for name, images in others.items():
        batches = means(lines.places(images), images.product, rng)
        told[name] = float(np.mean([distance(m, lines.centres) > above for m in batches]))
    return told


def by_ranks(train: Answers, val: Answers, others: dict[str, Answers]) -> dict[str, float]:
    """The same by the images' own unknown scores."""
    scorer = fit_scorer("knn", train.features, train.logits, train.target)
    rng = np.random.default_rng(0)
    known = scorer.score(val.features, val.logits)
    told = {}
    for name, part in others.items():
        scores, found = scorer.score(part.features, part.logits), []
        for line in np.unique(part.product):
            own = np.flatnonzero(part.product == line)
            for _ in range(DRAWS if len(own) >= BATCH else 0):
                batch = scores[rng.choice(own, BATCH, replace=False)]
                area = area_under_roc(known, batch) or 0.5
                error = np.sqrt((len(known) + BATCH + 1) / (12 * len(known) * BATCH))
                found.append((area - 0.5) / error > 1.645)
        told[name] = float(np.mean(found))
    return told


def judged(run: Path, table: pd.DataFrame, root: Path) -> dict[str, Any]:
    """Every way of one run."""
    splits = ("train", "val", "test", "new_product_query")
    found = {split: answers(run, table, root, split) for split in splits}
    others = {"known": found["test"], "new": found["new_product_query"]}
    told: dict[str, Any] = {"ranks": by_ranks(found["train"], found["val"], others)}
    train, val, test, new = (Images.of(found[split]) for split in splits)
    for name, distance in (("nearest", nearest), ("hull", hull)):
        for words, of_classes in (("plain", False), ("of called classes", True)):
            rates = flagged(
                train, val, {"known": test, "new": new}, distance, of_classes=of_classes
            )
            hidden = [
                flagged(
                    train.rows(train.product != line),
                    val.rows(val.product != line),
                    {"hidden": test.rows(test.product == line)},
                    distance,
                    of_classes=of_classes,
                )["hidden"]
                for line in np.unique(train.product)
                if (test.product == line).sum() >= BATCH // 2
            ]
            told[f"{name}, {words}"] = {**rates, "hidden": float(np.mean(hidden))}
    return {"run": run.name, **{way: _rounded(rates) for way, rates in told.items()}}


def _rounded(rates: dict[str, float]) -> dict[str, float]:
    return {name: round(rate, 3) for name, rate in rates.items()}


def main() -> None:
    """Judge the runs, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = pd.read_csv(options.manifest)
    found = [judged(run, table, options.manifest.parent) for run in options.runs]
    text = json.dumps({"runs": found, "machine": environment()}, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
