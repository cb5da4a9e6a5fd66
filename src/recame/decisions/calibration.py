"""What a model's probabilities go through: fitted once, kept, applied wherever they are read."""

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

#: The first knew a temperature, the second a policy beside it, the third biases of classes, the
#: fourth a release by the weights of defects.
DECISIONS_SCHEMA = 4

#: What a richer map adds to a temperature where it is written.
_OF_CLASSES = ("method", "scale", "bias")


@dataclass(frozen=True)
class Calibration:
    """What the ensemble's probabilities go through, as `decisions.json` and a bundle keep it.

    Attributes:
        temperature: T of `calibrated`; of a richer map that of its mean scale (`Calibrator`).
            T times the log of what `apply` gives is what decisions are made by.
        fitted_on: `split` (None without one), its `images`, and what the answers were of: `views`,
            `weighting`, `weights_sha256`.
        note: why it is not what the images ask for; mostly empty.
        calibrator: a bias for each class, or a scale besides; None: one temperature is all.
    """

    temperature: float
    fitted_on: dict[str, Any]
    note: str = ""
    calibrator: Calibrator | None = field(default=None, repr=False)

    @property
    def balanced(self) -> bool:
        """Whether probabilities speak of equally frequent classes, whatever the loss aimed at.

        A bias for each class makes them so; with a temperature they speak of the frequencies that
        the network's loss aims at (`decisions.prior_shift` asks for those).
        """
        return self.calibrator is not None

    def holds_for(self, answers: Mapping[str, object]) -> bool:
        """Whether it was fitted to answers of these views, weighting and weights."""
        return all(self.fitted_on.get(name) == value for name, value in answers.items())

    def apply(self, probabilities: Array) -> Array:
        """Calibrate the ensemble's probabilities, (N, C).

        An answer that holds all classes for equally probable stays one, whatever their biases: so
        it looks where a graph has lost what was no number, and whoever decides has to see that.
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
        """In words, for the engineer."""
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
        """Ready for JSON; of a temperature what every version reads."""
        plain = {
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "note": self.note,
        }
        return plain if self.calibrator is None else {**plain, **self.calibrator.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], num_classes: int) -> Calibration:
        """Read what `to_dict` gave.

        Args:
            values: of JSON.
            num_classes: C of the probabilities that it will be asked for.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: it was edited or damaged.
        """
        left = dict(values)
        of_classes = {name: left.pop(name) for name in _OF_CLASSES if name in left}
        temperature = float(left.pop("temperature"))
        read = cls(temperature, dict(left.pop("fitted_on")), str(left.pop("note", "")))
        if left or not isinstance(read.fitted_on.get("images", 0), int):
            unknown = left or read.fitted_on
            raise ValueError(f"{unknown} does not tell what calibrates, and what it was fitted to")
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
                f"{len(calibrator.scale)} biases and scales of classes for probabilities of "
                f"{num_classes} classes"
            )
        if not math.isclose(temperature, calibrator.temperature, rel_tol=1e-6):
            raise ValueError(
                f"temperature {temperature} is not that of the scales beside it, "
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
    """Fit what calibrates to labelled images that chose no weights.

    Biases and scales of classes where the images pay for them (`fit_calibrator`), else one
    temperature within `BELIEVED`, in whose fit every image counts alike.

    Args:
        predictions: of the split, not calibrated; None where there is no such split.
        answers: what they are of: `views`, `weighting`, `weights_sha256`.
        split: its name.
        plain: why a temperature is all that is fitted (`why_plain`); empty where it need not be.
        groups: (N,) what belongs together, and so never lies on both sides of a fold.
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
        notes.insert(0, f"they ask for {fitted:.3g}, too few errors or too many to believe")
    return Calibration(round(bounded, 6), fitted_on, "; ".join(notes))


def why_plain(normal: str | None, *, set_aside: bool) -> str:
    """Why `val` may be asked for a temperature alone; empty where it may be asked for more.

    Biases change which class an image is called, and so which images are released: what they were
    fitted to can promise nothing of that any more. A temperature changes neither.

    Args:
        normal: the class that may be released; None: none was named.
        set_aside: whether other images of the run will promise (`data.calibrate`).
    """
    if normal is None or set_aside:
        return ""
    return (
        "a temperature alone, since they may have to promise limits; data.calibrate sets others "
        "aside for that"
    )


def decided_by(answers: Mapping[str, object], calibration: Calibration | None) -> dict[str, object]:
    """What tells scores from others, so that decisions hold for these alone.

    A temperature has no part in it, since scores are those before it; biases and scales have.

    Args:
        answers: what tells the network's answers from others.
        calibration: what they go through.
    """
    found = dict(answers)
    if calibration is not None and calibration.calibrator is not None:
        text = json.dumps(calibration.calibrator.to_dict(), sort_keys=True)
        found["calibration"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def schema_of(values: Mapping[str, Any]) -> int:
    """The oldest schema that knows all that a `decisions.json` holds: versions before read it."""
    calibration = values.get("calibration")
    policy = values.get("policy")
    if isinstance(policy, dict) and "defect_weights" in policy:
        return 4
    if isinstance(calibration, dict) and not calibration.keys().isdisjoint(_OF_CLASSES):
        return 3
    return 2 if "policy" in values or calibration is None else 1


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write it into `decisions.json`, whole or not at all; a policy in it stays."""
    kept: dict[str, Any] = {}
    with adding_to(path):
        if path.exists():
            with suppress(CheckpointError):  # damaged: what was in it is lost
                kept = read_json(path, newest=DECISIONS_SCHEMA)
        values = {**kept, "calibration": calibration.to_dict()}
        write_json(path, {**values, "schema": schema_of(values)})


def load_calibration(
    path: Path, answers: Mapping[str, object], num_classes: int
) -> Calibration | None:
    """What `decisions.json` holds for a run's answers as they are now.

    Args:
        path: of the file, which a run of an older version lacks.
        answers: the run's `views`, `weighting` and `weights_sha256` now.
        num_classes: C.

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
        calibration = Calibration.from_dict(values["calibration"], num_classes)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}): it was edited or damaged. Remove it; `recame "
            "export` fits the calibration anew."
        ) from error
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


def calibrated_predictions(
    predictions: Predictions, calibration: Calibration | None
) -> Predictions:
    """Predictions with the ensemble's probabilities calibrated; each expert's own stay."""
    if calibration is None:
        return predictions
    return replace(predictions, probabilities=calibration.apply(predictions.probabilities))
