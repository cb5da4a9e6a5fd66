"""Images unlike anything seen: told, promised not to be told of known ones, the same everywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import recame
from recame.cli.app import app
from recame.decisions.kept_scorer import UNKNOWN_FILES
from recame.decisions.limits import Limits
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import read_json
from recame.runs.predictions import load_predictions

COUNTS = {"ok": 150, "scratch": 120, "dent": 120, "hole": 120}
LIMITS = {"escape": 0.2, "unknown_false_alarm": {"overall": 0.05, "tail": 0.2}}


@pytest.fixture(scope="module")
def fresh(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("unknown") / "fresh", COUNTS, seed=7)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half black and half white, as no camera on the line sees it."""
    folder = tmp_path_factory.mktemp("foreign")
    for number in range(20):
        pixels = np.zeros((32, 32), np.uint8)
        pixels[6 + number :] = 255
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def tuned(finished: Path, fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("tuned") / "run"))
    found = recame.tune(run, fresh, Limits.from_dict(LIMITS), normal="ok")
    kinds = {promise.kind: promise for promise in found.promises}
    assert kinds["unknown_false_alarm"].limit == 0.05
    assert kinds["tail_false_alarm"].limit == 0.2
    return run


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "run"))


def test_foreign_images_are_unknown_and_known_ones_seldom(
    run: Path, fresh: Path, foreign: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    model = recame.load(run)
    strange = model.predict(foreign)
    assert {(each.action, each.reason) for each in strange} == {("unknown", "unknown")}
    assert all(each.candidates for each in strange)
    assert all(each.features is None for each in strange)
    other = model.predict(write_images(tmp_path / "other", COUNTS, seed=8))
    assert np.mean([each.action == "unknown" for each in other]) < 0.1
    lowest = min(each.unknown_score for each in strange)
    assert lowest > np.quantile([each.unknown_score for each in other], 0.95)


def test_graph_torch_and_tables_say_the_same(run: Path, foreign: Path, tmp_path: Path) -> None:
    by_graph = recame.load(run).predict(foreign)
    bare = Path(shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("graph")))
    by_torch = recame.load(bare).predict(foreign)
    scores = [[each.unknown_score for each in found] for found in (by_graph, by_torch)]
    np.testing.assert_allclose(*scores, rtol=1e-3)
    recame.predict(run, foreign, out=tmp_path / "out.csv")
    read = load_predictions(tmp_path / "out.csv").predictions.table
    np.testing.assert_allclose(read["unknown_score"], scores[0], rtol=1e-6)

    recame.evaluate(run, report=False)
    judged = pd.read_parquet(run / "evaluation" / "test" / "predictions.parquet")
    (tmp_path / "lot.csv").write_text("\n".join(["image", *judged["path"]]))
    recame.predict(run, tmp_path / "lot.csv", out=tmp_path / "lot.parquet")
    told = pd.read_parquet(tmp_path / "lot.parquet")
    for name in ("action", "reason", "candidates"):
        assert judged[name].tolist() == told[name].tolist()
    np.testing.assert_allclose(judged["unknown_score"], told["unknown_score"], rtol=1e-6)
    # A report decides by what was noted, since it sees no features.
    page = recame.report(run)
    noted = read_json(page.json)["decisions"]
    assert noted == read_json(run / "metrics.json")["test"]["decisions"]
    assert noted["review"]["number"] == judged["action"].isin(["review", "unknown"]).sum()


