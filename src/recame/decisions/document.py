"""`decisions.json`: beside a calibration of answers the policy that was fitted to them.

Who changes the file holds the lock of its folder from reading to writing (`adding_to`), so that
processes at one moment keep each other's tunings and looks.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recame.contracts import FloatArray
from recame.decisions.actions import Policy
from recame.decisions.calibration import DECISIONS_SCHEMA, schema_of
from recame.decisions.drift import DriftMonitor
from recame.decisions.kept_scorer import load_scorer, remove_others, save_scorer
from recame.decisions.limits import Limits
from recame.decisions.outcome import Outcome
from recame.decisions.promises import Promise
from recame.decisions.strangeness import Scorer
from recame.decisions.tune import Tuned
from recame.decisions.verification import Verification
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import read_json, write_json
from recame.runs.merged_json import adding_to

logger = logging.getLogger(__name__)

#: In a run's folder, or a bundle's.
DECISIONS_FILE = "decisions.json"

_MEANWHILE = (
    "Another tuning on these images has ended since this one began, which did not count it and "
    "would promise too much. Call again: then both are counted."
)


def save_policy(
    path: Path,
    tuned: Tuned,
    limits: Limits,
    answers: Mapping[str, object],
    images: str,
    drift: DriftMonitor,
    contents: Collection[str],
    calibration: str | None,
    scorer: Scorer | None = None,
) -> None:
    """Write a policy, whole or not at all; what else the file holds stays.

    Args:
        path: of `decisions.json`.
        tuned: what was fitted.
        limits: what was asked.
        answers: what the scores were of (`decided_by`): a policy holds for these alone.
        images: tells the calibration's images and labels from others.
        contents: tells each of its images from others, so that tunings are counted.
        drift: of the calibration's images, from where a line is watched.
        calibration: where these are described; None: by the run.
        scorer: that tells the unknown; it is kept beside the file.

    Raises:
        ConfigError: another tuning on these images has ended since this one began.
        DataError: another process has been writing for a minute, or the disk is full.
    """
    tuning = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "images_sha256": images,
        "contents": short_contents(contents),
        "calibration": calibration,
        "limits": limits.to_dict(),
        "normal": None if tuned.policy.normal is None else tuned.policy.names[tuned.policy.normal],
        **tuned.facts,
    }
    told: dict[str, Any] = {
        "policy": {**tuned.policy.to_dict(), "holds_for": dict(answers)},
        "promises": [promise.to_dict() for promise in tuned.promises],
        "expected": tuned.expected.to_dict(tuned.policy.names),
        "told": tuned.sentences(),
        "drift": drift.to_dict(),
    }
    with adding_to(path):
        if earlier_tunings(path, contents) >= tuned.facts["tuning"]:
            raise ConfigError(_MEANWHILE)
        values = _read(path)
        values.pop("unknown", None)
        if scorer is not None:
            told["unknown"] = save_scorer(path.parent, scorer)
        told["schema"] = schema_of({**values, **told})
        told["tunings"] = [*values.get("tunings", []), tuning]
        write_json(path, signed({**values, **told}))
        remove_others(path.parent, told.get("unknown"))


def signed(values: dict[str, Any]) -> dict[str, Any]:
    """The file's values with the checksum of what is decided and promised."""
    return {**values, "decided_sha256": _checksum(values)}


def _checksum(values: Mapping[str, Any]) -> str:
    decided = {name: values.get(name) for name in ("policy", "promises", "expected", "tunings")}
    if "unknown" in values:
        decided["unknown"] = values["unknown"]
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def short_contents(contents: Iterable[str]) -> list[str]:
    """What tells images from others, in a few letters each, whatever they are called."""
    return sorted({hashlib.sha256(each.encode()).hexdigest()[:10] for each in contents})


def earlier_tunings(path: Path, contents: Iterable[str], besides: str | None = None) -> int:
    """How often a policy was fitted to any of these images: each look at them spends confidence.

    Whoever takes out the images that escaped, or labels them anew, has looked at them.

    Args:
        path: of `decisions.json`.
        contents: what tells the images.
        besides: a bundle whose own looks are counted elsewhere.
    """
    values, own = _read(path), set(short_contents(contents))
    exported = [each for each in values.get("exported", []) if each.get("bundle") != besides]
    looks = [*values.get("tunings", []), *exported]
    return sum(not own.isdisjoint(look.get("contents", ())) for look in looks)


def tuned_share(path: Path, contents: Sequence[str]) -> float:
    """The share of images by which the decisions that lie there were fitted."""
    last = last_tuning(path) or {}
    known = set(last.get("contents", ()))
    hits = [short_contents([each])[0] in known for each in contents]
    return sum(hits) / len(hits) if hits else 0.0


def last_tuning(path: Path) -> dict[str, Any] | None:
    """What was asked when a policy was fitted last; None where none was."""
    found = _read(path).get("tunings", [])
    return dict(found[-1]) if found else None


