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
    """What a model has said of a lot.

    Attributes:
        names: of the C classes.
        probabilities: (N, C) calibrated; NaN where an image could not be read.
        unknown_share: of the images that are unlike anything known; None: nothing told it.
        prior: (C,) that the probabilities speak of.
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
            table: CSV or Parquet, or what was read of one; which of two models of the same classes
                it is of, Parquet alone tells.
            model: which decides nothing.
            folder: of the model.

        Raises:
            ConfigError: nothing says which prior the model's probabilities speak of, or the table
                is of another model.
            DataError: it cannot be read, or is of other classes.
        """
        names = tuple(model.label_space.names)
        balanced = model.calibration is not None and model.calibration.balanced
        prior = np.full(len(names), 1 / len(names)) if balanced else spoken_prior(folder, names)
        found = load_predictions(table, names)
        if found.model not in ("", model.fingerprint) and found.model != _decided(folder):
            raise ConfigError(
                f"{in_words(table)} was predicted by another model than {folder}, or by decisions "
                "that it no longer has, and says nothing of what this one sees: predict the lot "
                "again, "
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
        """The line's mix.

        Args:
            found: the images that calibrate, as the same model scores them.

        Raises:
            ConfigError: the lot does not tell it.
        """
        # Those that count, by their probabilities in the place of logits.
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
    """The prior (C,) that the probabilities of a run or a bundle speak of, by its training.

    Biases of classes that were fitted later (`Calibration.balanced`) replace it by equal shares.

    Raises:
        ConfigError: nothing says it.
    """
    if find_bundle(folder):
        facts = open_bundle(folder).document.get("training_prior")
        if facts is None:
            raise ConfigError(
                f"line_mix: estimate: the bundle {folder} was exported by a version that did not "
                "note by which shares of the classes it was trained, so a lot's predictions tell "
                f"no mix: export again, or state the mix, for instance {stated(names)}."
            )
        prior, unknown = facts["prior"], facts["unknown"]
    else:
        run = RunFolder.open(folder)
        known = prior_of_run(run, run.load_config())
        prior, unknown = known.prior, known.unknown
    if unknown:
        raise ConfigError(
            f"line_mix: estimate: nothing says which shares of the classes the probabilities of "
            f"{folder} speak of ({unknown}), so a lot's predictions tell no mix: state it, for "
            f"instance {stated(names)}."
        )
    return np.array(prior, np.float64)


def _decided(folder: Path) -> str:
    """The fingerprint of a model with the decisions that it has now."""
    with suppress(CheckpointError):  # what is damaged has decided nothing
        return load(folder).fingerprint
    return ""


def _unknown_share(rows: pd.DataFrame) -> float | None:
    """Of the images that could be read; None where nothing said how strange they are."""
    scores = rows.get("unknown_score")
    if scores is None or "action" not in rows or not np.isfinite(scores.to_numpy(float)).any():
        return None
    return float((rows["action"] == "unknown").mean())
