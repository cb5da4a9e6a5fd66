"""`decisions.json`: the calibration of a model's outputs, and the policy that was fitted to them.

A process that changes the file holds the lock of its folder from reading to writing (`adding_to`),
so that processes that run at the same time keep each other's entries.
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
from recame.decisions.tuned import Tuned
from recame.decisions.verification import Verification
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import read_json, write_json
from recame.runs.merged_json import adding_to

logger = logging.getLogger(__name__)

#: Name of the file in the folder of a run or a bundle.
DECISIONS_FILE = "decisions.json"

_MEANWHILE = (
    "Another tuning on these images has ended since this one began. This one did not count it and "
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
    """Write a policy, whole or not at all; the other entries of the file stay.

    Args:
        path: of `decisions.json`.
        tuned: what was fitted.
        limits: what was requested.
        answers: identifies the scores (`decided_by`); the policy holds only for these.
        images: identifies the calibration images and their labels.
        contents: identifies each calibration image, so that tunings on it can be counted.
        drift: monitor that starts from the calibration images.
        calibration: where these images are described; None: by the run.
        scorer: recognises unknown images; it is kept beside the file.

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
    """Add the checksum of the policy and the promises to the file's values."""
    return {**values, "decided_sha256": _checksum(values)}


def _checksum(values: Mapping[str, Any]) -> str:
    decided = {name: values.get(name) for name in ("policy", "promises", "expected", "tunings")}
    if "unknown" in values:
        decided["unknown"] = values["unknown"]
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def short_contents(contents: Iterable[str]) -> list[str]:
    """Short identifiers of the images' contents, independent of their names."""
    return sorted({hashlib.sha256(each.encode()).hexdigest()[:10] for each in contents})


def earlier_tunings(path: Path, contents: Iterable[str], besides: str | None = None) -> int:
    """Count how often a policy was fitted to any of these images; each time spends confidence.

    A tuning also counts if some of its images were since removed or relabelled: whoever removes
    the images that escaped has used their results.

    Args:
        path: of `decisions.json`.
        contents: identifies the images.
        besides: a bundle whose own tunings are counted elsewhere.
    """
    values, own = _read(path), set(short_contents(contents))
    exported = [each for each in values.get("exported", []) if each.get("bundle") != besides]
    looks = [*values.get("tunings", []), *exported]
    return sum(not own.isdisjoint(look.get("contents", ())) for look in looks)


def tuned_share(path: Path, contents: Sequence[str]) -> float:
    """The share of these images to which the decisions in the file were fitted."""
    last = last_tuning(path) or {}
    known = set(last.get("contents", ()))
    hits = [short_contents([each])[0] in known for each in contents]
    return sum(hits) / len(hits) if hits else 0.0


def last_tuning(path: Path) -> dict[str, Any] | None:
    """What was requested when a policy was last fitted; None if none was."""
    found = _read(path).get("tunings", [])
    return dict(found[-1]) if found else None


def note_export(path: Path, bundle: str, contents: Sequence[str], counted: int) -> None:
    """Note in a run's file that one of its bundles was tuned on images the run may tune on too.

    Args:
        path: of the run's `decisions.json`.
        bundle: name of the bundle.
        contents: identifies the images.
        counted: tunings of the run and its other bundles on these images that this one counted.

    Raises:
        ConfigError: another tuning on these images has ended since this one began.
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
    """A policy as the file holds it, and what is needed to verify it.

    Attributes:
        policy: the thresholds.
        promises: what they promise.
        mix: (C,) shares of the classes on the line for which the promises hold.
        confidence: with which all promises hold together.
        group: the column whose values are counted; None: images are counted.
        images: identifies the images of each tuning as a whole.
        contents: identifies each image of every tuning (`short_contents`).
        drift: monitor that starts from the calibration images.
        scorer: recognises unknown images; None: there is none.
        sha256: of the policy and the promises.
    """

    policy: Policy
    promises: tuple[Promise, ...]
    mix: FloatArray
    confidence: float
    group: str | None
    images: tuple[str, ...]
    contents: frozenset[str]
    drift: DriftMonitor
    scorer: Scorer | None
    sha256: str


def load_policy(
    path: Path, answers: Mapping[str, object], names: Sequence[str]
) -> KeptPolicy | None:
    """Load the policy, if it holds for the model's present scores.

    Args:
        path: of `decisions.json`.
        answers: identifies the model's present scores (`decided_by`).
        names: of its C classes.

    Returns:
        None if none was fitted, or if it was fitted to other scores (a warning says so): a promise
        holds only for the weights, views and class biases that it was fitted to.

    Raises:
        CheckpointError: the file is damaged or of a newer schema.
    """
    values = _read(path)
    if "policy" not in values:
        return None
    if values.get("decided_sha256") != _checksum(values):
        raise CheckpointError(
            f"{path} is not as recame tune wrote it: a threshold or a promise was edited or "
            "damaged, so its promises do not hold. Take it from a copy, or fit the decisions "
            "again: recame tune."
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
            contents=frozenset(
                each for tuning in values["tunings"] for each in tuning.get("contents", ())
            ),
            drift=DriftMonitor.from_dict(values["drift"]),
            scorer=_scorer(path, values),
            sha256=values["decided_sha256"],
        )
    except (AttributeError, DataError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}): it was edited or damaged. Fit the decisions "
            "again: recame tune."
        ) from error
    if held == dict(answers):
        return kept
    logger.warning(
        "%s holds decisions that were fitted to other weights, views or class biases, or to "
        "another graph. Their promises do not hold here, so they are not used. Fit them again: "
        "recame tune.",
        path,
    )
    return None


def _scorer(path: Path, values: Mapping[str, Any]) -> Scorer | None:
    if values["policy"]["unknown_above"] is None:
        return None
    return load_scorer(path.parent, values["unknown"])


def save_verification(path: Path, verification: Verification, images_sha256: str) -> None:
    """Note that the promises were verified on new images: every verification is recorded."""
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
    """Note that the decisions were evaluated on images: often repeated tests mislead.

    The same images with the same decisions are noted only once.

    Args:
        path: of `decisions.json`.
        decided: `KeptPolicy.sha256` of the decisions that were evaluated.
        what: the images, in words.
        digests: of their files.
        outcome: the result.
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
