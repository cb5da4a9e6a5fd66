"""What `import recame` gives: every verb a function, every name its type, no typo unnoticed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import recame
from recame.cli.app import app

ROOT = Path(__file__).parents[1]
#: Verbs whose function has another name: the verb is a package's, or says too little alone.
OTHERWISE = {"export": "export_bundle", "latency": "measure_latency", "bench": "run_bench"}
#: Verbs of the command line alone, and one that in Python is a method of `PUBLIC_SETS`.
ALONE = {"settings", "doctor", "cache", "prepare"}


def test_every_name_is_listed_and_there() -> None:
    assert sorted(recame.__all__) == recame.__all__ == sorted(recame._HOMES)
    assert set(recame.__all__) <= set(dir(recame))
    for name in recame.__all__:
        value = getattr(recame, name)
        assert not isinstance(value, ModuleType), name
        assert (value.__doc__ or "").strip(), name


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse((ROOT / "src/recame/__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and node.body[1:])
    seen: dict[str, str] = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            home = str(node.module).removeprefix("recame.")
            for alias in node.names:
                other = "" if alias.asname is None else f":{alias.name}"
                seen[alias.asname or alias.name] = home + other
    assert seen == recame._HOMES


def test_every_verb_has_its_function() -> None:
    verbs: Any = typer.main.get_command(app)
    for verb in set(verbs.commands) - ALONE:
        assert callable(getattr(recame, OTHERWISE.get(verb, verb))), verb


def test_a_typo_names_the_nearest() -> None:
    words = [sys.executable, "-c", "import recame; recame.evalute"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    told = done.stderr.strip().splitlines()[-1]
    assert "module 'recame' has no attribute 'evalute'" in told
    assert "Did you mean: 'evaluate'?" in told
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        recame.zzz  # type: ignore[attr-defined]  # noqa: B018


def test_a_student_needs_a_teacher_or_its_own_folder(tmp_path: Path) -> None:
    with pytest.raises(recame.RecameError, match="No teacher given"):
        recame.distill()
    with pytest.raises(recame.RecameError, match="needs the student's run"):
        recame.distill(resume=True)
    (tmp_path / "run-student").mkdir()
    (tmp_path / "run-student" / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(recame.RecameError, match="run-student"):
        recame.distill(tmp_path / "run")


USER = """
import recame

folder = recame.train("images", out="runs/first")
recame.evalute(folder.path)
recame.train("images", output="runs/first")
print(recame.load(folder.path).predict(["a.png"])[0].lable)
summary = recame.predict(folder.path, ["images"], out="table.csv")
print(summary.num_images)
"""


def test_a_type_checker_finds_mistakes_in_user_code(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    # The project's own settings and cache: what `make lint` has read is not read again.
    words = ["--config-file", ROOT / "pyproject.toml", "--no-error-summary"]
    words += ["--cache-dir", ROOT / ".mypy_cache"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, tmp_path / "user.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    told = [line.partition("user.py:")[2] for line in done.stdout.splitlines() if "error" in line]
    assert [line.partition(":")[0] for line in told] == ["5", "6", "7"], done.stdout + done.stderr
    assert 'has no attribute "evalute"' in told[0]
    assert 'Unexpected keyword argument "output"' in told[1]
    assert 'has no attribute "lable"' in told[2]
