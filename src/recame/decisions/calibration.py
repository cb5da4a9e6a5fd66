"""Calibration of a model's probabilities: fitted once, kept, applied wherever they are read."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import Array, Predictions
from recame.decisions.calibrators import Calibrator, fit_calibrator
from recame.decisions.temperature import BELIEVED, calibrated, fit_temperature
from recame.errors import CheckpointError
from recame.files import read_json, write_json
from recame.runs.marker import read_marker
from recame.runs.merged_json import adding_to

logger = logging.getLogger(__name__)

#: Schema 1 holds a temperature, 2 also a policy, 3 also class biases, 4 also defect weights for the
#: release.
DECISIONS_SCHEMA = 4

#: Keys that a calibration with class biases or scales adds to the temperature.
_OF_CLASSES = ("method", "scale", "bias")


@dataclass(frozen=True)
class Calibration:
    """The calibration of the ensemble's probabilities, as `decisions.json` and a bundle keep it.

    Attributes:
        temperature: T of `calibrated`; with a calibrator, that of its mean scale (`Calibrator`).
            Decisions use T times the log of the probabilities that `apply` returns.
        fitted_on: `split` (None without one), its number of `images`, and which outputs it was
            fitted to: `views`, `weighting`, `weights_sha256`.
        note: why the calibration differs from the best fit; usually empty.
        calibrator: a bias for each class, or a bias and a scale; None: only a temperature.
    """

    temperature: float
    fitted_on: dict[str, Any]
    note: str = ""
    calibrator: Calibrator | None = field(default=None, repr=False)

    @property
    def balanced(self) -> bool:
        """Whether the probabilities are those of equally frequent classes, whatever the loss.

        They are with a bias for each class. With only a temperature, their class prior is the one
        that the network's loss assumes (`decisions.prior_shift` needs to know it).
        """
        return self.calibrator is not None

    def holds_for(self, answers: Mapping[str, object]) -> bool:
        """Whether it was fitted to outputs with these views, weighting and weights."""
        return all(self.fitted_on.get(name) == value for name, value in answers.items())

    def apply(self, probabilities: Array) -> Array:
        """Calibrate the ensemble's probabilities, (N, C).

        Equal probabilities of all classes stay equal, whatever the biases: some graphs turn NaN
        into them, and the decisions have to notice that.
        """
        if self.calibrator is None:
            return calibrated(probabilities, self.temperature)
        if not probabilities.size:
            return probabilities
        tiny = np.finfo(np.float32).tiny
        found = self.calibrator.apply(np.log(np.maximum(probabilities, tiny).astype(np.float64)))
        alike = probabilities.max(1, keepdims=True) == probabilities.min(1, keepdims=True)
        return np.where(alike, probabilities, found).astype(probabilities.dtype)

    def sentence(self) -> str:
        """Describe the calibration in words."""
        split, images = self.fitted_on.get("split"), self.fitted_on.get("images", 0)
        if split is None:
            return f"Temperature {self.temperature:g}: {self.note}."
        what = f"Temperature {self.temperature:.3f}"
        if self.calibrator is not None:
            scaled = self.calibrator.method == "vector"
            what = "A scale" if scaled else what
            what += " and a bias for each class"
        text = f"{what}, from {images:,} images of {split}"
        text = f"{text} ({self.note})" if self.note else text
        told = ": probabilities are those of equally frequent classes" if self.balanced else ""
        return f"{text}{told}."

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON; a temperature is written so that every version reads it."""
        plain = {
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "note": self.note,
        }
        return plain if self.calibrator is None else {**plain, **self.calibrator.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], num_classes: int) -> Calibration:
        """Read what `to_dict` returned.

        Args:
            values: read from JSON.
            num_classes: C of the probabilities that it will calibrate.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: the values were edited or damaged.
        """
        left = dict(values)
        of_classes = {name: left.pop(name) for name in _OF_CLASSES if name in left}
        temperature = float(left.pop("temperature"))
        read = cls(temperature, dict(left.pop("fitted_on")), str(left.pop("note", "")))
        if left or not isinstance(read.fitted_on.get("images", 0), int):
            unknown = left or read.fitted_on
            raise ValueError(f"{unknown} does not say what calibrates and what it was fitted to")
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature {temperature} is not above 0, so no probability could be calibrated"
            )
        if not of_classes:
            return read
        try:
            calibrator = Calibrator.from_dict(of_classes)
        except CheckpointError as error:
            raise ValueError(str(error)) from error
        if len(calibrator.scale) != num_classes:
            raise ValueError(
                f"{len(calibrator.scale)} class biases and scales for probabilities of "
                f"{num_classes} classes"
            )
        if not math.isclose(temperature, calibrator.temperature, rel_tol=1e-6):
            raise ValueError(
                f"temperature {temperature} does not agree with that of the scales, "
                f"{calibrator.temperature}"
            )
        return replace(read, calibrator=calibrator)


