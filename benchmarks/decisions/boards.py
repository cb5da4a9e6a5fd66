"""Promised limits on boards: kept, and at what cost? On runs of DeepPCB-LT or ICDefectSynth.

    python benchmarks/decisions/boards.py MANIFEST.csv RUN [RUN ...] [--normal CLASS]
        [--draws 1000] [--out FILE]

The runs are defaults, as `benchmarks/defaults/run.py --whole DeepPCB-LT=MANIFEST.csv` trains them.
Each scores the table's `test` and, where it has one, `new_product_query`; answers are kept in the
run's folder.

- **by image**: `test` is split in two at random again and again, a limit is promised by one half,
  and the other counts what is released. How often that exceeds the limit is a beta-binomial
  probability, known to the last digit, if the promise is right.
- **by board**: the same with boards, one image of each counting on both sides.
- **promises**: what all six defect classes promise at once, by all of `test`, and by `val`, which
  is smaller and has chosen among models.
- **review**: errors that go away if the least certain 5 and 10 % of the images go to people, as a
  share of those that would go if the errors were known; AUGRC (Traub et al., NeurIPS 2024).
- **strangers**: how known boards, new product lines and foreign images rank, and how batches do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import betabinom

import recame
from recame.contracts import Array, BoolArray, FloatArray, IntArray
from recame.decisions.exact import above_all_but, most_allowed
from recame.decisions.limits import Limits
from recame.decisions.scored import (
    Scored,
    class_log_odds,
    defect_weights,
    logits_of,
    release_scores,
)
from recame.decisions.tune import tune
from recame.decisions.unknown import fit_scorer
from recame.errors import ConfigError
from recame.machine import environment
from recame.metrics.calibration import expected_calibration_error
from recame.metrics.statistics import area_under_roc

CONFIDENCE, LIMIT = 0.95, 0.1
SCORERS = ("max_softmax", "knn", "vim", "mahalanobis", "relative_mahalanobis")
#: Images of a batch of one product line.
BATCH = 50


class Answers(NamedTuple):
    """Of N images: logits (N, C), calibrated (N, C), features (N, E, D), and what they are."""

    logits: FloatArray
    probabilities: FloatArray
    features: FloatArray
    target: IntArray
    board: Array
    product: Array
    image: Array

    def rows(self, chosen: Array) -> Answers:
        """Some of the images."""
        return Answers(*(values[chosen] for values in self))


def answers(run: Path, table: pd.DataFrame, root: Path, split: str) -> Answers:
    """A run's answers for a split, kept in its folder."""
    kept = run / f"boards-{split}.npz"
    if not kept.exists():
        model = recame.load(run)
        rows = table[table["split"] == split]
        if split == "train":  # as many of each class as there are, 2,000 in all
            order = rows.sample(frac=1, random_state=0)
            rows = order.iloc[np.argsort(order.groupby("label").cumcount(), kind="stable")[:2000]]
        paths = [str(root / name) for name in rows["image"]]
        found = list(model.stream(paths, num_images=len(paths), features=True))
        names = list(model.label_space.names)
        likely = np.stack([each.probabilities for each in found])
        values = {
            "logits": logits_of(likely, model.temperature),
            "probabilities": likely,
            "features": np.stack([each.features for each in found if each.features is not None]),
            "target": np.array([names.index(label) for label in rows["label"]]),
            **{
                n: rows[n].astype(str).to_numpy().astype(str) for n in ("board", "product", "image")
            },
        }
        np.savez(kept, **values)
    with np.load(kept) as arrays:
        return Answers(*(arrays[name] for name in Answers._fields))


def by_image(
    odds: FloatArray, target: IntArray, defects: list[int], draws: int, rng: np.random.Generator
) -> dict[str, float]:
    """How often the other half breaks a promise, and how often it should."""
    broken, expected = [], []
    for index in defects:
        scores = odds[target == index]
        half = len(scores) // 2
        allowed = most_allowed(half, LIMIT, 1 - CONFIDENCE)
        others = len(scores) - half
        # Of exchangeable scores so many of the others exceed the (k + 1)-th largest of n.
        law = betabinom(others, allowed + 1, half - allowed)
        expected.append(float(law.sf(np.floor(LIMIT * others + 1e-9))))
        for _ in range(draws):
            order = rng.permutation(scores)
            above = above_all_but(order[:half], allowed)
            broken.append(float((order[half:] > above).sum() > LIMIT * others + 1e-9))
    each = np.array(broken).reshape(len(defects), draws)
    return {
        "broken": round(float(each.mean()), 4),
        "expected": round(float(np.mean(expected)), 4),
        # Draws of one class overlap; classes do not.
        "standard_error": round(float(each.mean(1).std(ddof=1) / np.sqrt(len(defects))), 4),
    }


