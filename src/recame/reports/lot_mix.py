"""A lot's table of predictions, from which `recame tune` estimates the line's mix."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from recame.contracts import AnyPath, FloatArray
from recame.decisions.line_mix import LineMix, estimate_line, stated
from recame.decisions.prior_shift import Known
from recame.errors import CheckpointError, ConfigError
from recame.files import sha256
from recame.inference.training_prior import prior_of_run
from recame.names import command, in_words
from recame.reports.labelled import Judged
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions
from recame.runtime.bundle import find_bundle, open_bundle
from recame.runtime.opening import load
from recame.runtime.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Lot:
    """A model's predictions of a lot.

    Attributes:
        names: of the C classes.
        probabilities: (N, C) calibrated; NaN if an image could not be read.
        unknown_share: share of unknown images; None: not known.
        prior: (C,) class prior of the probabilities.
        source: the table, in words.
        sha256: of its file, or of the probabilities of one in memory.
    """

    names: tuple[str, ...]
    probabilities: FloatArray
    unknown_share: float | None
    prior: FloatArray
    source: str
    sha256: str

    @classmethod
    def read(cls, table: AnyPath | pd.DataFrame, model: Predictor, folder: Path) -> Lot:
        """Read a table that `recame predict` wrote with a model.

        Args:
            table: a CSV or Parquet file, or its DataFrame. Only a Parquet file says which model
                wrote it.
            model: the model, without decisions.
            folder: of the model.

        Raises:
            ConfigError: the class prior of the model's probabilities is not known, or another model
                wrote the table.
            DataError: the table cannot be read, or has other classes.
        """
        names = tuple(model.label_space.names)
        balanced = model.calibration is not None and model.calibration.balanced
        prior = np.full(len(names), 1 / len(names)) if balanced else spoken_prior(folder, names)
        found = load_predictions(table, names)
        if found.model not in ("", model.fingerprint) and found.model != _decided(folder):
            raise ConfigError(
                f"{in_words(table)} was predicted by another model than {folder}, or with "
                "decisions that it no longer has. Predict the lot again with this model: "
                f"{command('recame', 'predict', folder, 'LOT', '-o', in_words(table))}."
            )
        predictions = found.predictions
        read = np.isfinite(predictions.probabilities).all(1)
        unknown = _unknown_share(predictions.table[read])
        if isinstance(table, pd.DataFrame):
            source, digest = (
                in_words(table),
                hashlib.sha256(predictions.probabilities.tobytes()).hexdigest(),
            )
        else:
            source, digest = Path(table).name, sha256(Path(table))
        return cls(names, predictions.probabilities, unknown, prior, source, digest)

    def mix(self, found: Judged) -> LineMix:
        """Estimate the line's mix.

        Args:
            found: the calibration images, scored by the same model.

        Raises:
            ConfigError: the mix cannot be estimated from the lot.
        """
        # `counted` works on logits; here they hold the probabilities.
        images = replace(found.scored, logits=found.probabilities).counted()
        return estimate_line(
            self.probabilities,
            self.prior,
            Known(images.logits, images.target),
            self.names,
            unknown_share=self.unknown_share,
            source=self.source,
            sha256=self.sha256,
        )


def spoken_prior(folder: Path, names: tuple[str, ...]) -> FloatArray:
    """The class prior (C,) of the probabilities of a run or a bundle, from its training.

    Class biases that were fitted later (`Calibration.balanced`) replace it by equal shares.

    Raises:
        ConfigError: the prior is not known.
    """
    if find_bundle(folder):
        facts = open_bundle(folder).document.get("training_prior")
        if facts is None:
            raise ConfigError(
                f"line_mix: estimate: the bundle {folder} was exported by a version that did not "
                "note with which class shares it was trained, so the mix cannot be estimated: "
                f"export it again, or state the mix, for instance {stated(names)}."
            )
        prior, unknown = facts["prior"], facts["unknown"]
    else:
        run = RunFolder.open(folder)
        known = prior_of_run(run, run.load_config())
        prior, unknown = known.prior, known.unknown
    if unknown:
        raise ConfigError(
            f"line_mix: estimate: it is not known for which class shares the probabilities of "
            f"{folder} hold ({unknown}), so the mix cannot be estimated: state it, for "
            f"instance {stated(names)}."
        )
    return np.array(prior, np.float64)


def _decided(folder: Path) -> str:
    """The fingerprint of a model with the decisions that it has now."""
    with suppress(CheckpointError):  # damaged decisions were not used
        return load(folder).fingerprint
    return ""


def _unknown_share(rows: pd.DataFrame) -> float | None:
    """Share of unknown images among those that could be read; None without scores for it."""
    scores = rows.get("unknown_score")
    if scores is None or "action" not in rows or not np.isfinite(scores.to_numpy(float)).any():
        return None
    return float((rows["action"] == "unknown").mean())
