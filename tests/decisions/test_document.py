"""`decisions.json` is changed by one process at a time, and nothing that was noted is lost."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import recame.runs.merged_json as merged_json
from recame.decisions.calibration import Calibration, load_calibration, save_calibration
from recame.decisions.document import (
    earlier_tunings,
    last_tuning,
    load_policy,
    note_export,
    note_look,
    save_policy,
    save_verification,
)
from recame.decisions.drift import DriftMonitor
from recame.decisions.limits import Limits
from recame.decisions.outcome import Outcome
from recame.decisions.scored import Scored
from recame.decisions.tune import tune
from recame.decisions.tuned import Tuned
from recame.decisions.verification import Verification
from recame.errors import ConfigError, DataError
from recame.files import hold, read_json

NAMES, ANSWERS = ("good", "bridge"), {"views": 1}
TIMES = 15


@pytest.fixture(scope="module")
def scored() -> Scored:
    target = np.repeat([0, 1], [300, 200])
    noise = np.random.default_rng(0).normal(0, 1, (500, 2))
    return Scored(4 * np.eye(2)[target] + noise, target, [f"{n}.png" for n in range(500)])


def tuned_by(scored: Scored, tuning: int = 1) -> Tuned:
    return tune(scored, NAMES, "good", Limits.from_dict({"escape": 0.1}), tuning=tuning)


def save(path: Path, scored: Scored, contents: list[str], tuning: int = 1) -> None:
    called = scored.logits.argmax(1)
    drift = DriftMonitor.of(called, np.full(len(called), 0.9), NAMES, 0.05)
    tuned = tuned_by(scored, tuning)
    save_policy(path, tuned, Limits(), ANSWERS, "f" * 64, drift, contents, calibration=None)


def note(path: Path, name: str) -> None:
    note_look(path, "0" * 64, name, [name], Outcome(None, ()))


def verified(path: Path, name: str) -> None:
    save_verification(path, Verification((), "holds"), name)


def calibrated(path: Path, name: str) -> None:
    fitted_on = {"split": "val", "images": 9, "by": name, **ANSWERS}
    save_calibration(Calibration(2.0, fitted_on), path)


def exported(path: Path, name: str) -> None:
    note_export(path, name, ["an image"], counted=10**6)


WRITERS: list[Callable[[Path, str], None]] = [note, verified, calibrated, exported]


def test_processes_keep_each_others_notes(tmp_path: Path, scored: Scored) -> None:
    path = tmp_path / "decisions.json"
    calibrated(path, "by training")

    def child(write: Callable[[Path, str], None]) -> None:
        for number in range(TIMES):
            write(path, f"{write.__name__} {number}")

    def tuning() -> None:
        for number in range(TIMES):
            save(path, scored, [f"images {number}"])

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=child, args=(write,)) for write in WRITERS]
    processes += [fork.Process(target=tuning)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    kept = read_json(path)
    for key in ("looks", "verifications", "exported", "tunings"):
        assert len(kept[key]) == TIMES, key
    assert {look["images"] for look in kept["looks"]} == {f"note {n}" for n in range(TIMES)}
    policy = load_policy(path, ANSWERS, NAMES)
    calibration = load_calibration(path, ANSWERS, len(NAMES))
    assert policy is not None
    assert policy.policy.normal == 0
    assert calibration is not None
    assert calibration.fitted_on["by"] == f"calibrated {TIMES - 1}"


@pytest.mark.parametrize("write", WRITERS)
def test_who_waits_too_long_is_told_for_whom(
    write: Callable[[Path, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_json, "_WRITING_S", 0.0)
    path = tmp_path / "decisions.json"
    calibrated(path, "by training")
    write(path, "before")
    before = path.read_bytes()
    mine = hold(tmp_path / ".writing.lock")
    assert mine is not None
    with mine, pytest.raises(DataError) as refused:
        write(path, "meanwhile")
    told = str(refused.value)
    assert told.startswith(f"{path} is in use by process {os.getpid()} on ")
    assert told.endswith("Call again when it has ended.")
    assert path.read_bytes() == before
    write(path, "after")
    assert path.read_bytes() != before


def test_two_tunings_at_once_are_no_single_one(tmp_path: Path, scored: Scored) -> None:
    path = tmp_path / "decisions.json"
    save(path, scored, ["a", "b"])
    with pytest.raises(ConfigError, match=r"did not count it .*Call again"):
        save(path, scored, ["b", "c"])  # it began before the first had ended
    assert len(read_json(path)["tunings"]) == 1
    save(path, scored, ["c"])  # other images
    save(path, scored, ["b", "c"], tuning=3)
    assert earlier_tunings(path, ["b"]) == 2
    last = last_tuning(path)
    assert last is not None
    assert last["tuning"] == 3


def test_two_bundles_at_once_are_no_single_one(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    note_export(path, "first", ["a"], counted=0)
    with pytest.raises(ConfigError, match=r"did not count it .*Call again"):
        note_export(path, "second", ["a"], counted=0)  # it began before the first had ended
    note_export(path, "second", ["b"], counted=0)  # other images
    note_export(path, "first", ["a"], counted=0)  # its own looks are counted in its own file
    note_export(path, "second", ["a"], counted=2)
    assert earlier_tunings(path, ["a"], besides="first") == 1
    assert earlier_tunings(path, ["a"], besides="second") == 2