def by_board(
    odds: FloatArray, found: Answers, defects: list[int], draws: int, rng: np.random.Generator
) -> dict[str, float]:
    """How often images of the other boards are released more often than promised, and should be."""
    broken = np.zeros((len(defects), draws))
    expected = np.zeros((len(defects), draws))
    for row, index in enumerate(defects):
        own = found.target == index
        scores, boards = odds[own], found.board[own]
        names, code = np.unique(boards, return_inverse=True)
        for draw in range(draws):
            order = rng.permutation(len(names))
            # One image of each board, drawn by chance.
            mixed = rng.permutation(len(code))
            _, first = np.unique(code[mixed], return_index=True)
            drawn = scores[mixed[first]][order]
            half = len(names) // 2
            allowed = most_allowed(half, LIMIT, 1 - CONFIDENCE)
            above, others = above_all_but(drawn[:half], allowed), len(names) - half
            broken[row, draw] = (drawn[half:] > above).sum() > LIMIT * others + 1e-9
            law = betabinom(others, allowed + 1, half - allowed)
            expected[row, draw] = law.sf(np.floor(LIMIT * others + 1e-9))
    return {
        "broken": round(float(broken.mean()), 4),
        "expected": round(float(expected.mean()), 4),
        "standard_error": round(float(broken.mean(1).std(ddof=1) / np.sqrt(len(defects))), 4),
    }


def promises(
    found: Answers, names: list[str], normal: str, *, by: str, comparisons: int
) -> dict[str, Any]:
    """What all defect classes promise at once, and what becomes of a wish for 5 %."""
    groups = None if by == "image" else found.board.tolist()
    scored = Scored(found.logits, found.target, found.image.tolist(), groups)
    words: dict[str, Any] = {"unit": by, "comparisons": comparisons}
    fitted = tune(scored, names, normal, Limits(), **words)
    told = {
        "limits": {p.of: round(p.limit or 1.0, 4) for p in fitted.promises},
        "counts": {p.of: p.images for p in fitted.promises},
        "smallest_for_all": round(max(p.limit or 1.0 for p in fitted.promises), 4),
        "normal_released": round(1 - (fitted.expected.overkill or 0.0), 4),
    }
    try:
        wished = tune(scored, names, normal, Limits.from_dict({"escape": 0.05}), **words)
        told["five_percent"] = f"promised, {1 - (wished.expected.overkill or 0.0):.3f} released"
    except ConfigError as refused:
        told["five_percent"] = str(refused)
    return told


def review(found: Answers) -> dict[str, Any]:
    """What people's work buys."""
    wrong = found.probabilities.argmax(1) != found.target
    certainties = {
        "ours": class_log_odds(found.logits).max(1),
        "softmax": found.probabilities.max(1).astype(np.float64),
    }
    told: dict[str, Any] = {"errors": round(float(wrong.mean()), 4)}
    for name, certainty in certainties.items():
        order = np.argsort(certainty, kind="stable")
        for budget in (0.05, 0.1):
            number = int(budget * len(order))
            most = min(number, int(wrong.sum()))
            told[f"{name}_{budget:.0%}"] = round(float(wrong[order[:number]].sum()) / most, 4)
        # Mean over coverages of the share of all images that are accepted and wrong.
        told[f"{name}_augrc"] = round(float(np.cumsum(wrong[order[::-1]]).mean() / len(wrong)), 5)
    return told


