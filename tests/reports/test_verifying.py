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
from recame.errors import ConfigError, DataError
from recame.files import read_json, write_json

COUNTS = {"ok": 60, "scratch": 120, "dent": 120, "hole": 120}


@pytest.fixture(scope="module")
def labelled(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("verifying") / "fresh", COUNTS, seed=7)


@pytest.fixture(scope="module")
def others(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("verifying") / "others", COUNTS, seed=8)


@pytest.fixture(scope="module")
def tuned(finished: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("tuned") / "run"))
    recame.tune(run, labelled, normal="ok")
    return run


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "run"))


def test_promises_are_judged_by_new_images(run: Path, others: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    found = recame.verify(run, others, console=console)
    told = recame.load(run).predict(others)
    assert {row.promise.kind for row in found.rows} == {
        *("escape", "unknown_false_alarm", "tail_false_alarm")
    }
    for row in (row for row in found.rows if row.promise.kind == "escape"):
        own = [each for each in told if Path(each.image).parent.name == row.promise.of]
        assert (row.images, row.beyond) == (
            len(own),
            sum(each.reason == "released" for each in own),
        )
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert found.rows[0].sentence() in printed
    assert "(95% confidence)" in printed
    (look,) = read_json(run / "decisions.json")["verifications"]
    assert look["outcome"] == found.outcome
    assert recame.load(run).decisions is not None


def test_the_command_leaves_with_the_outcome(
    run: Path, others: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    def left(source: Path) -> int:
        return CliRunner().invoke(app, ["verify", str(run), str(source)]).exit_code

    few = write_images(tmp_path / "few", {"ok": 5, "scratch": 2, "dent": 2, "hole": 2}, seed=3)
    assert left(few) == 3
    values = read_json(run / "decisions.json")
    for promise in values["promises"]:
        promise["limit"] = 0.5
    write_json(run / "decisions.json", signed(values))
    assert left(others) == 0
    # What is labelled a defect and is none is released.
    wrong = tmp_path / "wrong"
    shutil.copytree(others / "ok", wrong / "scratch")
    for name in ("dent", "hole"):
        shutil.copytree(others / name, wrong / name)
    values["policy"]["release_above"] = "always"
    write_json(run / "decisions.json", signed(values))
    assert left(wrong) == 1


def test_what_tuned_does_not_verify(run: Path, labelled: Path, finished: Path) -> None:
    with pytest.raises(ConfigError, match="holds the images that the decisions were fitted to"):
        recame.verify(run, labelled)
    with pytest.raises(
        ConfigError, match=r"has no decisions .* to verify or to watch: .*recame tune"
    ):
        recame.verify(finished, labelled)


def test_a_part_of_what_tuned_does_not_verify_either(
    run: Path, labelled: Path, others: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(labelled, part)
    (part / "ok" / "000.png").unlink()
    with pytest.raises(ConfigError, match="holds the images that the decisions were fitted to"):
        recame.verify(run, part)
    for number, path in enumerate(sorted(others.rglob("*.png"))[::4]):
        shutil.copy(path, part / path.parent.name / f"new{number}.png")
    console = Console(file=io.StringIO(), width=300)
    found = recame.verify(run, part, console=console)
    assert "419 images of" in (told := console.file.getvalue())  # type: ignore[attr-defined]
    assert "left out: the decisions were fitted to them" in told
    holes = len(list((others / "hole").iterdir()))
    (row,) = [r for r in found.rows if r.promise.of == "hole" and r.promise.kind == "escape"]
    assert row.images == holes // 4


def test_what_trained_does_not_verify(run: Path, defects: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    recame.verify(run, defects, console=console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "left out: they trained or chose the model" in told


def test_others_of_their_groups_do_not_verify(
    finished: Path, labelled: Path, others: Path, tmp_path: Path
) -> None:
    def table(folder: Path, first: int) -> pd.DataFrame:
        paths = sorted(folder.rglob("*.png"))
        boards = [f"b{first + place}" for place in range(len(paths))]
        names = {"image": map(str, paths), "label": [path.parent.name for path in paths]}
        return pd.DataFrame({**names, "board": boards})

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    calibration = table(labelled, 0)
    recame.tune(run, calibration, limits={"group": "board"}, normal="ok")
    new = table(others, 1000)
    new.loc[:49, "board"] = "b3"  # of the board of one that tuned
    mixed = pd.concat([new, calibration[calibration["board"] == "b3"]], ignore_index=True)
    console = Console(file=io.StringIO(), width=300)
    recame.verify(run, mixed, console=console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 image of" in told
    assert "50 images of" in told
    assert "left out: of the same board as these" in told


def test_labels_that_the_model_does_not_know(
    run: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    odd = write_images(tmp_path / "odd", {"ok": 3, "crack": 4})
    with pytest.raises(DataError, match="4 images of crack, which the model does not know"):
        recame.verify(run, odd)


def test_an_image_that_cannot_be_read_goes_to_a_person(
    run: Path, others: Path, tmp_path: Path
) -> None:
    some = tmp_path / "some"
    shutil.copytree(others, some)
    (some / "hole" / "000.png").write_bytes(b"no image")
    console = Console(file=io.StringIO(), width=300)
    found = recame.verify(run, some, console=console)
    assert {row.promise.of: row.images for row in found.rows}["hole"] == 120
    assert "1 image cannot be read" in console.file.getvalue()  # type: ignore[attr-defined]
