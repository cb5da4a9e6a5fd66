"""What people cannot see of a lot stays held, whichever way its table came about."""

from __future__ import annotations

import io
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import recame
from recame.cli.predicting import print_summary
from recame.decisions.document import save_policy, signed
from recame.decisions.drift import DriftMonitor
from recame.decisions.limits import Limits
from recame.decisions.review_budget import WAITING, LotReview
from recame.decisions.scored import Scored, class_log_odds, logits_of
from recame.decisions.tune import tune
from recame.files import read_json, write_json
from recame.label_space import LabelSpace
from recame.runs.predictions import load_predictions
from recame.runtime import predict_files
from recame.runtime.bundle import open_bundle
from recame.runtime.opening import answers_of

Pictures = tuple[Path, np.ndarray]

CLASSES = ("ok", "crack", "NA")
SHARE = 0.3


def decide(
    bundle: Path, pictures: Pictures, review: dict[str, Any], names: Sequence[str] = CLASSES
) -> None:
    """Give a bundle decisions that send many of its answers to people."""
    found = recame.load(bundle).predict(pictures[0])
    probabilities = np.stack([each.probabilities for each in found])
    called = probabilities.argmax(1)
    limits = Limits.from_dict({"escape": 0.2, "audit": 0.1, "review": review})
    images = [each.image for each in found]
    tuned = tune(Scored(logits_of(probabilities), called, images), names, "ok", limits)
    path = bundle / "decisions.json"
    drift = DriftMonitor.of(called, probabilities.max(1), names)
    answers = answers_of(open_bundle(bundle))
    save_policy(path, tuned, limits, answers, "", drift, [], None)
    values = read_json(path)
    values["policy"] |= {
        "release_above": 0.5,
        "automatic_above": {names[1]: 0.3, "NA": "never"},
    }
    write_json(path, signed(values))


@pytest.fixture
def tuned(bundle: Path, pictures: Pictures, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(bundle, tmp_path / "tuned"))
    decide(copy, pictures, {"share": SHARE, "lot": "lot"})
    return copy


@pytest.fixture
def lots(pictures: Pictures, tmp_path: Path) -> Path:
    """The pictures in an order of their own, and some that cannot be read, of three lots."""
    images = tmp_path / "images"
    images.mkdir()
    for path in pictures[0].iterdir():
        (images / path.name).symlink_to(path)
    for number in range(5):
        (images / f"{number}-broken.png").write_bytes(b"")
    names = np.random.default_rng(3).permutation(sorted(path.name for path in images.iterdir()))
    table = pd.DataFrame(
        {
            "image": [f"images/{name}" for name in names],
            "lot": [("A", "=B", "A", "")[n % 4] for n in range(len(names))],
        }
    )
    table.to_csv(tmp_path / "lots.csv", index=False)
    return tmp_path / "lots.csv"


def as_asked(free: pd.DataFrame, lots: np.ndarray) -> dict[str, tuple[str, str]]:
    """Image -> reason and note, by the rule in plain loops, from a table without a budget."""
    told = {}
    for lot in pd.unique(lots):
        rows = free[lots == lot]
        places = math.floor(SHARE * len(rows))
        waits = rows["reason"].isin(WAITING) & (rows["action"] == "review")
        left = places - (rows["action"].isin(["review", "unknown", "unreadable"]) & ~waits).sum()
        numbers = rows[["p_ok", "p_crack", "p_NA"]].to_numpy(np.float32)
        odds = class_log_odds(logits_of(numbers)).max(1)
        order = sorted((odds[n], n) for n in np.flatnonzero(waits).tolist())
        for place, (_, number) in enumerate(order):
            row = rows.iloc[number]
            if place >= left:
                seen = f"the {places:,} of this lot's {len(rows):,} images that people see"
                told[row["image"]] = ("over_budget", f"{row['reason']}; beyond {seen}")
    return told


