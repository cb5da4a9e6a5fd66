"""A split as a run's decisions judge it: rows of the predictions table, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recame.config import Config
from recame.contracts import Predictions
from recame.data.paged_file import content_sha256
from recame.decisions.calibration import Calibration, decided_by, load_calibration
from recame.decisions.document import KeptPolicy, load_policy, note_look, tuned_share
from recame.decisions.outcome import Outcome, outcome_of
from recame.decisions.policy import Decider
from recame.machine import usable_cores
from recame.reports.labelled import content_of
from recame.runs.folder import RunFolder


class DecidedSplit(NamedTuple):
    """What is done with the images of a split.

    Attributes:
        rows: N rows of `action, reason, note, candidates, sha256`, for the predictions table.
        outcome: what the labels say of it; None where the run has no decisions of its own.
        tuned_by: share of the images by which these were fitted.
    """

    rows: pd.DataFrame
    outcome: Outcome | None
    tuned_by: float = 0.0


class KeptDecisions(NamedTuple):
    """What `decisions.json` holds for a run's answers as the settings ask for them.

    Attributes:
        calibration: what probabilities go through; None: nothing.
        policy: what `recame tune` has fitted; None: nothing.
    """

    calibration: Calibration | None
    policy: KeptPolicy | None

    @classmethod
    def of(cls, folder: RunFolder, config: Config) -> KeptDecisions:
        """Those of a run.

        Raises:
            CheckpointError: they are damaged.
        """
        path, names = folder.decisions_path, tuple(folder.label_space().names)
        answers = folder.answers(config)
        calibration = load_calibration(path, answers, len(names))
        return cls(calibration, load_policy(path, decided_by(answers, calibration), names))


def decide_split(
    folder: RunFolder,
    decisions: KeptDecisions,
    predictions: Predictions,
    images: str,
    known: pd.DataFrame | None = None,
) -> DecidedSplit:
    """Decide images as `recame predict` would, by what `recame tune` has fitted to the run.

    That labels have judged the decisions is noted beside them.

    Args:
        folder: the run.
        decisions: its own, for the views that judged.
        predictions: of a split, calibrated.
        images: which they are, in words.
        known: what was noted of them before: `sha256, unknown_score`; None: it is found now.
    """
    names = tuple(folder.label_space().names)
    calibration, kept = decisions
    policy = None if kept is None else kept.policy
    temperature = 1.0 if calibration is None else calibration.temperature
    paths = map(str, predictions.table.get("path", ()))
    if known is None or "sha256" not in known:
        digests = _digests(list(paths))
    else:
        digests = [str(each) or None for each in known["sha256"]]
    experts = predictions.expert_probabilities
    scorer = None if kept is None else kept.scorer
    strange = None
    if known is not None and "unknown_score" in known:
        strange = np.asarray(known["unknown_score"], np.float64)
    products = None
    if policy is not None and policy.product_column in predictions.table:
        column = predictions.table[policy.product_column]
        products = column.astype(object).where(column.notna(), None).tolist()
    decided = Decider(names, policy, scorer, temperature).decide(
        predictions.probabilities,
        experts if experts.shape[1] else None,
        digests or None,
        features=predictions.features,
        strangeness=strange,
        products=products,
    )
    rows = pd.DataFrame(
        {
            "action": decided.actions,
            "reason": decided.reasons,
            "note": [fault or "" for fault in decided.faults],
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
    names_of = predictions.table.get("path", predictions.table["image"])
    contents = [content_of(d, str(n)) for d, n in zip(digests, names_of, strict=False)]
    return DecidedSplit(rows, found, tuned_share(folder.decisions_path, contents))


def _digests(paths: Sequence[str]) -> list[str | None]:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(_digest, paths))


def _digest(path: str) -> str | None:
    with suppress(OSError):
        return content_sha256(Path(path))
    return None