@pytest.mark.slow
def test_a_bundle_tells_them_too(run: Path, foreign: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    found = CliRunner().invoke(app, ["export", str(run), "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert len(list(out.glob(UNKNOWN_FILES))) == 1
    strange, of_run = recame.load(out).predict(foreign), recame.load(run).predict(foreign)
    scores = [[each.unknown_score for each in found] for found in (strange, of_run)]
    np.testing.assert_allclose(*scores, rtol=1e-3)
    # Its own threshold is higher: another look at the same images.
    decisions = recame.load(out).decisions
    assert decisions is not None
    above = decisions.policy.unknown_above
    assert above is not None
    found = [each.action == "unknown" for each in strange]
    assert found == [each.unknown_score > above for each in strange]
    assert any(found)
    assert recame.load(out).outputs == ("probabilities", "features")


@pytest.mark.slow
def test_a_bundle_alone_knows_no_images_that_trained_it(
    run: Path, fresh: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    CliRunner().invoke(app, ["export", str(run), "--out", str(out)])
    with pytest.raises(ConfigError, match=r"give its run with --run"):
        recame.tune(out, fresh, Limits.from_dict(LIMITS), normal="ok")


def test_new_images_verify_the_false_alarms(
    run: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_images(tmp_path / "other", COUNTS, seed=9)
    rows = {row.promise.kind: row for row in recame.verify(run, other).rows}
    # As many of each class as come in the line's shares, which are those of training.
    number = rows["unknown_false_alarm"].images
    assert 200 < number < 510
    assert rows["unknown_false_alarm"].beyond < 0.05 * number
    assert rows["tail_false_alarm"].images <= 360


@pytest.mark.parametrize("damage", ["missing", "flipped", "of another tuning"])
def test_a_damaged_file_is_refused(damage: str, run: Path, fresh: Path, tmp_path: Path) -> None:
    [path] = run.glob(UNKNOWN_FILES)
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        with np.load(path) as arrays:
            np.savez(path, **{name: arrays[name] * 2 for name in arrays})
    with pytest.raises(CheckpointError, match=r"unknown-\w+\.npz, which recognises unknown images"):
        recame.load(run)
    recame.tune(run, fresh, Limits.from_dict({"unknown_false_alarm": False}), normal="ok")
    found = recame.load(run).decisions
    assert found is not None
    assert (found.scorer, found.policy.unknown_above) == (None, None)
    assert list(run.glob(UNKNOWN_FILES)) == []


def test_what_was_judged_before_tuning_is_judged_again(finished: Path, fresh: Path, tmp_path: Path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    recame.evaluate(run, report=False)  # nothing says yet how strange these are
    recame.tune(run, fresh, Limits.from_dict(LIMITS), normal="ok")
    told = read_json(recame.report(run).json)["decisions"]
    found = recame.evaluate(run, report=False).outcome
    assert found is not None
    assert told == found.to_dict()
    assert told["review"]["number"] < told["review"]["images"]
    assert len(read_json(run / "decisions.json")["looks"]) == 1


def test_a_lot_of_before_is_not_watched(
    finished: Path, fresh: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    images = write_images(tmp_path / "lot", COUNTS, seed=11)
    recame.predict(run, images, out=tmp_path / "lot.csv")
    recame.tune(run, fresh, Limits.from_dict(LIMITS), normal="ok")
    with pytest.raises(DataError, match=r"does not say how strange .* Predict the lot again"):
        recame.monitor(run, tmp_path / "lot.csv")
    recame.predict(run, images, out=tmp_path / "lot.csv")
    lot = pd.read_csv(tmp_path / "lot.csv", keep_default_na=False)
    lot["label"] = "dent"
    lot.to_csv(tmp_path / "wrong.csv", index=False)
    found = recame.monitor(run, tmp_path / "wrong.csv")
    assert found.escapes["escapes of dent"].escapes == (lot["action"] == "release").sum() > 100
    assert found.exit_code == 1


def test_without_limits_the_smallest_are_promised(run: Path, fresh: Path) -> None:
    found = recame.tune(run, fresh, normal="ok")
    kinds = {promise.kind: promise for promise in found.promises}
    # What the images promise, and no less than is usual.
    assert 0.02 <= kinds["unknown_false_alarm"].limit < 0.05
    assert 0.06 <= kinds["tail_false_alarm"].limit < 0.5
    assert found.policy.unknown_above is not None


def test_what_cannot_be_promised_is_refused(run: Path, fresh: Path) -> None:
    before = (run / "decisions.json").read_bytes()
    with pytest.raises(ConfigError, match=r"cannot promise: unknown_false_alarm 0\.10%"):
        recame.tune(run, fresh, Limits.from_dict({"unknown_false_alarm": 0.001}), normal="ok")
    assert (run / "decisions.json").read_bytes() == before
