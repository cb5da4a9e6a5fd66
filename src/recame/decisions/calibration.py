"""How sure a model may be: the temperature, fitted once and applied wherever scores are read."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import Array, FloatArray, IntArray, Predictions
from recame.errors import CheckpointError
from recame.files import read_json, write_json
from recame.runs.marker import read_marker
from recame.runs.merged_json import adding_to

logger = logging.getLogger(__name__)

DECISIONS_SCHEMA = 2

#: Where `fit_temperature` looks.
TEMPERATURE_RANGE = (0.05, 20.0)
#: Where a temperature is believed; a validation split without an error asks for 0.
BELIEVED = (0.25, 4.0)


@dataclass(frozen=True)
class Calibration:
    """The temperature of a run's ensemble, as `decisions.json` keeps it.

    Attributes:
        temperature: T of `calibrated`.
        fitted_on: `split` (None without one), its `images`, and what the answers were of: `views`,
            `weighting`, `weights_sha256`.
        note: why it is not what the images ask for; mostly empty.
    """

    temperature: float
    fitted_on: dict[str, Any]
    note: str = ""

    def holds_for(self, answers: Mapping[str, object]) -> bool:
        """Whether it was fitted to answers of these views, weighting and weights."""
        return all(self.fitted_on.get(name) == value for name, value in answers.items())

    def apply(self, probabilities: Array) -> Array:
        """Calibrate the ensemble's probabilities, (N, C)."""
        return calibrated(probabilities, self.temperature)

    def sentence(self) -> str:
        """In words, for the engineer."""
        split = self.fitted_on["split"]
        if split is None:
            return f"Temperature {self.temperature:g}: {self.note}."
        text = f"Temperature {self.temperature:.3f}, from {self.fitted_on['images']:,} images of"
        return f"{text} {split} ({self.note})." if self.note else f"{text} {split}."