def foreign(run: Path, kinds: int = 60) -> Answers:
    """Noise, black, white, gradients: no boards."""
    rng = np.random.default_rng(0)
    model = recame.load(run)
    side = (model.spec.height, model.spec.width)
    pictures = [rng.integers(0, 256, side, dtype=np.uint8) for _ in range(kinds)]
    pictures += [np.zeros(side, np.uint8), np.full(side, 255, np.uint8)]
    found = list(model.stream(pictures, num_images=len(pictures), features=True))
    likely = np.stack([each.probabilities for each in found])
    empty = np.array([""] * len(found))
    seen = np.stack([each.features for each in found if each.features is not None])
    logits = logits_of(likely, model.temperature)
    return Answers(logits, likely, seen, np.full(len(found), -1), empty, empty, empty)


def strangers(train: Answers, test: Answers, new: Answers | None, other: Answers) -> dict[str, Any]:
    """How scorers rank new lines and foreign images, and how often a batch is told."""
    told: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for name in SCORERS:
        scorer = fit_scorer(name, train.features, train.logits, train.target)
        known, odd = (scorer.score(part.features, part.logits) for part in (test, other))
        half = rng.random(len(known)) < 0.5
        told[name] = {
            "foreign_auroc": round(float(area_under_roc(known, odd) or 0), 4),
            "known_batches_flagged": _batches(known[half], known[~half], test.product[~half], rng),
        }
        if new is not None:
            lines = scorer.score(new.features, new.logits)
            told[name] |= {
                "new_lines_auroc": round(float(area_under_roc(known, lines) or 0), 4),
                "new_batches_flagged": _batches(known[half], lines, new.product, rng),
            }
    return told


def _batches(
    known: FloatArray, scores: FloatArray, product: Array, rng: np.random.Generator
) -> float:
    """Share of batches of one line whose ranks among known images are higher than chance has it."""
    flagged: list[bool] = []
    for line in np.unique(product):
        own = np.flatnonzero(product == line)
        for _ in range(40 if len(own) >= BATCH else 0):
            batch = scores[rng.choice(own, BATCH, replace=False)]
            flagged.append(bool(_higher(known, batch)))
    return round(float(np.mean(flagged)), 4) if flagged else float("nan")


def _higher(known: FloatArray, batch: FloatArray) -> bool:
    """Wilcoxon's rank sum, one-sided, at 5 %."""
    area = area_under_roc(known, batch) or 0.5
    n, m = len(known), len(batch)
    spread = np.sqrt((n + m + 1) / (12 * n * m))
    return bool((area - 0.5) / spread > 1.645)


def judged(run: Path, table: pd.DataFrame, root: Path, named: str, draws: int) -> dict[str, Any]:
    """Everything of one run."""
    names = list(recame.load(run).label_space.names)
    train, val, test = (answers(run, table, root, split) for split in ("train", "val", "test"))
    new = None
    if (table["split"] == "new_product_query").any():
        new = answers(run, table, root, "new_product_query")
    normal = names.index(named)
    defects = [index for index in range(len(names)) if index != normal]
    odds, rng = class_log_odds(test.logits), np.random.default_rng(0)
    raw: FloatArray = odds[:, normal]
    mix = np.bincount(train.target[train.target >= 0], minlength=len(names)).astype(float)
    called = release_scores(test.logits, normal, defect_weights(mix, normal, defects))
    right: BoolArray = test.probabilities.argmax(1) == test.target
    return {
        "run": run.name,
        "balanced_accuracy": round(
            float(np.mean([right[test.target == i].mean() for i in range(len(names))])), 4
        ),
        "ece": round(float(expected_calibration_error(test.probabilities, test.target)), 4),
        "by_image": by_image(raw, test.target, defects, draws, rng),
        "by_board": by_board(raw, test, defects, draws, rng),
        "by_board_as_released": by_board(called, test, defects, draws, rng),
        "promises": {
            f"{split} by {by}, {models} models": promises(
                part, names, named, by=by, comparisons=models
            )
            for split, part, kinds in (("test", test, (1, 12)), ("val", val, (12,)))
            for by in ("image", "board")
            for models in kinds
        },
        "review": review(test),
        "strangers": strangers(train, test, new, foreign(run)),
    }


def main() -> None:
    """Judge the runs, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--normal", default="false_call")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/boards.json")
    options = parser.parse_args()
    table = pd.read_csv(options.manifest)
    words = (table, options.manifest.parent, options.normal, options.draws)
    found = [judged(run, *words) for run in options.runs]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"runs": found, "machine": environment()}, indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
