"""Who may import whom, and how large a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "recame"

RANK_ZERO = {
    "errors",
    "contracts",
    "durations",
    "label_space",
    "config",
    "config_errors",
    "config_files",
}
MAY_IMPORT = {
    "data": RANK_ZERO,
    "models": RANK_ZERO,
    "losses": RANK_ZERO,
    "evaluation": RANK_ZERO | {"data", "models"},
    "training": RANK_ZERO | {"data", "models", "losses", "evaluation"},
    "deployment": RANK_ZERO | {"data", "models", "evaluation"},
    "serving": RANK_ZERO | {"deployment"},
    "bench": RANK_ZERO | {"data", "models", "losses", "evaluation", "training", "deployment"},
    "cli": RANK_ZERO
    | {"data", "models", "losses", "evaluation", "training", "deployment", "serving", "bench"},
} | dict.fromkeys(RANK_ZERO, RANK_ZERO)

FORBIDDEN_NAMES = {"utils", "common", "helpers", "core", "base"}

FILES = sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names = [node.module or ""]
            if node.module == "recame":
                names = [f"recame.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("recame.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_ranks(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    assert part in MAY_IMPORT, f"{part} has no rank: give it one here and in the design"
    wrong = imported_parts(path) - MAY_IMPORT[part] - {part}
    assert wrong == set(), f"{path.name} imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_hold_one_idea(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import recame", "import recame.cli.app", "import recame.config", "import recame.contracts"],
)
def test_light_imports_bring_no_torch(statement: str) -> None:
    heavy = {"torch", "lightning", "timm", "pandas", "matplotlib"}
    assert modules_after(statement) & heavy == set()


def test_loading_a_bundle_brings_neither_torch_nor_tables() -> None:
    heavy = {"torch", "lightning", "timm", "pandas", "pyarrow", "pydantic", "yaml", "sklearn"}
    found = modules_after("import recame; recame.load; recame.predict; import recame.data.decode")
    assert "recame.deployment.streaming" in found
    assert found & (heavy | {"matplotlib", "scipy", "rich", "typer"}) == set()


def test_decoding_brings_no_torch() -> None:
    # A runtime without torch shares the decoder.
    code = "import importlib.util as u\nimport sys\nspec = u.find_spec('recame.data.decode')"
    assert "torch" in modules_after("import torch")  # the check itself can fail
    source = (SOURCE / "data" / "decode.py").read_text(encoding="utf-8")
    assert "import torch" not in source, code


def test_public_names_exist() -> None:
    import recame

    for name in recame.__all__:
        assert getattr(recame, name).__name__ == name
    assert len(recame.__all__) <= 18