def fit_calibration(
    predictions: Predictions | None, answers: Mapping[str, object], split: str = "val"
) -> Calibration:
    """Fit the temperature on labelled images that chose no weights, within `BELIEVED`.

    Args:
        predictions: of the split, not calibrated; None where there is no such split.
        answers: what they are of: `views`, `weighting`, `weights_sha256`.
        split: its name.
    """
    if predictions is None:
        note = f"the run has no {split} split to calibrate it on"
        return Calibration(1.0, {"split": None, "images": 0, **answers}, note)
    scores = np.log(np.maximum(predictions.probabilities.astype(np.float64), 1e-30))
    fitted = fit_temperature(scores, predictions.target)
    bounded = float(np.clip(fitted, *BELIEVED))
    note = ""
    if bounded != fitted:
        note = f"they ask for {fitted:.3g}, too few errors or too many to believe"
    fitted_on = {"split": split, "images": len(predictions), **answers}
    return Calibration(round(bounded, 6), fitted_on, note)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write it into `decisions.json`, whole or not at all; a policy in it stays."""
    kept: dict[str, Any] = {}
    with adding_to(path):
        if path.exists():
            with suppress(CheckpointError):  # damaged: what was in it is lost
                kept = read_json(path, newest=DECISIONS_SCHEMA)
        # The schema before knew calibrations alone, and its versions can read one.
        schema = DECISIONS_SCHEMA if "policy" in kept else 1
        write_json(path, {**kept, "schema": schema, "calibration": asdict(calibration)})


def load_calibration(path: Path, answers: Mapping[str, object]) -> Calibration | None:
    """What `decisions.json` holds for a run's answers as they are now.

    Args:
        path: of the file, which a run of an older version lacks.
        answers: the run's `views`, `weighting` and `weights_sha256` now.

    Returns:
        None without a file, or where it was fitted to other answers. Both are said, but of a run
        of a version that wrote no such file.

    Raises:
        CheckpointError: the file is damaged or of a newer schema.
    """
    if not path.exists():
        _tell_lost(path)
        return None
    values = read_json(path, newest=DECISIONS_SCHEMA)
    if "calibration" not in values and ("policy" in values or "exported" in values):
        return None  # of a run of an older version, which was tuned since
    try:
        read = Calibration(**values["calibration"])
        calibration = replace(
            read, temperature=float(read.temperature), fitted_on=dict(read.fitted_on)
        )
        usable = 0 < calibration.temperature < math.inf
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}): it was edited or damaged. Remove it; `recame "
            "export` fits the temperature anew."
        ) from error
    if not usable:
        raise CheckpointError(
            f"{path}: temperature {calibration.temperature} is not above 0, so no probability "
            "could be calibrated. Remove it; `recame export` fits the temperature anew."
        )
    if calibration.holds_for(answers):
        return calibration
    changed = [
        f"{name} {str(calibration.fitted_on.get(name))[:12]} then, {str(value)[:12]} now"
        for name, value in answers.items()
        if calibration.fitted_on.get(name) != value
    ]
    logger.warning(
        "%s was fitted to other answers (%s), so it is left out and probabilities are as the "
        "network gives them. `recame export` fits it anew.",
        path,
        "; ".join(changed),
    )
    return None


def _tell_lost(path: Path) -> None:
    """Warn where a finished run had the file: who keeps hashes of its tables wrote one too."""
    marker = path.with_name("run.json")
    if not marker.exists():
        return
    facts = read_marker(marker)
    if facts.get("state") == "finished" and "tables" in facts:
        logger.warning(
            "%s is missing, which the run's training wrote: probabilities are as the network gives "
            "them, not calibrated, so that confidences and thresholds mean something else than "
            "before. Take it from a copy of the run; `recame export` fits it anew.",
            path,
        )


def fit_temperature(
    logits: FloatArray, target: IntArray, weights: FloatArray | None = None
) -> float:
    """Find the temperature T that makes softmax(logits / T) most likely (Guo et al., ICML 2017).

    The likelihood is concave in 1 / T; its slope is bisected over log T. Where every
    image is called right (or wrong), the answer lies on the edge of `TEMPERATURE_RANGE`.

    Args:
        logits: (N, C) logits or log-probabilities; which of the two makes no difference. Rows that
            are no numbers are left out.
        target: (N,) class indices; rows with -1 are left out.
        weights: (N,) how much each image counts; None: all the same.

    Returns:
        T > 0; above 1 the model was too sure. 1.0 when no row has a label.
    """
    # The largest is NaN where any is; -inf, a probability of exactly 0, is a number.
    known = (target >= 0) & np.isfinite(logits.max(1, initial=-np.inf))
    if not known.any():
        return 1.0
    scores = logits[known].astype(np.float64)
    # A probability of exactly 0 has no logarithm; its class stays hopeless, and finite.
    scores = np.maximum(scores - scores.max(1, keepdims=True), -1e4)
    own = scores[np.arange(len(scores)), target[known]]
    counted = None if weights is None else weights[known]

    low, high = np.log(TEMPERATURE_RANGE)
    while high - low > 1e-5:
        middle = (low + high) / 2
        powers = np.exp(scores * np.exp(-middle))
        # How the loss grows with 1 / T.
        slopes = (powers * scores).sum(1) / powers.sum(1) - own
        slope = slopes.mean() if counted is None else counted @ slopes
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def calibrated(probabilities: Array, temperature: float) -> Array:
    """`softmax(log(probabilities) / temperature)`, (N, C)."""
    if temperature == 1 or not probabilities.size:
        return probabilities
    scores = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)) / temperature
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def calibrated_predictions(
    predictions: Predictions, calibration: Calibration | None
) -> Predictions:
    """Predictions with the ensemble's probabilities calibrated; each expert's own stay."""
    if calibration is None:
        return predictions
    return replace(predictions, probabilities=calibration.apply(predictions.probabilities))
