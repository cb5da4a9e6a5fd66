"""Apply a run's decisions to a split: rows for the predictions table, and their results."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from recame.config import Config
from recame.contracts import AnyPath, Predictions
from recame.data.decode import near_black
from recame.data.paged_file import content_sha256
from recame.decisions.actions import Policy
from recame.decisions.calibration import Calibration, decided_by, load_calibration
from recame.decisions.document import (
    KeptPolicy,
    last_tuning,
    load_policy,
    note_look,
    tuned_share,
)
from recame.decisions.outcome import Outcome, outcome_of
from recame.decisions.policy import Decider, without_products
from recame.errors import ConfigError
from recame.label_space import LabelSpace
from recame.machine import usable_cores
from recame.names import command
from recame.reports.labelled import content_of
from recame.runs.folder import RunFolder
from recame.runtime.predictor import Predictor

if TYPE_CHECKING:  # it imports torch, which promises of a bundle do not need
    from recame.data.dataset import InspectionSet


class DecidedSplit(NamedTuple):
    """The decisions on the images of a split.

    Attributes:
        rows: N rows of `action, reason, note, candidates, sha256`, for the predictions table.
        outcome: their results by the labels; None if the run has no decisions of its own.
        tuned_by: share of these images to which the decisions were fitted.
    """

    rows: pd.DataFrame
    outcome: Outcome | None
    tuned_by: float = 0.0


class KeptDecisions(NamedTuple):
    """The parts of `decisions.json` that hold for a run's outputs with its present settings.

    Attributes:
        calibration: of the probabilities; None: they are not calibrated.
        policy: fitted by `recame tune`; None: there is none.
    """

    calibration: Calibration | None
    policy: KeptPolicy | None

    @classmethod
    def of(cls, folder: RunFolder, config: Config) -> KeptDecisions:
        """Load them from a run.

        Raises:
            CheckpointError: they are damaged.
        """
        path, names = folder.decisions_path, tuple(folder.label_space().names)
        answers = folder.answers(config)
        calibration = load_calibration(path, answers, len(names))
        return cls(calibration, load_policy(path, decided_by(answers, calibration), names))


def promises_of(model: Predictor, folder: AnyPath) -> KeptPolicy:
    """Return a loaded model's decisions.

    Args:
        model: a run or a bundle.
        folder: its folder.

    Raises:
        ConfigError: it has no decisions that hold for its outputs.
    """
    if model.decisions is None:
        raise ConfigError(
            f"{folder} has no decisions that hold for its outputs, so there is no promise to "
            "verify or to watch: fit decisions first with "
            f"{command('recame', 'tune', Path(folder))}."
        )
    return model.decisions


def with_tuned_normal(folder: RunFolder, space: LabelSpace) -> LabelSpace:
    """A run's classes, with the normal class named to `recame tune` if training has none.

    Raises:
        CheckpointError: the decisions are damaged.
    """
    if space.normal is not None:
        return space
    told = (last_tuning(folder.decisions_path) or {}).get("normal")
    return replace(space, normal=told)


def decide_split(
    folder: RunFolder,
    decisions: KeptDecisions,
    predictions: Predictions,
    images: str,
    data: InspectionSet | None = None,
) -> DecidedSplit:
    """Decide images as `recame predict` would, with the decisions of the run.

    Notes in `decisions.json` that the decisions were evaluated on these images.

    Args:
        folder: the run.
        decisions: the run's decisions, for the test-time augmentation of these predictions.
        predictions: of a split, calibrated.
        images: the images, in words.
        data: the images as they were read; None: notes in the predictions' table are used.
    """
    names = tuple(folder.label_space().names)
    calibration, kept = decisions
    policy = None if kept is None else kept.policy
    temperature = 1.0 if calibration is None else calibration.temperature
    table = predictions.table
    # A manifest may have columns of these names with another meaning.
    known = table if data is None else table[[]]
    if "sha256" in known:
        digests = [str(each) or None for each in known["sha256"]]
    else:
        digests = _digests(list(map(str, table.get("path", ()))))
    dark, lost = _told_by_files(table, data)
    experts = predictions.expert_probabilities
    scorer = None if kept is None else kept.scorer
    strange = None
    if "unknown_score" in known:
        strange = np.asarray(known["unknown_score"], np.float64)
    products = None if policy is None else _products(table, policy, new=data is not None)
    decided = Decider(names, policy, scorer, temperature).decide(
        predictions.probabilities,
        experts if experts.shape[1] else None,
        digests or None,
        features=predictions.features,
        strangeness=strange,
        products=products,
        near_black=dark,
    )
    rows = pd.DataFrame(
        {
            "action": decided.actions,
            "reason": decided.reasons,
            "note": [fault or note for fault, note in zip(decided.faults, lost, strict=True)],
            "candidates": decided.candidates,
            "unknown_score": np.asarray(decided.strangeness, np.float32),
            "sha256": [digest or "" for digest in digests] or [""] * len(predictions),
        }
    )
    if policy is None:
        return DecidedSplit(rows, None)
    called = np.asarray(decided.best, np.int64)
    found = outcome_of(decided.actions, called, predictions.target, names, policy.normal)
    assert kept is not None
    note_look(folder.decisions_path, kept.sha256, images, rows["sha256"], found)
    names_of = table.get("path", table["image"])
    contents = [content_of(d, str(n)) for d, n in zip(digests, names_of, strict=False)]
    return DecidedSplit(rows, found, tuned_share(folder.decisions_path, contents))


def _products(table: pd.DataFrame, policy: Policy, *, new: bool) -> list[str | None] | None:
    """Product of each image; None if the table has none; a warning says so for `new` images."""
    if policy.product_column not in table:
        if new and policy.products is not None:
            warnings.warn(without_products(policy), stacklevel=4)
        return None
    column = table[policy.product_column]
    found: list[str | None] = column.astype(object).where(column.notna(), None).tolist()
    return found


def _told_by_files(table: pd.DataFrame, data: InspectionSet | None) -> tuple[list[bool], list[str]]:
    """Which images are nearly black for the model, and notes on what each lost in preprocessing."""
    if data is None:
        reasons, notes = (table.get(name, [""] * len(table)) for name in ("reason", "note"))
        return [reason == "near_black" for reason in reasons], list(map(str, notes))
    lost = data.lost(map(str, table["path"]))
    dark = [near_black(each, data.spec) for each in lost]
    return dark, ["; ".join(each.values()) for each in lost]


def _digests(paths: Sequence[str]) -> list[str | None]:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(_digest, paths))


def _digest(path: str) -> str | None:
    with suppress(OSError):
        return content_sha256(Path(path))
    return None