def note_export(path: Path, bundle: str, contents: Sequence[str], counted: int) -> None:
    """Note in a run's file that a bundle of it was tuned on images that the run can look at.

    Args:
        path: of the run's `decisions.json`.
        bundle: which.
        contents: what tells the images.
        counted: tunings of the run and its other bundles on these images that it has paid for.

    Raises:
        ConfigError: another of these has ended since this one began.
    """
    look = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": bundle,
        "contents": short_contents(contents),
    }
    with adding_to(path):
        if earlier_tunings(path, contents, besides=bundle) > counted:
            raise ConfigError(_MEANWHILE)
        values = _read(path)
        values = {"schema": schema_of(values), **values}
        write_json(path, {**values, "exported": [*values.get("exported", []), look]})


class KeptPolicy(NamedTuple):
    """A policy as it lies in the file, and what is needed to judge it.

    Attributes:
        policy: the thresholds.
        promises: what they promise.
        mix: (C,) shares of the classes on the line that they promise it for.
        confidence: with which all hold together.
        group: the column whose values count; None: images do.
        images: what tells the images of each tuning from others.
        drift: of the calibration's images.
        scorer: that tells the unknown; None: nothing does.
        sha256: of all that is decided and promised.
    """

    policy: Policy
    promises: tuple[Promise, ...]
    mix: FloatArray
    confidence: float
    group: str | None
    images: tuple[str, ...]
    drift: DriftMonitor
    scorer: Scorer | None
    sha256: str


def load_policy(
    path: Path, answers: Mapping[str, object], names: Sequence[str]
) -> KeptPolicy | None:
    """The policy of answers as they are now.

    Args:
        path: of `decisions.json`.
        answers: what the model's scores are of now (`decided_by`).
        names: of its C classes.

    Returns:
        None where none was fitted, or to other answers, which is said: a promise belongs to the
        weights, views and biases of classes that it was fitted to.

    Raises:
        CheckpointError: the file is damaged or of a newer schema.
    """
    values = _read(path)
    if "policy" not in values:
        return None
    if values.get("decided_sha256") != _checksum(values):
        raise CheckpointError(
            f"{path} is not as recame tune wrote it: a threshold or a promise was edited or "
            "damaged, and nothing would be promised by it. Take it from a copy, or fit the "
            "decisions anew: recame tune."
        )
    try:
        held = values["policy"]["holds_for"]
        last = values["tunings"][-1]
        mix = values["expected"]["line_mix"]
        kept = KeptPolicy(
            policy=Policy.from_dict(values["policy"], names),
            promises=tuple(Promise.from_dict(each) for each in values["promises"]),
            mix=np.array([float(mix[name]) for name in names]),
            confidence=float(last["confidence"]),
            group=last["limits"].get("group"),
            images=tuple(str(tuning["images_sha256"]) for tuning in values["tunings"]),
            drift=DriftMonitor.from_dict(values["drift"]),
            scorer=_scorer(path, values),
            sha256=values["decided_sha256"],
        )
    except (AttributeError, DataError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}): it was edited or damaged. Fit the decisions anew: "
            "recame tune."
        ) from error
    if held == dict(answers):
        return kept
    logger.warning(
        "%s holds decisions that were fitted to other weights, views or another graph, or under "
        "other biases of classes, whose promises do not hold here: nothing is decided by them. Fit "
        "them anew: recame tune.",
        path,
    )
    return None


def _scorer(path: Path, values: Mapping[str, Any]) -> Scorer | None:
    if values["policy"]["unknown_above"] is None:
        return None
    return load_scorer(path.parent, values["unknown"])


def save_verification(path: Path, verification: Verification, images_sha256: str) -> None:
    """Note that new images judged the promises: every look is told."""
    look = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "images_sha256": images_sha256,
        "outcome": verification.outcome,
        "rows": [row.to_dict() for row in verification.rows],
    }
    with adding_to(path):
        values = _read(path)
        write_json(path, {**values, "verifications": [*values.get("verifications", []), look]})


def note_look(
    path: Path, decided: str, what: str, digests: Iterable[str], outcome: Outcome
) -> None:
    """Note that images judged the decisions: who looks often at a test finds what it wishes.

    The same images and decisions once more are no other look.

    Args:
        path: of `decisions.json`.
        decided: `KeptPolicy.sha256` of the decisions that were judged.
        what: the images, in words.
        digests: of their files.
        outcome: what was seen.
    """
    look = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": what,
        "images_sha256": hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        "decided_sha256": decided,
        "outcome": outcome.to_dict(),
    }
    same = ("images_sha256", "decided_sha256")
    with adding_to(path):
        values = _read(path)
        if not any(all(seen.get(n) == look[n] for n in same) for seen in values.get("looks", [])):
            write_json(path, {**values, "looks": [*values.get("looks", []), look]})


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, newest=DECISIONS_SCHEMA) if path.exists() else {}
