"""`recame monitor`: watch escapes among audited images, and drift of the lots."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from recame.contracts import AnyPath, BoolArray, FloatArray, IntArray, Predictions
from recame.decisions.actions import AUTOMATIC, RELEASE, Acted
from recame.decisions.audit import EscapeMonitor
from recame.decisions.document import KeptPolicy
from recame.decisions.drift import Drift, DriftMonitor
from recame.decisions.promises import Promise
from recame.decisions.scored import logits_of
from recame.errors import DataError
from recame.files import read_json, write_json
from recame.names import counted, in_words, quoted
from recame.progress import say
from recame.reports.deciding import promises_of
from recame.runs.predictions import load_predictions
from recame.runtime.opening import load

MONITOR_SCHEMA = 1
#: File beside the decisions that keeps the state of the monitors.
STATE_FILE = "monitor.json"


@dataclass(frozen=True)
class Monitored:
    """The result of one more lot.

    Attributes:
        escapes: what is watched, in words -> its monitor.
        drifts: of this lot, and of the blocks of lots that it completes.
        images: number of images in the lot, without those of earlier calls.
        audited: number of audited images whose labels are new.
    """

    escapes: dict[str, EscapeMonitor]
    drifts: tuple[Drift, ...]
    images: int
    audited: int

    def __str__(self) -> str:
        """Return the result, one line per watched promise and per drift."""
        return "\n".join(line for line, _ in self.lines())

    def to_frame(self) -> pd.DataFrame:
        """Return one row per watched promise."""
        columns = ("promise", "limit", "images", "beyond", "low", "high", "alarm")
        rows = [
            (what, watch.limit, watch.images, watch.escapes, *_interval(watch), watch.alarm)
            for what, watch in self.escapes.items()
        ]
        return pd.DataFrame(rows, columns=list(columns))

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of text, each with its style on a terminal."""
        found = [(f"{counted(self.images)} of the lot, {self.audited:,} of them audited.", "")]
        for what, watch in self.escapes.items():
            low, high = _interval(watch)
            seen = f"{watch.escapes:,} of {counted(watch.images)}, {low:.1%} to {high:.1%}"
            told = f"{what}: no sign of more than {watch.limit:.2%} ({seen})"
            if watch.alarm:
                since = f"since image {watch.alarmed_at}"
                told = f"ALARM: {what} exceed {watch.limit:.2%} ({seen}; {since})"
            found.append((f"  {told}", "red" if watch.alarm else ""))
        return [*found, *((f"  Drift: {drift.sentence}", "yellow") for drift in self.drifts)]

    @property
    def alarms(self) -> list[str]:
        """The promises for which the alarm was raised, now or earlier."""
        return [what for what, monitor in self.escapes.items() if monitor.alarm]

    @property
    def exit_code(self) -> int:
        """1 if there is an alarm, else 0; drift alone is no alarm."""
        return int(bool(self.alarms))


@dataclass
class _State:
    """The state that is kept from one call to the next."""

    decided: str
    escapes: dict[str, EscapeMonitor]
    drift: DriftMonitor
    seen: set[str] = field(default_factory=set)
    audited: set[str] = field(default_factory=set)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": MONITOR_SCHEMA,
            "decided_sha256": self.decided,
            "escapes": {what: monitor.to_dict() for what, monitor in self.escapes.items()},
            "drift": self.drift.to_dict(),
            "seen": sorted(self.seen),
            "audited": sorted(self.audited),
        }


def monitor(
    model: AnyPath,
    table: AnyPath | pd.DataFrame,
    *,
    state: AnyPath | None = None,
    console: Console | None = None,
) -> Monitored:
    """Add one more lot, and say whether the promises are still kept.

    Only audited images show escapes. If the decisions draw an audit, these are the images whose
    `reason` is `audit`. Otherwise they are all images with a label; these must then be a random
    sample of *all* images, not images that people looked at because of their score. All rows are
    used for drift. Each row counts once, and so does its label, which may be added later.

    Args:
        model: the run's or bundle's folder.
        table: a table that `recame predict` wrote for a lot, as a path or a DataFrame. In its
            column `label` people have written the true class of audited images.
        state: where the monitors are kept; None: `monitor.json` in the model's folder.
        console: where the findings go; silent if None.

    Raises:
        ConfigError: the model promises nothing.
        DataError: the table lacks a column, or the state is damaged.
    """
    console = console or Console(quiet=True)
    loaded = load(model)
    kept = promises_of(loaded, model)
    path = Path(model) / STATE_FILE if state is None else Path(state)
    watched = _open(path, kept, console)
    lot = load_predictions(table, loaded.label_space.names).predictions
    if "label" not in lot.table:
        raise DataError(
            f"{in_words(table)} has no column 'label', in which people write the true class of "
            "audited images (empty for all others): give the table as recame predict wrote it."
        )
    keys = _keys(lot)
    known = (lot.target >= 0) & _drawn(lot.table, kept)
    fresh, labelled = _new_rows(keys, watched.seen), _new_rows(keys, watched.audited) & known
    strange = _strangeness(lot, kept, in_words(table))
    acted = kept.policy.act(logits_of(lot.probabilities, loaded.temperature), strangeness=strange)
    seen = _seen_by_people(lot.table)
    for promise in _watched(kept):
        own, beyond = _stream(promise, lot.target, acted, kept, seen)
        watched.escapes[_what(promise)].add(beyond[own & labelled])
    told = fresh & np.isfinite(lot.probabilities).all(1)
    drifts = watched.drift.add(acted.best[told], lot.probabilities[told].max(1))
    watched.seen |= {keys[place] for place in np.flatnonzero(fresh)}
    watched.audited |= {keys[place] for place in np.flatnonzero(labelled)}
    write_json(path, watched.to_dict())
    found = Monitored(watched.escapes, tuple(drifts), int(fresh.sum()), int(labelled.sum()))
    for line, style in found.lines():
        say(console, line, style)
    return found


