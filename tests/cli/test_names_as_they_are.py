"""Classes, paths and reasons are printed as they are, whatever markup would make of them."""

from __future__ import annotations

import ast
import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from recame.cli.app import _tell_trained
from recame.cli.predicting import print_summary
from recame.progress import progress_bars, say
from recame.runs.folder import RunFolder
from recame.runtime import PredictionSummary

SOURCE = Path(__file__).parents[2] / "src" / "recame"

#: Closes what was never opened, looks like a style, becomes an emoji, ends in a backslash.
ODD = ("[/]", "[red]b[/red]", ":bug:", "C:\\[a]\\")


def heard(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)


@pytest.mark.parametrize("name", ODD)
def test_a_line(name: str) -> None:
    console = heard()
    say(console, f"Run: {name}", "yellow")
    assert console.file.getvalue() == f"Run: {name}\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ODD)
def test_a_bar(name: str) -> None:
    console = heard(terminal=True)
    with progress_bars(console) as progress:
        progress(name, 1, 2)
    assert name in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_prediction() -> None:
    console = heard()
    summary = PredictionSummary(
        out=Path("[/]") / "a.csv",
        num_images=4,
        num_resumed=0,
        counts=dict.fromkeys(ODD, 1),
        decided={("automatic", "automatic"): 4, ("unreadable", "unreadable"): 1},
        num_unreadable=1,
        unreadable=(("[/].png", "[/reason]"),),
        lost={"colour": (1, "[/].png")},
        seconds=1.0,
    )
    print_summary(summary, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for name in (*ODD, "[/].png: [/reason]", "Written: [/]/a.csv"):
        assert name in text


def test_what_comes_next_can_be_copied(tmp_path: Path) -> None:
    run, console = tmp_path / "tr [x] $y", heard()
    run.mkdir()
    (run / "run.json").write_text('{"schema": 1, "state": "finished"}', encoding="utf-8")
    _tell_trained(RunFolder(run), console)
    told = console.file.getvalue().splitlines()[1]  # type: ignore[attr-defined]
    assert shlex.split(told) == ["Next:", "recame", "evaluate", str(run)]


def made_of_text(node: ast.expr) -> bool:
    """Whether what is printed holds its words as text: a table or a `Text`, no string."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        return name in {"Text", "Text.assemble", "Padding"} or name.endswith("_table")
    return isinstance(node, ast.Name) and node.id in {"heading", "line"}


def spoken(tree: ast.AST) -> list[ast.Call]:
    """Calls of a console's `print` with a string."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"print", "rule"}
        and "console" in ast.unparse(node.func.value)
        and node.args
        and not made_of_text(node.args[0])
    ]


def test_nothing_is_printed_in_another_way() -> None:
    """What is put together holds a class's name sooner or later: `say` prints it, or Text."""
    found = [
        f"{path.relative_to(SOURCE)}:{call.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        for call in spoken(ast.parse(path.read_text(encoding="utf-8")))
        if path.name != "progress.py"
    ]
    assert found == []
