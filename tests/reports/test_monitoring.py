from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import recame
from recame.cli.app import app
from recame.decisions.document import signed
from recame.decisions.limits import Limits
from recame.errors import ConfigError, DataError
from recame.files import read_json, write_json

COUNTS = {"ok": 60, "scratch": 120, "dent": 120, "hole": 120}
ASKED = {"escape": 0.1, "purity": 0.5, "unknown_false_alarm": False}


@pytest.fixture(scope="module")
def tuned(
    finished: Path, write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place = tmp_path_factory.mktemp("monitoring")
    fresh = write_images(place / "fresh", COUNTS, seed=7)
    run = Path(shutil.copytree(finished, place / "run"))
    recame.tune(run, fresh, Limits.from_dict(ASKED), normal="ok")
    return run


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "run"))


@pytest.fixture(scope="module")
def lot(
    tuned: Path, write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> pd.DataFrame:
    """What the run predicts of a lot, with the right labels."""
    place = tmp_path_factory.mktemp("lot")
    images = write_images(place / "images", COUNTS, seed=11)
    recame.predict(tuned, images, out=place / "lot.csv")
    table = pd.read_csv(place / "lot.csv")
    return table.assign(label=[Path(name).parent.name for name in table["image"]])


def written(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, index=False)
    return path


def test_a_line_as_promised_raises_no_alarm(run: Path, lot: pd.DataFrame, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    found = recame.monitor(run, written(lot, tmp_path / "lot.csv"), console=console)
    assert (found.alarms, found.exit_code) == ([], 0)
    assert (found.images, found.audited) == (420, 420)
    watch = found.escapes["escapes of dent"]
    assert (watch.images, watch.limit) == (120, 0.1)
    assert any(what.endswith(" that are something else") for what in found.escapes)
    assert "no sign of more than 10.00%" in console.file.getvalue()  # type: ignore[attr-defined]
    assert (run / "monitor.json").exists()


def test_escapes_raise_the_alarm_and_it_stays(run: Path, lot: pd.DataFrame, tmp_path: Path) -> None:
    # What the model releases was in truth a dent.
    wrong = lot.assign(label=lot["label"].replace({"ok": "dent"}))
    found = recame.monitor(run, written(wrong, tmp_path / "wrong.csv"))
    watch = found.escapes["escapes of dent"]
    released = sum((lot["action"] == "release") & (wrong["label"] == "dent"))
    assert (watch.images, watch.escapes) == (180, released)
    assert "escapes of dent" in found.alarms
    later = lot.assign(image="later/" + lot["image"])
    assert recame.monitor(run, written(later, tmp_path / "later.csv")).exit_code == 1


def test_what_no_person_had_time_for_counts_as_its_score_decides(
    run: Path, lot: pd.DataFrame, tmp_path: Path
) -> None:
    told = []
    for number, rows in enumerate((lot, lot.assign(reason="over_budget"))):
        table, state = written(rows, tmp_path / "lot.csv"), tmp_path / f"{number}.json"
        found = recame.monitor(run, table, state=state)
        told.append([(what, m.images, m.escapes) for what, m in found.escapes.items()])
        assert (found.images, found.audited) == (420, 420)
    assert told[0] == told[1]


def test_the_command_leaves_with_the_alarm(run: Path, lot: pd.DataFrame, tmp_path: Path) -> None:
    def left(table: pd.DataFrame, state: str) -> int:
        path = written(table, tmp_path / "table.csv")
        words = ["monitor", str(run), str(path), "--state", str(tmp_path / state)]
        return CliRunner().invoke(app, words).exit_code

    assert left(lot, "a.json") == 0
    assert left(lot.assign(label=lot["label"].replace({"ok": "dent"})), "b.json") == 1


def test_rows_count_once_whatever_is_given_again(
    run: Path, lot: pd.DataFrame, tmp_path: Path
) -> None:
    recame.monitor(run, written(lot[:200], tmp_path / "some.csv"))
    found = recame.monitor(run, written(lot, tmp_path / "all.csv"))
    assert found.images == 220
    assert sum(watch.images for what, watch in found.escapes.items() if "escapes" in what) == 360


def test_labels_may_be_missing(run: Path, lot: pd.DataFrame, tmp_path: Path) -> None:
    some = lot.assign(label=lot["label"].where(lot.index % 4 == 0))
    found = recame.monitor(run, written(some, tmp_path / "some.csv"))
    assert (found.images, found.audited) == (420, 105)
    found = recame.monitor(run, written(lot, tmp_path / "all.csv"))  # the others come later
    assert (found.images, found.audited) == (0, 315)


def test_only_audited_images_tell_of_escapes(run: Path, lot: pd.DataFrame, tmp_path: Path) -> None:
    values = read_json(run / "decisions.json")
    values["policy"]["audit"] = 0.1
    write_json(run / "decisions.json", signed(values))
    drawn = lot.assign(reason=["audit" if number % 10 == 0 else "" for number in range(len(lot))])
    found = recame.monitor(run, written(drawn, tmp_path / "drawn.csv"))
    assert found.audited == 42
    with pytest.raises(DataError, match="no column 'reason'"):
        recame.monitor(run, written(lot.drop(columns="reason"), tmp_path / "without.csv"))


def test_a_lot_of_another_mix_is_said_to_drift(
    run: Path, lot: pd.DataFrame, tmp_path: Path
) -> None:
    only = lot[lot["label"] == "hole"]
    found = recame.monitor(run, written(only, tmp_path / "holes.csv"))
    assert any(drift.what == "Called hole" for drift in found.drifts)
    assert found.exit_code == 0
    same = recame.monitor(run, written(lot, tmp_path / "lot.csv"), state=tmp_path / "new.json")
    assert same.drifts == ()


def test_other_decisions_are_watched_anew(run: Path, lot: pd.DataFrame, tmp_path: Path) -> None:
    recame.monitor(run, written(lot, tmp_path / "lot.csv"))
    values = read_json(run / "decisions.json")
    values["policy"]["release_above"] = "never"
    write_json(run / "decisions.json", signed(values))
    console = Console(file=io.StringIO(), width=300)
    found = recame.monitor(run, tmp_path / "lot.csv", console=console)
    assert found.images == 420
    assert "has watched other decisions" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_cannot_be_watched(
    run: Path, finished: Path, lot: pd.DataFrame, tmp_path: Path
) -> None:
    path = written(lot, tmp_path / "lot.csv")
    with pytest.raises(
        ConfigError, match=r"has no decisions .* to verify or to watch: .*recame tune"
    ):
        recame.monitor(finished, path)
    with pytest.raises(DataError, match="no column 'label'"):
        recame.monitor(run, written(lot.drop(columns="label"), tmp_path / "bare.csv"))
    with pytest.raises(DataError, match=r"predictions of ok, scratch, dent, hole, but those of"):
        recame.monitor(run, written(lot.drop(columns="p_ok"), tmp_path / "other.csv"))
    recame.monitor(run, path)
    state = read_json(run / "monitor.json")
    write_json(run / "monitor.json", {**state, "escapes": {"escapes of dent": {}}})
    with pytest.raises(DataError, match="monitor"):
        recame.monitor(run, path)


def test_a_lot_in_memory_is_the_lot_of_its_table(
    run: Path, lot: pd.DataFrame, tmp_path: Path
) -> None:
    found = recame.monitor(run, written(lot, tmp_path / "lot.csv"), state=tmp_path / "a.json")
    given = recame.monitor(run, lot, state=tmp_path / "b.json")
    assert str(given) == str(found)
    assert str(found).startswith("420 images of the lot, 420 of them audited.\n  escapes of ")
    rows = found.to_frame().set_index("promise")
    assert rows.loc["escapes of dent", ["limit", "images", "alarm"]].tolist() == [0.1, 120, False]
    assert recame.monitor(run, lot, state=tmp_path / "a.json").images == 0  # seen already
    with pytest.raises(DataError, match="DataFrame of 420 rows has no column 'label'"):
        recame.monitor(run, lot.drop(columns="label"), state=tmp_path / "c.json")
