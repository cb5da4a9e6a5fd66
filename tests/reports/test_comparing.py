from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import recame
from recame.cli.app import app
from recame.decisions.gate_rules import GateRules
from recame.errors import ConfigError, DataError
from recame.files import read_json, write_json

COUNTS = {"ok": 200, "scratch": 200, "dent": 200, "hole": 200}


@pytest.fixture(scope="module")
def labelled(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("comparing") / "fresh", COUNTS, seed=9)


@pytest.fixture(scope="module")
def releasing(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, but with labels turned: it calls holes normal."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("releasing") / "run"))
    for path in (run / "label_space.json", run / "model.json"):
        values = read_json(path)
        space = values if path.name == "label_space.json" else values["label_space"]
        names = space["names"]
        ok, hole = names.index("ok"), names.index("hole")
        names[ok], names[hole] = names[hole], names[ok]
        write_json(path, values)
    shutil.rmtree(run / "graph")
    return run


def test_a_model_may_take_its_own_place(finished: Path, labelled: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    found = recame.compare(
        finished, finished, labelled, normal="ok", out=tmp_path / "out", console=console
    )
    assert (found.verdict, found.exit_code, found.flips) == ("passed", 0, ())
    assert found.sentence in console.file.getvalue()  # type: ignore[attr-defined]
    assert read_json(tmp_path / "out" / "gate.json")["verdict"] == "passed"


def test_escapes_block_and_are_named(
    finished: Path, releasing: Path, labelled: Path, tmp_path: Path
) -> None:
    rules = GateRules(critical=("hole",))
    found = recame.compare(
        finished, releasing, labelled, normal="ok", rules=rules, out=tmp_path / "out"
    )
    assert (found.verdict, found.exit_code) == ("blocked", 1)
    assert found.flips[0].what == "critical defect escapes now"
    with (tmp_path / "out" / "flips.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(found.flips)
    assert rows[0]["class_name"] == "hole"


def test_the_command_leaves_with_the_verdict(
    finished: Path, releasing: Path, labelled: Path, tmp_path: Path
) -> None:
    rules = tmp_path / "gate.yaml"
    rules.write_text("critical: [hole]\nleast_images: 30\n")

    def left(new: Path, source: Path = labelled) -> int:
        words = ["compare", finished, new, source, "--normal", "ok", "--rules", rules]
        return CliRunner().invoke(app, [str(word) for word in words]).exit_code

    assert left(finished) == 0
    assert left(releasing) == 1
    few = tmp_path / "few"
    for name in COUNTS:
        (few / name).mkdir(parents=True)
        for number in range(5):
            shutil.copy(labelled / name / f"{number:03d}.png", few / name)
    assert left(finished, few) == 3


def test_what_cannot_be_compared(finished: Path, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the normal class with --normal"):
        recame.compare(finished, finished, labelled)
    with pytest.raises(ConfigError, match="The old model knows no class 'fine'"):
        recame.compare(finished, finished, labelled, normal="fine")
    (tmp_path / "good").mkdir()
    shutil.copytree(labelled / "ok", tmp_path / "good" / "ok")
    with pytest.raises(DataError, match="holds no defect"):
        recame.compare(finished, finished, tmp_path / "good", normal="ok")
    for text, told in (("[", "cannot be read as rules"), ("- 3", "holds no rules by name")):
        (tmp_path / "gate.yaml").write_text(text)
        with pytest.raises(ConfigError, match=told):
            recame.compare(finished, finished, labelled, normal="ok", rules=tmp_path / "gate.yaml")