def read(path: Path) -> pd.DataFrame:
    found = load_predictions(path, CLASSES).predictions
    numbers = {f"p_{n}": found.probabilities[:, i] for i, n in enumerate(CLASSES)}
    return found.table.assign(**numbers).fillna({"note": "", "lot": ""})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_most_doubtful_of_each_lot_are_seen(
    suffix: str, tuned: Path, lots: Path, pictures: Pictures, tmp_path: Path
) -> None:
    out = tmp_path / f"out{suffix}"
    summary = recame.predict(tuned, lots, out=out)
    rows = read(out)
    decide(tuned, pictures, {})
    recame.predict(tuned, lots, out=tmp_path / f"free{suffix}")
    free = read(tmp_path / f"free{suffix}")
    held = as_asked(free, free["lot"].to_numpy(object))
    assert len(held) > 30
    for (_, row), (_, before) in zip(rows.iterrows(), free.iterrows(), strict=True):
        reason, note = held.get(row["image"], (before["reason"], before["note"]))
        assert (row["reason"], row["note"]) == (reason, note)
        for name in ("image", "action", "candidates", "sha256", "p_ok", "p_NA"):
            assert row[name] == before[name] or (row[name] != row[name] != before[name])
    # Within each lot so many of them go to people, and no escape limit was loosened for it.
    assert {lot.lot for lot in summary.over_budget} == {"A", "=B", ""}
    for lot in summary.over_budget:
        own = rows[rows["lot"] == lot.lot]
        asks = own["action"].isin(["review", "unknown", "unreadable"])
        assert (lot.images, lot.people, lot.over) == (
            len(own),
            asks.sum(),
            (own["reason"] == "over_budget").sum(),
        )
        assert lot.people - lot.over == lot.places == math.floor(SHARE * len(own))
    assert set(rows["action"][rows["reason"] == "over_budget"]) == {"review"}
    assert (rows["action"] == "release").sum() == (free["action"] == "release").sum() > 0
    counted = rows.groupby(["action", "reason"]).size().to_dict()
    assert summary.decided == counted
    assert summary.num_review == rows["action"].isin(["review", "unknown"]).sum()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_interrupted_table_is_the_same(
    suffix: str, tuned: Path, lots: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    model = recame.load(tuned, threads=1, batch_size=16)
    first = predict_files(model, [lots], whole)

    def stop(done: int, _total: int) -> None:
        if done >= 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(model, [lots], out, on_progress=stop)
    second = predict_files(model, [lots], out)
    assert second.num_resumed == 256
    assert out.read_bytes() == whole.read_bytes()
    assert (second.over_budget, second.decided) == (first.over_budget, first.decided)


def test_a_table_that_was_cut_off_at_its_end_is_the_same(
    tuned: Path, lots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are kept have the reason that they have for themselves, also once all are there."""
    from recame.runtime import partial_table

    model = recame.load(tuned, threads=1, batch_size=16)
    predict_files(model, [lots], tmp_path / "whole.csv")
    with monkeypatch.context() as patch:
        patch.setattr(partial_table, "_sync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_files(model, [lots], tmp_path / "out.csv")
    # The lot has grown meanwhile: who had a place may have none now, and the reverse.
    table = pd.read_csv(lots, keep_default_na=False)
    table[:200].to_csv(lots, index=False)
    for name, resumed in (("out.csv", 200 - 5), ("fresh.csv", 0)):
        summary = predict_files(model, [lots], tmp_path / name)
        assert summary.num_resumed >= resumed
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "fresh.csv").read_bytes()
    assert sum(lot.images for lot in summary.over_budget) == 200


def test_without_the_column_a_table_is_one_lot_which_is_said_once(
    tuned: Path, pictures: Pictures, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="'lot', which no table of images has") as said:
        summary = recame.predict(tuned, pictures[0], out=tmp_path / "out.csv")
    assert len([each for each in said if "review budget" in str(each.message)]) == 1
    [lot] = summary.over_budget
    assert (lot.lot, lot.images, lot.places) == ("", 300, 90)
    decide(tuned, pictures, {"share": SHARE})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = recame.predict(tuned, pictures[0], out=tmp_path / "again.csv")
    assert again.over_budget == summary.over_budget
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


def test_who_is_first_may_fill_the_budget(
    tuned: Path, pictures: Pictures, lots: Path, tmp_path: Path
) -> None:
    decide(tuned, pictures, {"share": 0.01})
    summary = recame.predict(tuned, lots, out=tmp_path / "out.csv")
    rows = read(tmp_path / "out.csv")
    [lot] = summary.over_budget
    first = (rows["reason"].isin(["audit", "unreadable"])).sum()
    assert lot.places == 3 < first == lot.people - lot.over
    assert not rows["reason"].isin(WAITING).any()


def test_enough_people_hold_nothing(
    tuned: Path, pictures: Pictures, lots: Path, tmp_path: Path
) -> None:
    decide(tuned, pictures, {"share": 1.0, "lot": "lot"})
    assert recame.predict(tuned, lots, out=tmp_path / "all.csv").over_budget == ()
    decide(tuned, pictures, {})
    recame.predict(tuned, lots, out=tmp_path / "free.csv")
    assert (tmp_path / "all.csv").read_bytes() == (tmp_path / "free.csv").read_bytes()


def test_a_class_s_name_with_commas_and_line_ends(
    write_bundle: Callable[..., Path], grey: Any, pictures: Pictures, tmp_path: Path
) -> None:
    names = ("ok", '=a,"b"\r\nc', "NA")
    bundle = write_bundle(tmp_path / "odd", grey, space=LabelSpace(names, (9, 9, 9), normal="ok"))
    decide(bundle, pictures, {"share": 0.1}, names)
    recame.predict(bundle, pictures[0], out=tmp_path / "out.csv")
    found = load_predictions(tmp_path / "out.csv", names).predictions.table
    held = found[found["reason"] == "over_budget"]
    assert len(held) > 100
    assert held["candidates"].str.contains(names[1], regex=False).any()


def test_what_is_printed(tuned: Path, lots: Path, tmp_path: Path) -> None:
    summary = recame.predict(tuned, lots, out=tmp_path / "out.csv")
    console = Console(file=io.StringIO(), width=300)
    print_summary(summary, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    lot = next(each for each in summary.over_budget if each.lot == "A")
    assert isinstance(lot, LotReview)
    assert (
        f"Lot A: {lot.people:,} of {lot.images:,} images need a person, but the review budget "
        f"is {lot.places:,}: {lot.places:,} fit in it, {lot.over:,} are over it" in printed
    )
    assert "Hold back the images over the budget (reason over_budget)" in printed
    assert "decisions.html" in printed
    over = sum(each.over for each in summary.over_budget)
    assert f"over the review budget {over:,}" in printed
