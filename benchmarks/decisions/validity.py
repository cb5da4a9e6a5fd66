"""Are promised escape limits kept, and what do they cost? On generated images, known to the end.

    python benchmarks/decisions/validity.py DIR [--draws 2000] [--limit 0.02] [--out DIR]
    python benchmarks/decisions/validity.py DIR --power --seconds 600 [--out DIR]

Three networks (a probe, a fine-tuned one, the two joined) are trained for a minute each on boards
of six classes, and score 100,000 fresh images of the same products, which are the truth. Then a
calibration is drawn again and again: so many images of each class, by which the most accurate of
the three networks is chosen and by which its limits are promised. A draw breaks its promise where
the truth exceeds the limit for any defect class. Beside it the rule of versions before: one
threshold for all defects together, allowed as large a share of the images that chose.

With `--power` one network is trained, the joined one, for so long, and each defect class is
promised alone, by 1,000 images and by 4,000. Trained networks and scores are kept in DIR and taken
up. About ten minutes of two cores at first, then two.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

import recame
from recame.config import Config
from recame.contracts import Array, FloatArray, IntArray, ensemble_logits
from recame.datasets.generated import SyntheticSpec, plan, render, write
from recame.decisions.limits import PerClass
from recame.decisions.promises import risk_of_each
from recame.decisions.release import fit_release
from recame.decisions.scored import class_log_odds, release_scores
from recame.inference.run_graph import RunGraph
from recame.machine import environment

sys.path.append(str(Path(__file__).parent))
from single_threshold import single_threshold

#: The models of which a calibration chooses: settings on top of the defaults.
MODELS: dict[str, dict[str, object]] = {
    "probe": {"finetune.enabled": False},
    "finetune": {"run.keep": "last"},
    "joined": {"run.keep": "joined"},
}
CLASSES, TRUTH, CONFIDENCE = 6, 100_000, 0.95
TRAIN = SyntheticSpec(
    num_images=3000,
    num_classes=CLASSES,
    num_products=8,
    imbalance=50,
    val_per_class=20,
    test_per_class=20,
    seed=11,
)
FRESH = SyntheticSpec(
    num_images=TRUTH + 4000,
    num_classes=CLASSES,
    num_products=8,
    imbalance=50,
    val_per_class=1,
    test_per_class=-(-TRUTH // CLASSES),
    seed=12,
)


def scores(
    folder: Path, models: Sequence[str], seconds: float
) -> tuple[dict[str, FloatArray], IntArray, tuple[str, ...]]:
    """Logits (N, C) of each model on the fresh images, their targets, and the class names."""
    manifest = folder / "set" / "manifest.csv"
    if not manifest.exists():
        write(TRAIN, folder / "set")
    found, target, names = {}, None, ()
    images: Array | None = None
    for model in models:
        settings = MODELS[model]
        run, kept = folder / model, folder / f"{model}.npz"
        changes = {"run.time_budget_s": seconds, "evaluation.views": 1, "data.size": 64, **settings}
        if not (run / "graph").exists():
            recame.train(manifest, Config().updated(changes), out=run)
        space = json.loads((run / "label_space.json").read_text())
        names = tuple(space["names"])
        if not kept.exists():
            if images is None:
                table = plan(FRESH)
                table = table[table["split"] == "test"].iloc[:TRUTH]
                images = render(table, FRESH)[..., None]
                target = np.array([names.index(label) for label in table["label"]])
            graph = RunGraph((run / "graph" / "model.onnx").read_bytes(), threads=2)
            logits = [
                ensemble_logits(graph(images[start : start + 256])[0])
                for start in range(0, len(images), 256)
            ]
            assert target is not None
            np.savez(kept, logits=np.concatenate(logits), target=target)
        with np.load(kept) as arrays:
            found[model], target = arrays["logits"], arrays["target"]
    assert target is not None
    return found, target, names


def simulate(
    logits: dict[str, FloatArray],
    target: IntArray,
    names: tuple[str, ...],
    *,
    draws: int,
    limit: float,
    images: int,
    classes: list[str],
) -> dict[str, Any]:
    """How often promises fail, and how many normal images pass on the mean."""
    rng, normal = np.random.default_rng(0), names.index("normal")
    by_class = [np.flatnonzero(target == index) for index in range(len(names))]
    odds = {model: class_log_odds(found) for model, found in logits.items()}
    alike = np.ones(len(names))
    ours = {model: release_scores(found, normal, alike) for model, found in logits.items()}
    right = {model: each.argmax(1) == target for model, each in odds.items()}
    powers = {model: np.exp(found - found.max(1, keepdims=True)) for model, found in logits.items()}
    certain = {model: each / each.sum(1, keepdims=True) for model, each in powers.items()}
    escape = PerClass(None, dict.fromkeys(classes, limit))
    risk = risk_of_each(CONFIDENCE, promises=len(classes), comparisons=len(logits))
    watched = [names.index(name) for name in classes]
    rank = {model: [np.sort(each[rows]) for rows in by_class] for model, each in ours.items()}
    broken = before_broken = 0
    released, oracle, before = [], [], []
    for _ in range(draws):
        chosen = [rng.choice(rows, images, replace=False) for rows in by_class]
        rows = np.concatenate(chosen)
        accuracy = {
            model: np.mean([hit[part].mean() for part in chosen]) for model, hit in right.items()
        }
        model = max(accuracy, key=lambda name: accuracy[name])
        fitted = fit_release(ours[model][rows], target[rows], names, normal, escape, risk=risk)
        truth = [_beyond(rank[model][index], fitted.above) for index in watched]
        broken += max(truth) > limit
        released.append(_beyond(rank[model][normal], fitted.above))
        best = max(float(rank[model][i][-1 - int(limit * len(by_class[i]))]) for i in watched)
        oracle.append(_beyond(rank[model][normal], best))
        old = single_threshold(certain[model][rows], target[rows], normal, max_escape=limit)
        passes = (certain[model].argmax(1) == normal) & (certain[model][:, normal] >= old)
        pooled = np.mean([passes[by_class[i]].mean() for i in range(len(names)) if i != normal])
        before_broken += pooled > limit
        before.append(float(passes[by_class[normal]].mean()))
    return {
        "draws": draws,
        "images_a_class": images,
        "limit": limit,
        "promised_classes": classes,
        "models_compared": len(logits),
        "broken": int(broken),
        "broken_at_most_by_chance": int(binom.ppf(0.99, draws, 1 - CONFIDENCE)),
        "normal_released": round(float(np.mean(released)), 4),
        "normal_released_by_oracle": round(float(np.mean(oracle)), 4),
        "before_broken": int(before_broken),
        "before_normal_released": round(float(np.mean(before)), 4),
    }


def _beyond(ranked: FloatArray, above: float) -> float:
    """Share of sorted scores that exceed a threshold."""
    return 1 - float(np.searchsorted(ranked, above, side="right")) / len(ranked)


def main() -> None:
    """Simulate and print a row a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=0.02)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--power", action="store_true", help="one network, one class at a time")
    parser.add_argument("--seconds", type=float, default=60, help="of training, each network")
    words = parser.parse_args()
    models = ["joined"] if words.power else list(MODELS)
    logits, target, names = scores(words.folder, models, words.seconds)
    defects = [name for name in names if name != "normal"]
    joined = release_scores(logits["joined"], names.index("normal"), np.ones(len(names)))

    def threshold(name: str) -> float:
        """That of an oracle, for one class alone."""
        own = np.sort(joined[target == names.index(name)])
        return float(own[-1 - int(0.02 * len(own))])

    hardest = max(defects, key=threshold)
    one = {"joined": logits["joined"]}
    cases = {
        "all defects, three networks compared": (logits, defects, 500, words.limit),
        "all defects, nothing compared": (one, defects, 500, words.limit),
        "power: the hardest defect, nothing compared": (one, [hardest], 1000, 0.02),
        "power: all defects, nothing compared": (one, defects, 1000, 0.02),
    }
    if words.power:
        cases = {
            f"power: {', '.join(named)}, {images} images": (one, named, images, 0.02)
            for named in ([name] for name in defects)
            for images in (1000, 4000)
        } | {"power: all defects, 1000 images": (one, defects, 1000, 0.02)}
    rows = []
    for case, (models, classes, images, limit) in cases.items():
        row = simulate(
            models, target, names, draws=words.draws, limit=limit, images=images, classes=classes
        )
        rows.append({"case": case, **row})
        print(json.dumps(rows[-1]), flush=True)
    words.out.mkdir(parents=True, exist_ok=True)
    document = {"rows": rows, "environment": environment()}
    name = "power.json" if words.power else "validity.json"
    (words.out / name).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
