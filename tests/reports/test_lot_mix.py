"""`line_mix: estimate`: a lot's own predictions tell how often classes come on the line."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import recame
from recame.cli.app import app
from recame.decisions.limits import Limits
from recame.errors import ConfigError, DataError
from recame.export.export import export
from recame.files import read_json, sha256
from recame.inference.training_prior import prior_of_run
from recame.reports.lot_mix import spoken_prior
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions, predictions_table, save_predictions
from recame.runtime.bundle import write_document

NAMES = ("ok", "scratch", "dent", "hole")
LINE = {"ok": 380, "scratch": 40, "dent": 40, "hole": 40}
ESTIMATE = {"escape": 0.1, "purity": 0.6, "unknown_false_alarm": False, "line_mix": "estimate"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lot-mix")


@pytest.fixture(scope="module")
def labelled(write_images: Callable[..., Path], place: Path) -> Path:
    return write_images(place / "fresh", dict.fromkeys(NAMES, 150), seed=7)


@pytest.fixture(scope="module")
def line(write_images: Callable[..., Path], place: Path) -> Path:
    """A lot whose labels nobody knows: mostly good."""
    return write_images(place / "line", LINE, seed=13)


@pytest.fixture(scope="module")
def lot(finished: Path, line: Path, place: Path) -> Path:
    """What the run says of it before it was ever tuned."""
    recame.predict(finished, line, out=place / "lot.parquet")
    return place / "lot.parquet"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_line_is_that_of_the_lot(run: Path, labelled: Path, lot: Path) -> None:
    console = Console(file=io.StringIO(), width=2000)
    limits = Limits.from_dict(ESTIMATE)
    found = recame.tune(run, labelled, limits, normal="ok", lot=lot, console=console)
    told = found.facts["line"]
    true = np.array([LINE[name] for name in recame.load(run).label_space.names]) / 500
    np.testing.assert_allclose(found.expected.mix, true, atol=0.08)
    assert told["images"] == 500
    assert told["sha256"] == sha256(lot)
    kept = read_json(run / "decisions.json")
    assert kept["tunings"][0]["line"] == told
    assert kept["expected"]["line_mix"] == pytest.approx(told["prior"])
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    good = f"(ok {told['prior']['ok']:.1%} ({told['low']['ok']:.1%} to {told['high']['ok']:.1%})"
    assert f"a line as estimated from 500 images of lot.parquet {good}" in printed
    assert "On the estimated line " in printed
    assert "as estimated from 500 images of lot.parquet" in (run / "decisions.html").read_text()
    # A look more at the same images is paid for, whichever line is asked for.
    plain = Limits.from_dict({**ESTIMATE, "line_mix": None})
    again = recame.tune(run, labelled, Limits.from_dict(ESTIMATE), lot=lot)
    bare = recame.tune(run, labelled, plain)
    assert (again.facts["tuning"], bare.facts["tuning"]) == (2, 3)


def test_release_is_the_same_with_and_without(
    finished: Path, labelled: Path, lot: Path, tmp_path: Path
) -> None:
    above = []
    for number, asked in enumerate(("estimate", None, {"ok": 1, "hole": 9})):
        run = Path(shutil.copytree(finished, tmp_path / f"run{number}"))
        limits = Limits.from_dict({**ESTIMATE, "line_mix": asked})
        words = {"lot": lot} if asked == "estimate" else {}
        found = recame.tune(run, labelled, limits, normal="ok", **words)
        above.append(found.policy.release_above)
        escapes = [promise for promise in found.promises if promise.kind == "escape"]
        assert all(promise.limit == 0.1 for promise in escapes)
    assert above[0] == above[1] != above[2]  # a stated mix weighs the defects


def test_the_command(run: Path, labelled: Path, line: Path, tmp_path: Path) -> None:
    limits = tmp_path / "limits.yaml"
    limits.write_text("escape: 0.1\npurity: 0.6\nline_mix: estimate\nunknown_false_alarm: off\n")
    words = ["tune", str(run), "--calibration", str(labelled), "--normal", "ok"]
    words += ["--limits", str(limits)]
    bare = CliRunner().invoke(app, words)
    assert isinstance(bare.exception, ConfigError)
    assert "--lot lot.csv; or state the mix" in str(bare.exception)
    table = tmp_path / "lot.csv"
    done = CliRunner().invoke(app, ["predict", str(run), str(line), "-o", str(table)])
    assert done.exit_code == 0
    found = CliRunner().invoke(app, [*words, "--lot", str(table)])
    assert found.exit_code == 0, found.output
    assert "a line as estimated from 500 images of lot.csv" in " ".join(found.output.split())
    # What it says of the lot by these decisions serves as well, with labels or without.
    recame.predict(run, line, out=tmp_path / "decided.parquet")
    recame.tune(run, labelled, limits, lot=tmp_path / "decided.parquet")


def test_a_lot_that_is_not_asked_for(run: Path, labelled: Path, lot: Path) -> None:
    with pytest.raises(ConfigError, match="the limits do not ask for"):
        recame.tune(run, labelled, normal="ok", lot=lot)


def test_a_lot_of_another_model_is_refused(
    run: Path, labelled: Path, lot: Path, tmp_path: Path
) -> None:
    read = load_predictions(lot)
    table = predictions_table(read.predictions, read.classes)
    limits = Limits.from_dict(ESTIMATE)
    save_predictions(table, tmp_path / "other.parquet", read.classes, "0" * 64)
    with pytest.raises(ConfigError, match=r"by another model than .* Predict the lot again"):
        recame.tune(run, labelled, limits, normal="ok", lot=tmp_path / "other.parquet")
    renamed = table.rename(columns={"p_hole": "p_void"})
    renamed.to_csv(tmp_path / "classes.csv", index=False)
    with pytest.raises(DataError, match="does not hold predictions of"):
        recame.tune(run, labelled, limits, normal="ok", lot=tmp_path / "classes.csv")
    assert "policy" not in read_json(run / "decisions.json")


def test_a_lot_that_tells_nothing_is_refused(
    run: Path, labelled: Path, lot: Path, tmp_path: Path
) -> None:
    read = load_predictions(lot)
    table = predictions_table(read.predictions, read.classes, read.predictions.table[["action"]])
    table[:100].to_csv(tmp_path / "few.csv", index=False)
    strange = table.assign(unknown_score=np.float32(1), action=["unknown", "release"] * 250)
    strange.to_csv(tmp_path / "strange.csv", index=False)
    limits = Limits.from_dict(ESTIMATE)
    for name, told in (("few", "100 images with .* are too few"), ("strange", "50.0% of")):
        with pytest.raises(ConfigError, match=told) as refused:
            recame.tune(run, labelled, limits, normal="ok", lot=tmp_path / f"{name}.csv")
        assert "or state the mix" in str(refused.value)
    assert "policy" not in read_json(run / "decisions.json")


@pytest.mark.slow
def test_a_bundle_knows_by_which_shares_it_was_trained(
    run: Path, labelled: Path, line: Path, tmp_path: Path
) -> None:
    bundle = export(run, tmp_path / "bundle", normal="ok").path
    folder = RunFolder.open(run)
    of_run = prior_of_run(folder, folder.load_config())
    noted = read_json(bundle / "bundle.json")["training_prior"]
    assert tuple(noted["prior"]) == of_run.prior
    assert {each["sampler"] for each in noted["experts"]} <= {"square_root"}
    names = tuple(recame.load(bundle).label_space.names)
    assert spoken_prior(bundle, names).tolist() == spoken_prior(run, names).tolist()
    recame.predict(bundle, line, out=tmp_path / "lot.parquet")
    limits = Limits.from_dict(ESTIMATE)
    found = recame.tune(bundle, labelled, limits, lot=tmp_path / "lot.parquet")
    assert found.facts["line"]["images"] == 500

    document = read_json(bundle / "bundle.json")
    for name in ("schema", "files", "checksum", "training_prior"):
        del document[name]
    write_document(bundle, document)
    recame.predict(bundle, line, out=tmp_path / "lot.parquet")
    with pytest.raises(ConfigError, match="export it again"):
        recame.tune(bundle, labelled, limits, lot=tmp_path / "lot.parquet")


@pytest.mark.slow
def test_a_bundle_takes_the_estimate_of_its_run_along(
    run: Path, labelled: Path, lot: Path, tmp_path: Path
) -> None:
    tuned = recame.tune(run, labelled, Limits.from_dict(ESTIMATE), normal="ok", lot=lot)
    out = tmp_path / "bundle"
    found = CliRunner().invoke(app, ["export", str(run), "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert read_json(out / "decisions.json")["tunings"][0]["line"] == tuned.facts["line"]


def test_a_student_speaks_of_no_known_shares(run: Path) -> None:
    folder = RunFolder.open(run)
    config = folder.load_config().updated({"distill.teacher": "teacher"})
    assert "student" in prior_of_run(folder, config).unknown


def test_labels_play_no_part(run: Path, labelled: Path, lot: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(lot)
    rows.to_csv(tmp_path / "plain.csv", index=False)
    rows.assign(label="hole").to_csv(tmp_path / "wrong.csv", index=False)
    limits = Limits.from_dict(ESTIMATE)
    found = [
        recame.tune(run, labelled, limits, normal="ok", lot=tmp_path / f"{name}.csv").expected.mix
        for name in ("plain", "wrong")
    ]
    assert found[0].tolist() == found[1].tolist()


def test_a_lot_in_memory_tells_the_same_mix(
    run: Path, finished: Path, labelled: Path, lot: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    limits = Limits.from_dict(ESTIMATE)
    by_path = recame.tune(run, labelled, limits, normal="ok", lot=lot)
    given = recame.tune(other, labelled, limits, normal="ok", lot=pd.read_parquet(lot))
    assert given.policy.to_dict() == by_path.policy.to_dict()
    told = read_json(other / "decisions.json")
    assert "DataFrame of 500 rows" in str(told)