def fit_calibration(
    predictions: Predictions | None,
    answers: Mapping[str, object],
    split: str = "val",
    *,
    plain: str = "",
    groups: Sequence[Hashable] | None = None,
) -> Calibration:
    """Fit the calibration to labelled images that chose no weights.

    Fits class biases and scales if they pay off on the images (`fit_calibrator`), else one
    temperature within `BELIEVED`; in the temperature's fit every image counts equally.

    Args:
        predictions: of the split, not calibrated; None if there is no such split.
        answers: which outputs they are: `views`, `weighting`, `weights_sha256`.
        split: its name.
        plain: why only a temperature is fitted (`why_plain`); empty if more may be fitted.
        groups: (N,) group of each image; the images of a group stay in one fold.
    """
    if predictions is None:
        note = f"the run has no {split} split to calibrate it on"
        return Calibration(1.0, {"split": None, "images": 0, **answers}, note)
    scores = np.log(np.maximum(predictions.probabilities.astype(np.float64), 1e-30))
    fitted_on = {"split": split, "images": len(predictions), **answers}
    if not plain:
        found = fit_calibrator(scores, predictions.target, groups)
        if found.method != "temperature":
            return Calibration(found.temperature, fitted_on, calibrator=found)
    fitted = fit_temperature(scores, predictions.target)
    bounded = float(np.clip(fitted, *BELIEVED))
    notes = [plain] if plain else []
    if bounded != fitted:
        notes.insert(0, f"the best fit is {fitted:.3g}, from too few or too many errors to trust")
    return Calibration(round(bounded, 6), fitted_on, "; ".join(notes))


def why_plain(normal: str | None, *, set_aside: bool) -> str:
    """Return why only a temperature is fitted on `val`; empty if biases may be fitted too.

    Biases change the predicted class of images, and so which images are released. The images they
    were fitted to can then promise no limits. A temperature changes neither.

    Args:
        normal: the class that may be released; None: none was named.
        set_aside: whether the run has other images for promises (`data.calibrate`).
    """
    if normal is None or set_aside:
        return ""
    return (
        "only a temperature, since these images may have to promise limits; data.calibrate sets "
        "other images aside for that"
    )


def decided_by(answers: Mapping[str, object], calibration: Calibration | None) -> dict[str, object]:
    """Return what identifies scores; decisions hold only for the scores they were fitted to.

    Class biases and scales are part of it. A temperature is not, since scores are taken before it.

    Args:
        answers: what identifies the network's outputs.
        calibration: their calibration.
    """
    found = dict(answers)
    if calibration is not None and calibration.calibrator is not None:
        text = json.dumps(calibration.calibrator.to_dict(), sort_keys=True)
        found["calibration"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def schema_of(values: Mapping[str, Any]) -> int:
    """The oldest schema that has all keys of a `decisions.json`, so that older versions read it."""
    calibration = values.get("calibration")
    policy = values.get("policy")
    if isinstance(policy, dict) and "defect_weights" in policy:
        return 4
    if isinstance(calibration, dict) and not calibration.keys().isdisjoint(_OF_CLASSES):
        return 3
    return 2 if "policy" in values or calibration is None else 1


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration into `decisions.json`, whole or not at all; a policy in it stays."""
    kept: dict[str, Any] = {}
    with adding_to(path):
        if path.exists():
            with suppress(CheckpointError):  # a damaged file is replaced
                kept = read_json(path, newest=DECISIONS_SCHEMA)
        values = {**kept, "calibration": calibration.to_dict()}
        write_json(path, {**values, "schema": schema_of(values)})


def load_calibration(
    path: Path, answers: Mapping[str, object], num_classes: int
) -> Calibration | None:
    """Load the calibration from `decisions.json`, if it fits the run's present outputs.

    Args:
        path: of the file, which a run of an older version lacks.
        answers: the run's present `views`, `weighting` and `weights_sha256`.
        num_classes: C.

    Returns:
        None without a file, or if it was fitted to other outputs. A warning says so, except for a
        run of a version that wrote no such file.

    Raises:
        CheckpointError: the file is damaged or of a newer schema.
    """
    if not path.exists():
        _tell_lost(path)
        return None
    values = read_json(path, newest=DECISIONS_SCHEMA)
    if "calibration" not in values and ("policy" in values or "exported" in values):
        return None  # an older version's run that was tuned later
    try:
        calibration = Calibration.from_dict(values["calibration"], num_classes)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}): it was edited or damaged. Remove it; `recame "
            "export` fits the calibration again."
        ) from error
    if calibration.holds_for(answers):
        return calibration
    changed = [
        f"{name} {str(calibration.fitted_on.get(name))[:12]} then, {str(value)[:12]} now"
        for name, value in answers.items()
        if calibration.fitted_on.get(name) != value
    ]
    logger.warning(
        "%s was fitted to other outputs of the model (%s), so it is not used and probabilities are "
        "not calibrated. `recame export` fits it again.",
        path,
        "; ".join(changed),
    )
    return None


def _tell_lost(path: Path) -> None:
    """Warn if a finished run has lost the file: versions that hash the run's tables wrote it."""
    marker = path.with_name("run.json")
    if not marker.exists():
        return
    facts = read_marker(marker)
    if facts.get("state") == "finished" and "tables" in facts:
        logger.warning(
            "%s is missing, which the run's training wrote: probabilities are not calibrated, so "
            "confidences and thresholds mean something else than before. Take it from a copy of "
            "the run; `recame export` fits it again.",
            path,
        )


def calibrated_predictions(
    predictions: Predictions, calibration: Calibration | None
) -> Predictions:
    """Calibrate the ensemble's probabilities in predictions; the experts' stay as they are."""
    if calibration is None:
        return predictions
    return replace(predictions, probabilities=calibration.apply(predictions.probabilities))
