"""`recame evaluate` decides as `recame predict` does, and says what came of it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

import recame
from recame.decisions.limits import Limits
from recame.errors import DataError
from recame.files import read_json, sha256, write_json
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions

COUNTS = {"ok": 150, "scratch": 120, "dent": 120, "hole": 120}
DECIDED = ["action", "reason", "note", "candidates", "sha256", "prediction"]


@pytest.fixture(scope="module")
def fresh(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("deciding") / "fresh", COUNTS, seed=7)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_both_verbs_write_one_table(run: Path, fresh: Path, tmp_path: Path) -> None:
    recame.tune(run, fresh, Limits.from_dict({"audit": 0.3}), normal="ok")
    console = Console(file=io.StringIO(), width=300)
    found = recame.evaluate(run, report=False, console=console)
    judged = load_predictions(run / "evaluation" / "test" / "predictions.parquet")
    rows = pd.read_csv(run / "manifest.csv")
    lot = rows[rows["split"] == "test"].drop(columns="image").rename(columns={"path": "image"})
    lot.to_csv(tmp_path / "lot.csv", index=False)
    recame.predict(run, tmp_path / "lot.csv", out=tmp_path / "out.parquet")
    told = load_predictions(tmp_path / "out.parquet")

    one = judged.predictions.table.assign(prediction="").set_index("path")
    other = told.predictions.table.assign(prediction="").set_index("path")
    shared = [name for name in DECIDED if name in one]
    assert (one[shared] == other.loc[one.index, shared]).all(axis=None)
    assert one["sha256"].tolist() == [sha256(Path(path)) for path in one.index]
    assert judged.classes == told.classes
    ours = pd.read_parquet(run / "evaluation" / "test" / "predictions.parquet").columns
    assert set(ours) == set(pd.read_parquet(tmp_path / "out.parquet").columns)
    assert set(one["reason"]) > {"audit"}

    assert found.outcome is not None
    kept = json.loads((run / "metrics.json").read_text())["test"]["decisions"]
    assert kept == found.outcome.to_dict()
    assert kept["review"]["number"] == sum(one["action"] == "review")
    assert "go to a person" in console.file.getvalue()  # type: ignore[attr-defined]
    (look,) = read_json(run / "decisions.json")["looks"]
    assert look["images"] == "split test of the run itself"
    recame.evaluate(run, report=False)
    recame.report(run)
    assert len(read_json(run / "decisions.json")["looks"]) == 1  # the same once more
    recame.tune(run, fresh, normal="ok")
    recame.report(run)  # other decisions on the same test
    assert len(read_json(run / "decisions.json")["looks"]) == 2
    assert recame.load(run).decisions is not None  # a look changes nothing


@pytest.mark.slow
def test_the_report_tells_what_came_of_decisions(run: Path, fresh: Path) -> None:
    recame.tune(run, fresh, normal="ok")
    found = recame.evaluate(run)
    assert found.outcome is not None
    place = run / "evaluation" / "test"
    escape = found.outcome.share("escape")
    before = (place / "predictions.parquet").stat().st_mtime_ns
    for _ in range(2):  # by evaluate, and of what it left
        page = (place / "report.html").read_text("utf-8")
        assert '<section id="decisions">' in page
        assert f"{escape.number} of {escape.images}" in page
        assert "## Decisions" in (place / "report.md").read_text("utf-8")
        assert json.loads((place / "report.json").read_text())["decisions"] == json.loads(
            json.dumps(found.outcome.to_dict())
        )
        recame.report(run)
    assert len(read_json(run / "decisions.json")["looks"]) == 1  # a report is no other look
    # Nor does it predict again what these decisions have judged.
    assert (place / "predictions.parquet").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_normal_class_that_tuned_is_that_of_the_report(run: Path, fresh: Path) -> None:
    """Training was not told it: `recame tune --normal` alone was."""
    place, words = run / "evaluation" / "test", "No class is named as normal"
    recame.evaluate(run)
    assert words in (place / "report.html").read_text("utf-8")
    assert "escape_rate" not in json.loads((run / "metrics.json").read_text())["test"]
    recame.tune(run, fresh, normal="ok")
    files = recame.report(run)  # what evaluate left was of other decisions
    table = pd.read_parquet(place / "predictions.parquet")
    defects = table[table["label"] != "ok"]
    for _ in range(2):
        page = (place / "report.html").read_text("utf-8")
        assert words not in page
        assert words not in files.markdown.read_text("utf-8")
        told = json.loads((place / "report.json").read_text())["evaluation"]
        assert told["escape_rate"]["value"] == (defects["prediction"] == "ok").mean()
        assert (
            json.loads((run / "metrics.json").read_text())["test"]["escape_rate"]
            == (told["escape_rate"])
        )
        recame.report(run)  # of what there is
    # Other views have other decisions; what is normal does not depend on them.
    assert recame.evaluate(run, views=2, report=False).evaluation.normal == "ok"
    assert RunFolder(run).label_space().normal is None


@pytest.mark.parametrize("tuned", [pytest.param(True, marks=pytest.mark.slow), False])
def test_what_a_file_has_lost_is_told_alike(
    run: Path, fresh: Path, tmp_path: Path, *, tuned: bool
) -> None:
    """A 12-bit file is near black to a model of 8 bits, whichever verb reads it."""
    lot = tmp_path / "lot"
    for name, factor in (("8-bit", 0), ("12-bit", 16), ("16-bit", 257)):
        (lot / name).mkdir(parents=True)
        for path in sorted((fresh / "ok").iterdir())[:4]:
            pixels = np.asarray(Image.open(path))
            shown = pixels.astype(np.uint16) * factor if factor else pixels
            Image.fromarray(shown).save(lot / name / path.name)
    pages = [Image.fromarray(np.asarray(Image.open(path))) for path in (fresh / "ok").iterdir()]
    pages[0].save(lot / "pages.tif", save_all=True, append_images=pages[1:3])
    rows = [f"{path.relative_to(tmp_path)},ok" for path in sorted(lot.rglob("*.*"))]
    table = tmp_path / "lot.csv"
    table.write_text("\n".join(["image,label", *rows]))
    if tuned:
        recame.tune(run, fresh, normal="ok")
    found = recame.evaluate(run, table, report=False)
    recame.predict(run, table, out=tmp_path / "out.parquet")
    one = pd.read_parquet(run / "evaluation" / "lot" / "predictions.parquet").set_index("image")
    other = pd.read_parquet(tmp_path / "out.parquet").set_index("image").loc[one.index]
    for name in ("action", "reason", "note", "candidates"):
        assert one[name].tolist() == other[name].tolist(), name
    dark = one.index.str.contains("12-bit")
    assert dark.sum() == (one["reason"] == "near_black").sum() == 4
    assert set(one["action"][dark]) == {"review"}
    assert "" not in set(one["candidates"][dark])
    words = "its values use 12 of 16 bits, but the model sees only the upper 8 bits"
    assert set(one["note"][dark]) == {words}
    assert one.loc["lot/pages.tif", "note"] == "only the first of its 3 pages is read"
    assert set(one["note"][~dark]) == {"", one.loc["lot/pages.tif", "note"]}

    if tuned:  # what is drawn again knows it too, whether it judges anew or not
        assert found.outcome is not None
        for _ in range(2):
            recame.report(run, "lot")
            told = json.loads((run / "evaluation" / "lot" / "report.json").read_text())
            assert told["decisions"] == json.loads(json.dumps(found.outcome.to_dict()))
            values = read_json(run / "evaluation" / "lot" / "judged.json")
            write_json(run / "evaluation" / "lot" / "judged.json", {**values, "decided": ""})


def test_without_decisions_every_label_stands(run: Path) -> None:
    found = recame.evaluate(run, report=False)
    assert found.outcome is None
    table = pd.read_parquet(run / "evaluation" / "test" / "predictions.parquet")
    assert set(table["action"]) == set(table["reason"]) == {"automatic"}
    recame.report(run)
    page = (run / "evaluation" / "test" / "report.html").read_text("utf-8")
    assert 'id="decisions"' not in page
    assert "decisions" not in json.loads((run / "metrics.json").read_text())["test"]


def test_a_table_with_labels_calibrates(run: Path, fresh: Path, tmp_path: Path) -> None:
    """Whoever writes labels into what `recame predict` wrote may give it back, from anywhere."""
    lot = pd.DataFrame({"image": [str(path) for path in sorted(fresh.rglob("*.png"))]})
    lot["label"] = [Path(name).parent.name for name in lot["image"]]
    lot["x"] = 1  # no part of a box
    lot.to_csv(tmp_path / "lot.csv", index=False)
    recame.predict(run, tmp_path / "lot.csv", out=tmp_path / "elsewhere" / "table.csv")
    found = recame.tune(run, tmp_path / "elsewhere" / "table.csv", normal="ok")
    assert found.facts["images"] == 510
    same = recame.tune(run, fresh, normal="ok")
    assert same.facts["tuning"] == 2  # these very images
    some = pd.read_csv(tmp_path / "elsewhere" / "table.csv")
    some["label"] = some["label"].where(some.index % 2 == 0)
    some.to_csv(tmp_path / "some.csv", index=False)
    assert recame.tune(run, tmp_path / "some.csv", normal="ok").facts["images"] == 255
    some.assign(label="").to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(DataError, match="holds no labelled image"):
        recame.tune(run, tmp_path / "none.csv", normal="ok")


def test_a_product_that_training_has_not_seen_goes_to_a_person(
    run: Path, fresh: Path, tmp_path: Path
) -> None:
    manifest = pd.read_csv(run / "manifest.csv")
    manifest["product"] = [f"P{number % 2}" for number in range(len(manifest))]
    test = manifest.index[manifest["split"] == "test"]
    manifest.loc[test[:9], "product"] = "P7"
    RunFolder(run).save_manifest(manifest)
    found = recame.tune(run, fresh, normal="ok")
    assert found.policy.products == {"P0", "P1"}
    recame.evaluate(run, report=False)
    judged = pd.read_parquet(run / "evaluation" / "test" / "predictions.parquet")
    unseen = judged["product"] == "P7"
    assert set(judged["reason"][unseen]) - {"unknown"} == {"product_unseen"}
    assert "product_unseen" not in set(judged["reason"][~unseen])

    lot = judged[["path", "product"]].rename(columns={"path": "image"})
    lot.to_csv(tmp_path / "lot.csv", index=False)
    recame.predict(run, tmp_path / "lot.csv", out=tmp_path / "out.csv")
    told = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    for name in ("action", "reason", "candidates"):
        assert told[name].tolist() == judged[name].tolist()
    lot[["image"]].to_csv(tmp_path / "without.csv", index=False)
    with pytest.warns(UserWarning, match="column 'product', but the table of images has no"):
        recame.predict(run, tmp_path / "without.csv", out=tmp_path / "without-out.csv")
    # Nobody says of which product these are.
    recame.predict(run, fresh, out=tmp_path / "folder.csv")
    assert "product_unseen" not in set(pd.read_csv(tmp_path / "folder.csv")["reason"])


def test_a_corrected_product_is_decided_anew(run: Path, fresh: Path, tmp_path: Path) -> None:
    manifest = pd.read_csv(run / "manifest.csv")
    RunFolder(run).save_manifest(manifest.assign(product=["A", "B"] * (len(manifest) // 2)))
    recame.tune(run, fresh, normal="ok")
    images = [str(path) for path in sorted(fresh.rglob("*.png"))]
    lot, out = tmp_path / "lot.csv", tmp_path / "out.csv"
    pd.DataFrame({"image": images, "product": "C"}).to_csv(lot, index=False)

    def stop(done: int, _total: int) -> None:
        if done >= 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recame.predict(run, lot, out=out, on_progress=stop)
    products = ["A" if number < 100 else "C" for number in range(len(images))]
    pd.DataFrame({"image": images, "product": products}).to_csv(lot, index=False)
    assert 150 <= recame.predict(run, lot, out=out).num_resumed < 200
    rows = pd.read_csv(out)
    seen, unseen = (set(rows["reason"][rows["product"] == name]) for name in ("A", "C"))
    assert "product_unseen" not in seen
    assert unseen <= {"product_unseen", "unknown"}
    assert "product_unseen" in unseen
