"""How many defects escape at the overkill of a line, by what the defects weigh in the score.

    python benchmarks/decisions/operating_point.py RUN [RUN ...] --normal NAME [--out FILE]

Each RUN is judged on `--split` (`recame evaluate RUN`); the threshold is laid by the very images
that are counted, alike for all scores, so that it ranks scores and promises nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from recame.decisions.scored import logits_of, release_scores
from recame.files import write_text
from recame.machine import environment
from recame.reports.judged_images import PREDICTIONS
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions

OVERKILL = (0.01, 0.02, 0.05, 0.1)
#: A class of n training images weighs n to this power: 0 all alike, 1 as they come.
POWERS = (0.0, 0.5, 1.0)


def judged(run: Path, split: str, normal: str) -> dict[str, Any]:
    """Escapes in %, of the defects as they come in training and as the mean of the classes."""
    folder = RunFolder.open(run)
    names, found, _ = load_predictions(folder.evaluation_dir(split) / PREDICTIONS)
    counts = np.array(json.loads((run / "label_space.json").read_text())["counts"], float)
    own = list(names).index(normal)
    known = found.target >= 0
    probabilities, target = found.probabilities[known].astype(float), found.target[known]
    support = np.bincount(target, minlength=len(names))
    defects = (np.arange(len(names)) != own) & (support > 0)
    rows = {}
    for power in POWERS:
        scores = release_scores(logits_of(probabilities), own, np.maximum(counts, 1) ** power)
        ok = np.sort(scores[target == own])
        for share in OVERKILL:
            passes = scores >= ok[int(share * len(ok))]
            of_class = np.bincount(target, passes, minlength=len(names)) / np.maximum(support, 1)
            as_they_come = np.average(of_class[defects], weights=counts[defects])
            rows[f"power {power:g}, overkill {share:.0%}"] = {
                "escapes, as in training": round(100 * float(as_they_come), 2),
                "escapes, mean of the classes": round(100 * float(of_class[defects].mean()), 2),
            }
    called = probabilities[target == own].argmax(1)
    return {"overkill of the call": round(100 * float((called != own).mean()), 2), **rows}


def main() -> None:
    """Judge runs and print a row each and their mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--normal", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    found = [judged(run, words.split, words.normal) for run in words.runs]
    call = [one.pop("overkill of the call") for one in found]
    means = {
        key: {what: round(float(np.mean([one[key][what] for one in found])), 2) for what in row}
        for key, row in found[0].items()
    }
    told = {
        "runs": len(found),
        "split": words.split,
        "overkill of the call": round(float(np.mean(call)), 2),
        **means,
        "machine": environment(),
    }
    text = json.dumps(told, indent=1) + "\n"
    if words.out is not None:
        write_text(words.out, text)
    print(text)


if __name__ == "__main__":
    main()
