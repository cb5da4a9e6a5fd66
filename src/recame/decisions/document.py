"""`decisions.json`: beside a calibration of answers the policy that was fitted to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recame.decisions.actions import Policy
from recame.decisions.calibration import DECISIONS_SCHEMA
from recame.decisions.limits import Limits
from recame.decisions.promises import Promise
from recame.decisions.tune import Tuned
from recame.errors import CheckpointError
from recame.files import read_json, write_json

logger = logging.getLogger(__name__)


def save_policy(
    path: Path, tuned: Tuned, limits: Limits, answers: Mapping[str, object], images_sha256: str
) -> None:
    """Write a policy, whole or not at all; what else the file holds stays.

    Args:
        path: of `decisions.json`.
        tuned: what was fitted.
        limits: what was asked.
        answers: what the scores were of: a policy holds for these alone.
        images_sha256: tells the calibration's images from others, so that tunings are counted.
    """
    values = _read(path)
    tuning = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "images_sha256": images_sha256,
        "limits": limits.to_dict(),
        **tuned.facts,
    }
    told = {
        "schema": DECISIONS_SCHEMA,
        "policy": {**tuned.policy.to_dict(), "holds_for": dict(answers)},
        "promises": [promise.to_dict() for promise in tuned.promises],
        "expected": tuned.expected.to_dict(tuned.policy.names),
        "told": tuned.sentences(),
        "tunings": [*values.get("tunings", []), tuning],
    }
    write_json(path, {**values, **told})


def earlier_tunings(path: Path, images_sha256: str) -> int:
    """How often a policy was fitted to the same images: each look spends confidence."""
    tunings = _read(path).get("tunings", [])
    return sum(tuning.get("images_sha256") == images_sha256 for tuning in tunings)


def load_policy(
    path: Path, answers: Mapping[str, object], names: Sequence[str]
) -> tuple[Policy, tuple[Promise, ...]] | None:
    """The policy of answers as they are now, and what it promises.

    Args:
        path: of `decisions.json`.
        answers: what the model's scores are of now.
        names: of its C classes.

    Returns:
        None where none was fitted, or to other answers, which is said: a promise belongs to the
        weights and views that it was fitted to.

    Raises:
        CheckpointError: the file is damaged or of a newer schema.
    """
    values = _read(path)
    if "policy" not in values:
        return None
    held = values["policy"].get("holds_for")
    if held != dict(answers):
        logger.warning(
            "%s holds decisions that were fitted to other weights or views, whose promises do not "
            "hold here: nothing is released or held back by them. Fit them anew: recame tune.",
            path,
        )
        return None
    try:
        promises = tuple(Promise.from_dict(each) for each in values["promises"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}): it was edited or damaged. Fit the decisions anew: "
            "recame tune."
        ) from error
    return Policy.from_dict(values["policy"], names), promises


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, newest=DECISIONS_SCHEMA) if path.exists() else {}
