"""Is one image decided alike wherever it is decided, and what do decisions cost?

    python benchmarks/decisions/agreement.py RUN [--bundle DIR] [--calibration TABLE] [--out DIR]

The run is tuned, on its own images or on those given, and exported with its decisions. Then every
image of its `test` split is decided by the network in torch, by the run folder's graph and by the
bundle, these two in processes of their own in which torch cannot be imported. Compared are class,
action, reason, candidates, unknown score and probabilities. A bundle's limits are fitted anew, one
look later, so that its thresholds may be stricter than the run's: they are told beside it.

What decisions add is timed on the answers themselves, in batches as a stream has them, without and
with the scorer of the unknown; `tune` from scores that are there. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import recame
from recame.decisions.limits import Limits
from recame.decisions.policy import Decider
from recame.decisions.scored import Scored, logits_of
from recame.decisions.tune import tune as tune_scores
from recame.export.export import export as export_run
from recame.inference.finished_run import recorded_data
from recame.machine import environment
from recame.reports.tuning import tune, tune_export
from recame.runs.folder import RunFolder
from recame.runtime.prediction import Prediction
from recame.runtime.predictor import Predictor

BATCH, ROUNDS = 32, 5

#: What the process without torch does: decides the images of a list, and writes what it said.
_ALONE = """
import json, sys
sys.modules["torch"] = None  # an import of it fails
import recame
model = recame.load(sys.argv[1])
paths = json.load(open(sys.argv[2]))
found = model.stream(paths, num_images=len(paths), checksums=True)
rows = [
    [f.label, f.action, f.reason, f.candidates, f.unknown_score, f.probabilities.tolist()]
    for f in found
]
json.dump(rows, open(sys.argv[3], "w"))
"""


def said(found: Prediction) -> list[Any]:
    """As the process alone writes it."""
    words = [found.label, found.action, found.reason, found.candidates]
    return [*words, found.unknown_score, found.probabilities.tolist()]


def alone(model: Path, paths: list[str]) -> list[list[Any]]:
    """What a folder says in a process without torch."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "asked.json", Path(folder) / "told.json"
        asked.write_text(json.dumps(paths))
        subprocess.run([sys.executable, "-c", _ALONE, model, asked, told], check=True)
        rows: list[list[Any]] = json.loads(told.read_text())
    return rows


def in_torch(run: Path, paths: list[str]) -> list[list[Any]]:
    """What a run says without its graph."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / run.name
        leave = shutil.ignore_patterns("graph", "bundle*", "evaluation", "last.ckpt")
        shutil.copytree(run, copy, ignore=leave)
        found = recame.load(copy).stream(paths, num_images=len(paths), checksums=True)
        return [said(each) for each in found]


def differences(run: list[list[Any]], bundle: list[list[Any]]) -> dict[str, Any]:
    """In how many images the two differ, and by how much."""
    words = ("class", "action", "reason", "candidates")
    told: dict[str, Any] = {
        word: sum(a[place] != b[place] for a, b in zip(run, bundle, strict=True))
        for place, word in enumerate(words)
    }
    for place, word in ((4, "unknown_score"), (5, "probabilities")):
        first, second = (np.array([row[place] for row in rows], float) for rows in (run, bundle))
        told[f"{word}_most"] = float(f"{np.abs(first - second).max():.2g}")
    return told


def cost(model: Predictor, found: list[Prediction]) -> dict[str, float]:
    """Milliseconds an image that deciding takes, by answers of which the features are known."""
    decider = model.decider
    probabilities = np.stack([each.probabilities for each in found])
    features = np.stack([each.features for each in found if each.features is not None])
    digests = [str(each.sha256) for each in found]
    none = Decider(decider.names, temperature=decider.temperature)
    kinds = {
        "no_policy": none,
        "policy": replace(decider, scorer=None),
        "policy_and_unknown": decider,
    }
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, each in kinds.items():
            began = time.perf_counter()
            for start in range(0, len(found), BATCH):
                part = slice(start, start + BATCH)
                each.decide(probabilities[part], None, digests[part], features=features[part])
            took[name].append(1e3 * (time.perf_counter() - began) / len(found))
    return {name: round(statistics.median(each), 4) for name, each in took.items()}


def tuning_s(model: Predictor, found: list[Prediction], target: np.ndarray) -> float:
    """Seconds of `tune` by scores that are there, all limits asked."""
    names, space = model.label_space.names, model.label_space
    logits = logits_of(np.stack([each.probabilities for each in found]), model.temperature)
    unknown = np.array([each.unknown_score for each in found])
    scored = Scored(logits, target, [each.image for each in found], None, unknown)
    limits = Limits.from_dict({"purity": 0.5})
    began = time.perf_counter()
    normal = space.normal or (model.policy and names[model.policy.normal or 0])
    tune_scores(scored, names, normal, limits, comparisons=12)
    return round(time.perf_counter() - began, 3)


def main() -> None:
    """Judge one run, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--bundle", type=Path, help="default: in the run")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--normal")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/agreement")
    options = parser.parse_args()
    console = Console()
    tune(options.run, options.calibration, normal=options.normal, console=console)
    bundle = options.bundle or options.run / "bundle-agreement"

    def decide(made: Path, named: Path) -> None:
        tune_export(made, options.run, named=named.absolute(), console=console)

    export_run(options.run, bundle, replace_bundle=True, finish=decide, console=console)
    folder = RunFolder.open(options.run, finished=True)
    table = recorded_data(folder, folder.load_config())
    table = table[table["split"] == "test"]
    paths = [str(path) for path in table["path"]]
    model, exported = recame.load(options.run), recame.load(bundle)
    found = list(model.stream(paths, num_images=len(paths), checksums=True, features=True))
    names = list(model.label_space.names)
    target = np.array([names.index(label) for label in table["label"]])
    torch_said, run_said = in_torch(options.run, paths), alone(options.run, paths)
    policies = {"run": model.policy, "bundle": exported.policy}
    told = {
        "run": options.run.name,
        "images": len(paths),
        "actions": dict(Counter(each.action for each in found)),
        "torch_and_graph": differences(torch_said, run_said),
        "run_and_bundle": differences(run_said, alone(bundle, paths)),
        "thresholds": {name: p and p.to_dict() for name, p in policies.items()},
        "ms_an_image": cost(model, found),
        "tune_s": tuning_s(model, found, target),
        "environment": environment(),
    }
    text = json.dumps(told, indent=1)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.run.name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