def _interval(watch: EscapeMonitor) -> tuple[float, float]:
    return watch.interval() if watch.images else (0.0, 1.0)


def _watched(kept: KeptPolicy) -> list[Promise]:
    """The promises that can be watched with labels."""
    return [p for p in kept.promises if p.limit is not None and p.kind in ("escape", "purity")]


def _what(promise: Promise) -> str:
    if promise.kind == "escape":
        return f"escapes of {quoted(promise.of)}"
    return f"images booked as {quoted(promise.of)} that are something else"


def _new(kept: KeptPolicy) -> _State:
    promises = _watched(kept)
    risk = (1 - kept.confidence) / max(1, len(promises))
    return _State(
        kept.sha256,
        {
            _what(p): EscapeMonitor(p.limit if p.kind == "escape" else 1 - p.limit, risk)
            for p in promises
            if p.limit is not None
        },
        kept.drift,
    )


def _open(path: Path, kept: KeptPolicy, console: Console) -> _State:
    """Load the monitors; make new ones if the decisions have changed."""
    if not path.exists():
        return _new(kept)
    values = read_json(path, newest=MONITOR_SCHEMA, advice="Remove it to begin anew.")
    try:
        if values["decided_sha256"] != kept.sha256:
            say(console, f"{path} has watched other decisions: new monitors start.", "yellow")
            return _new(kept)
        escapes: Mapping[str, Any] = values["escapes"]
        return _State(
            kept.sha256,
            {what: EscapeMonitor.from_dict(facts) for what, facts in escapes.items()},
            DriftMonitor.from_dict(values["drift"]),
            set(values["seen"]),
            set(values["audited"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error!r}): it was edited or damaged. Take it from a copy, or "
            "remove it: then the monitors start again."
        ) from error


def _keys(lot: Predictions) -> list[str]:
    """Identify each row by the model's output: lots may reuse names, but outputs differ."""
    rows = zip(lot.table["image"].astype(str), lot.probabilities, strict=True)
    return [hashlib.sha256(name.encode() + row.tobytes()).hexdigest()[:16] for name, row in rows]


def _new_rows(keys: list[str], seen: set[str]) -> BoolArray:
    """(N,) whether a row is new: not in an earlier call, and the first of its kind here."""
    found = pd.Series(keys)
    fresh: BoolArray = ~(found.isin(seen) | found.duplicated()).to_numpy(np.bool_)
    return fresh


def _drawn(rows: pd.DataFrame, kept: KeptPolicy) -> BoolArray:
    """(N,) rows whose labels may count for escapes, since they were not chosen by their score."""
    if not kept.policy.audit:
        return np.ones(len(rows), np.bool_)
    if "reason" not in rows:
        raise DataError(
            "The table has no column 'reason', so it is not known which images were audited and "
            "which were looked at because of their score. Give the table as recame predict wrote "
            "it."
        )
    drawn: BoolArray = (rows["reason"] == "audit").to_numpy(np.bool_)
    return drawn


def _strangeness(lot: Predictions, kept: KeptPolicy, table: str) -> FloatArray | None:
    """How strange the lot's images were to the model; None if its decisions do not use it."""
    if kept.policy.unknown_above is None:
        return None
    column = lot.table.get("unknown_score")
    read = np.isfinite(lot.probabilities).all(1)
    found = np.full(len(lot), np.nan) if column is None else np.asarray(column, np.float64)
    if np.isnan(found[read]).any():
        raise DataError(
            f"{table} does not say how strange its images were (unknown_score), which the "
            "decisions need to recognise unknown images: it was predicted before they were fitted. "
            "Predict the lot again with recame predict, and write the labels into the new table."
        )
    return found


def _seen_by_people(rows: pd.DataFrame) -> BoolArray:
    """(N,) images that went to a person for a reason other than score or audit.

    Images over a lot's budget (`over_budget`) are held because of their score, so they do not
    count.
    """
    reasons = rows.get("reason", pd.Series("", rows.index))
    held = reasons.isin(["near_black", "product_unseen", "not_finite", "unreadable"])
    return np.asarray(held, np.bool_)


def _stream(
    promise: Promise, target: IntArray, acted: Acted, kept: KeptPolicy, seen: BoolArray
) -> tuple[BoolArray, BoolArray]:
    """Rows that a promise is about, and whether each is on its wrong side, ignoring the audit."""
    index = kept.policy.names.index(promise.of)
    if promise.kind == "escape":
        return target == index, (acted.action == RELEASE) & ~seen
    return (acted.action == AUTOMATIC) & (acted.best == index) & ~seen, target != index
