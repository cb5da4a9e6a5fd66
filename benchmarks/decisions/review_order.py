"""Which images should people see first? Orders of doubt beside an oracle's, on finished runs.

    python benchmarks/decisions/review_order.py MANIFEST.csv RUN [RUN ...] [--out FILE]

A budget of people's looks finds most errors if they are spent on the images that are called wrong.
For 5 and 10 % of the test images: the errors among the most doubtful, as a share of those that
somebody would find who knows them. And what the best order could find if the calibrated
probabilities were true: an image is wrong with one minus its confidence, whoever orders.

- `log-odds`: of the class that an image is called, what `recame` orders by; `softmax` its largest
  probability; `margin` to the second class; `entropy`.
- `eight views`: log-odds of the mean answer over all turns and flips.
- `views apart`: how far the answers of one and of eight views lie apart, in nats, added to it.
- `strange`: log-odds less the distance from training images (`knn`), each by its rank.
- `learnt`: logistic regression of errors on `val`, on all of the above and the called class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from boards import Answers, answers
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import recame
from recame.contracts import BoolArray, FloatArray
from recame.decisions.scored import class_log_odds, logits_of
from recame.decisions.unknown import fit_scorer
from recame.machine import environment

BUDGETS = (0.05, 0.1)


def eight_views(run: Path, table: pd.DataFrame, root: Path, split: str) -> FloatArray:
    """Logits (N, C) of the mean answer over eight views, kept in the run's folder."""
    kept = run / f"eight-views-{split}.npy"
    if not kept.exists():
        model = recame.load(run, views=8)
        paths = [str(root / name) for name in table.loc[table["split"] == split, "image"]]
        found = model.stream(paths, num_images=len(paths))
        likely = np.stack([each.probabilities for each in found])
        np.save(kept, logits_of(likely, model.temperature))
    logits: FloatArray = np.load(kept)
    return logits


def doubts(found: Answers, views: FloatArray, scorer: Any) -> dict[str, FloatArray]:
    """Order -> doubt (N,), the most doubtful the largest."""
    odds, likely = class_log_odds(found.logits), found.probabilities.astype(np.float64)
    called = odds.argmax(1)
    first = np.sort(likely, 1)
    own = odds[np.arange(len(odds)), called]
    of_views = class_log_odds(views)[np.arange(len(odds)), called]
    logs = np.log(np.maximum(likely, 1e-30))
    turned = np.exp(views - views.max(1, keepdims=True))
    turned /= turned.sum(1, keepdims=True)
    apart = (likely * (logs - np.log(np.maximum(turned, 1e-30)))).sum(1)
    strange = np.asarray(scorer.score(found.features, found.logits), np.float64)
    return {
        "log-odds": -own,
        "softmax": -likely.max(1),
        "margin": first[:, -2] - first[:, -1],
        "entropy": -(likely * logs).sum(1),
        "eight views": -of_views,
        "views apart": -of_views + 2 * np.abs(apart),
        "strange": rankdata(-own) + 0.5 * rankdata(strange),
        "knn alone": strange,
    }


def learnt(
    val: dict[str, FloatArray],
    test: dict[str, FloatArray],
    wrong: BoolArray,
    called: tuple[Any, Any],
) -> FloatArray:
    """Doubt (N,) of the test images by a regression on those of `val`."""
    classes = np.arange(1 + max(int(part.max()) for part in called))

    def columns(doubt: dict[str, FloatArray], names: Any) -> FloatArray:
        ranks = [np.arcsinh(values) for name, values in doubt.items() if name != "strange"]
        return np.column_stack([*ranks, names[:, None] == classes])

    model = make_pipeline(
        StandardScaler(), LogisticRegressionCV(Cs=8, cv=5, max_iter=2000, scoring="neg_log_loss")
    )
    model.fit(columns(val, called[0]), wrong)
    doubt: FloatArray = model.decision_function(columns(test, called[1]))
    return doubt


def plain(run: Path, likely: FloatArray) -> FloatArray:
    """(N, C) the network's own softmax: calibration undone."""
    fitted = json.loads((run / "decisions.json").read_text())["calibration"]
    scale = np.asarray(fitted.get("scale", 1 / fitted["temperature"]), np.float64)
    logits = (np.log(np.maximum(likely, 1e-38)) - np.asarray(fitted.get("bias", 0.0))) / scale
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: FloatArray = powers / powers.sum(1, keepdims=True)
    return found


def augrc(wrong: BoolArray, doubt: FloatArray) -> float:
    """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024)."""
    order = np.argsort(doubt, kind="stable")
    return round(float(np.cumsum(wrong[order]).mean() / len(wrong)), 5)


def judged(run: Path, table: pd.DataFrame, root: Path) -> dict[str, Any]:
    """Errors found by each order, as a share of the oracle's."""
    train, val, test = (answers(run, table, root, split) for split in ("train", "val", "test"))
    scorer = fit_scorer("knn", train.features, train.logits, train.target)
    doubt = {
        name: doubts(part, eight_views(run, table, root, name), scorer)
        for name, part in (("val", val), ("test", test))
    }
    called = [part.probabilities.argmax(1) for part in (val, test)]
    wrong_val, wrong = called[0] != val.target, called[1] != test.target
    orders = dict(doubt["test"])
    if wrong_val.sum() >= 10:
        orders["learnt"] = learnt(doubt["val"], doubt["test"], wrong_val, (called[0], called[1]))
    told: dict[str, Any] = {"run": run.name, "images": len(wrong), "errors": int(wrong.sum())}
    told["augrc"] = {name: augrc(wrong, values) for name, values in orders.items()}
    uncalibrated = plain(run, test.probabilities)
    of_plain = uncalibrated.argmax(1) != test.target
    told["augrc"]["plain softmax"] = augrc(of_plain, -uncalibrated.max(1))
    risk = 1 - test.probabilities.max(1).astype(np.float64)
    for budget in BUDGETS:
        number = int(budget * len(wrong))
        most = min(number, int(wrong.sum()))
        found = {
            name: round(float(wrong[np.argsort(-values, kind="stable")[:number]].sum()) / most, 3)
            for name, values in orders.items()
        }
        best = float(np.sort(risk)[::-1][:number].sum())
        told[f"{budget:.0%}"] = {**found, "if calibrated": round(best / most, 3)}
    return told


def main() -> None:
    """Judge the runs, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = pd.read_csv(options.manifest)
    found = [judged(run, table, options.manifest.parent) for run in options.runs]
    for row in found:
        print(json.dumps(row, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"runs": found, "machine": environment()}, indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
