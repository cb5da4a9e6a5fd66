"""What estimating the class prior of a lot wins and costs, on finished runs.

    python benchmarks/decisions/shift.py MANIFEST.csv RUN [RUN ...] [--lots 100] [--out FILE]

Lots are drawn from a run's `test` split, with replacement, by a prior that falls from the class
with the most training images to the one with the fewest by 50:1, and by one that rises so; `val`
calibrates. Accuracy on a lot's known images by the probabilities as they are, by those that are
re-weighted to the estimated prior, and to the true one. Lots of 200 images whose prior is the one
that the probabilities speak of show what estimating costs where nothing has changed. A tenth of
foreign images (noise, black, white) is among others: they have to be refused, by the unknown
scores of `knn`, whose threshold `val` lays, or by the probabilities.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from boards import Answers, answers, foreign

from recame.contracts import FloatArray
from recame.decisions.prior_shift import Known, estimate_prior, reweighted
from recame.decisions.unknown import fit_scorer, fit_unknown_threshold, is_unknown
from recame.inference.training_prior import prior_of_run
from recame.machine import environment
from recame.runs.folder import RunFolder

RATIO, IMAGES, UNCHANGED, FOREIGN = 50, 1000, 200, 0.1


class Seen(NamedTuple):
    """Of N images: calibrated probabilities (N, C), class, and whether each is unknown."""

    probabilities: FloatArray
    target: FloatArray
    unknown: FloatArray


def parts(
    run: Path, table: pd.DataFrame, root: Path
) -> tuple[Seen, Seen, Seen, FloatArray, Sequence[str]]:
    """`val`, `test` and foreign images, the prior that is spoken of, and the classes' names."""
    folder = RunFolder.open(run, finished=True)
    prior = np.array(prior_of_run(folder, folder.load_config()).prior)
    train, val, test = (answers(run, table, root, split) for split in ("train", "val", "test"))
    scorer = fit_scorer("knn", train.features, train.logits, train.target)

    def score(part: Answers) -> FloatArray:
        return scorer.score(part.features, part.logits)

    tail = np.zeros(len(prior), np.bool_)
    laid = fit_unknown_threshold(
        score(val), val.target, tail, limit=0.05, tail_limit=None, risk=0.05
    ).threshold
    seen = [
        Seen(part.probabilities.astype(np.float64), part.target, is_unknown(score(part), laid))
        for part in (val, test, foreign(run))
    ]
    return seen[0], seen[1], seen[2], prior, folder.label_space().names


def priors_of(run: Path, old: FloatArray) -> dict[str, FloatArray]:
    """Falling with the training's counts, rising, and as it was."""
    counts = np.array(RunFolder.open(run).label_space().counts)
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    falling = RATIO ** (-rank / (len(counts) - 1))
    rising = RATIO ** (rank / (len(counts) - 1))
    return {"falls 50:1": falling / falling.sum(), "rises 50:1": rising / rising.sum()}


def judged(run: Path, table: pd.DataFrame, root: Path, lots: int) -> list[dict[str, Any]]:
    """A row a case."""
    val, test, other, old, names = parts(run, table, root)
    rng = np.random.default_rng(0)
    by_class = [np.flatnonzero(test.target == index) for index in range(len(names))]
    known = Known(val.probabilities, val.target)
    changed = [(name, IMAGES, prior) for name, prior in priors_of(run, old).items()]
    cases = [(name, images, prior, kind) for name, images, prior in changed for kind in (0, 1, 2)]
    cases.append(("stays", UNCHANGED, old, 0))
    rows = []
    for name, images, prior, kind in cases:
        found: list[list[float]] = []
        for _ in range(lots):
            drawn = rng.choice(len(names), images, p=prior)
            chosen = np.array([rng.choice(by_class[index]) for index in drawn])
            strange = rng.choice(len(other.target), round(FOREIGN * images) if kind else 0)
            likely = np.concatenate([test.probabilities[chosen], other.probabilities[strange]])
            unknown = np.concatenate([test.unknown[chosen], other.unknown[strange]])
            share = float(unknown.mean()) if kind == 2 else None
            estimate = estimate_prior(likely, old, known=known, unknown_share=share, names=names)
            own, target = test.probabilities[chosen], test.target[chosen]
            right = [
                float((reweighted(own, old, taken).argmax(1) == target).mean())
                for taken in (old, estimate.prior, prior)
            ]
            found.append([*right, bool(estimate.refused)])
        before, after, best, refused = np.mean(found, 0)
        won = (after - before) / (best - before) if name != "stays" else float("nan")
        rows.append(
            {
                "run": run.name,
                "prior": name,
                "images": images,
                "foreign": ("none", "10 %, by probabilities", "10 %, by unknown scores")[kind],
                "as_it_was": round(before, 4),
                "estimated": round(after, 4),
                "true": round(best, 4),
                "of_the_gain": None if np.isnan(won) else round(won, 3),
                "refused": round(refused, 3),
            }
        )
    return rows


def main() -> None:
    """Judge the runs, print a row a case, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--lots", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = pd.read_csv(options.manifest)
    rows: list[dict[str, Any]] = []
    for run in options.runs:
        rows += judged(run, table, options.manifest.parent, options.lots)
    for row in rows:
        print(json.dumps(row))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"rows": rows, "machine": environment()}, indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
