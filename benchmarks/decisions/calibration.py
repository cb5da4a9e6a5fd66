"""What biases and scales of classes win on real runs: fitted on `val`, judged on `test`.

    python benchmarks/decisions/calibration.py RUN [RUN ...] --out FILE

Of each finished run, by its own answers: as the network gives them (`none`), by the temperature
that training fits (`plain`), by each map of `decisions.calibrators`, in whose fit every class
weighs alike, and by the one that is `chosen`. Log loss and balanced accuracy count every class
alike; `ece` counts every image of `test` alike, `balanced_ece` every class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import FloatArray, IntArray, Predictions
from recame.data.file_groups import group_of_each
from recame.decisions.calibration import Calibration, fit_calibration
from recame.decisions.calibrators import METHODS, Calibrator, fit_method
from recame.files import write_json
from recame.inference.finished_run import (
    images_to_judge,
    open_finished,
    predict_run,
    recorded_data,
)
from recame.machine import environment
from recame.metrics.calibration import expected_calibration_error
from recame.metrics.statistics import class_means
from recame.progress import silent


def balanced_ece(probabilities: FloatArray, target: IntArray, bins: int = 15) -> float:
    """The expected calibration error of a set in which all classes are equally frequent.

    Args:
        probabilities: (N, C).
        target: (N,) class indices.
        bins: as of `expected_calibration_error`.

    Examples:
        Three images of a class that are called right, and one of another that is not, all with 0.8:

        >>> sure = np.array([[0.8, 0.2]] * 4)
        >>> target = np.array([0, 0, 0, 1])
        >>> round(expected_calibration_error(sure, target), 3)
        0.05
        >>> round(balanced_ece(sure, target), 3)
        0.3
    """
    images = np.bincount(target)
    weights = 1 / (np.count_nonzero(images) * images[target])
    confidence, right = probabilities.max(1), probabilities.argmax(1) == target
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(place, weights * (right - confidence), bins)).sum())


def judged(probabilities: FloatArray, target: IntArray) -> dict[str, float]:
    """What calibrated probabilities (N, C) of labelled images are worth."""
    likely = probabilities.astype(np.float64)
    own = np.take_along_axis(likely, target[:, None], 1)[:, 0]
    found = {
        "balanced_log_loss": class_means(-np.log(np.maximum(own, 1e-12)), target).mean(),
        "ece": expected_calibration_error(likely, target),
        "balanced_ece": balanced_ece(likely, target),
        "balanced_accuracy": class_means(likely.argmax(1) == target, target).mean(),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def rows(
    val: Predictions, test: Predictions, groups: list[Any] | None = None
) -> list[dict[str, Any]]:
    """A row for each way to calibrate the answers of a run."""
    scores = np.log(np.maximum(val.probabilities.astype(np.float64), 1e-30))
    fitted = {name: fit_method(scores, val.target, name) for name in METHODS}
    ways = {
        "none": Calibration(1.0, {}),
        "plain": fit_calibration(val, {}, plain="asked for"),
        **{name: _of(found) for name, found in fitted.items()},
        "chosen": fit_calibration(val, {}, groups=groups),
    }
    known = test.target >= 0
    target = test.target[known]
    before = test.probabilities[known].argmax(1)
    return [
        {
            "way": name,
            "method": "temperature" if way.calibrator is None else way.calibrator.method,
            "temperature": round(way.temperature, 4),
            "called_otherwise": round(float((after.argmax(1) != before).mean()), 5),
            **judged(after, target),
        }
        for name, way in ways.items()
        for after in [way.apply(test.probabilities[known])]
    ]


def _of(found: Calibrator) -> Calibration:
    return Calibration(found.temperature, {}, calibrator=found)


def of_run(run: Path) -> dict[str, Any]:
    """A finished run's rows, and how many images of each class there are."""
    folder, config, loaded = open_finished(run)
    space = loaded.label_space
    data = images_to_judge(recorded_data(folder, config), config, loaded, "test", silent)
    predicted = {
        split: predict_run(folder, config, loaded, data, split, silent, features=False)
        for split in ("val", "test")
    }
    val, test = predicted["val"], predicted["test"]
    images = {
        split: np.bincount(found.target[found.target >= 0], minlength=len(space.names)).tolist()
        for split, found in predicted.items()
    }
    return {
        "run": run.name,
        "classes": list(space.names),
        "normal": space.normal,
        "train": list(space.counts),
        **images,
        "rows": rows(val, test, group_of_each(val.table, config.data.group_by)),
    }


def main() -> None:
    """Judge runs, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found = []
    for run in asked.runs:
        found.append(of_run(run))
        print(json.dumps(found[-1], indent=1))
    write_json(asked.out, {"environment": environment(), "runs": found})


if __name__ == "__main__":
    main()
