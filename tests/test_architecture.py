"""Who may import whom, that no imports run in circles, and what each room needs installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from recame import runtime

SOURCE = Path(__file__).parents[1] / "src" / "recame"

#: A file may import what has a lower rank, and what lies in its own room.
ROOMS = (
    ("errors",),
    (
        "contracts",
        "label_space",
        "durations",
        "files",
        "folders",
        "names",
        "peers",
        "pieces",
        "plugins",
        "progress",
        "short_names",
        "machine",
        "terminal_table",
    ),
    ("config",),
    ("data", "models", "losses", "metrics", "pages", "runs"),
    ("datasets", "inference", "decisions"),
    ("inspection", "runtime", "fab"),
    ("training", "export", "reports"),
    ("bench", "serving"),
    ("cli",),
    ("__main__",),
)
RANKS = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
#: Rank 0 of the design has an order of its own, but its second row may use each other.
ONE_ROOM = dict.fromkeys(ROOMS[1], "what crosses borders")

FORBIDDEN_NAMES = {"utils", "common", "helpers", "core", "base"}
MOST_LINES = 450

TABLES = {"pandas", "pyarrow", "sklearn", "scipy"}
TORCH = {"torch", "torchvision", "lightning", "timm", "safetensors"}
DRAWING = {"matplotlib", "jinja2"}
SETTINGS = {"pydantic", "yaml"}
#: What takes longer to load than all that `recame --help` says.
SLOW = {"numpy", "filelock", "importlib.metadata"}
#: What no module of a room may bring when it is imported.
NEVER_IN = {
    "metrics": TORCH | TABLES | DRAWING | SETTINGS,
    "pages": TORCH,
    "decisions": TORCH | TABLES | DRAWING | SETTINGS,
    "runtime": TORCH | TABLES | DRAWING | SETTINGS,
    "fab": TORCH,
    "serving": TORCH,
}
#: Needed by the runtime extra beside `runtime` and `decisions`.
SHARED_WITH_RUNTIME = (
    *(
        f"recame.data.{name}"
        for name in (
            *(
                "decode",
                "deep_colour",
                "file_part",
                "given_images",
                "image_file",
                "image_table",
                "jpeg2000",
            ),
            *(
                "listing",
                "opened",
                "paged_file",
                "pnm",
                "resize",
                "table_text",
                "tiff",
                "tiles",
                "webp",
            ),
        )
    ),
    *(f"recame.{name}" for name in (*ROOMS[0], *ROOMS[1])),
)


def module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(source: Path) -> dict[str, Path]:
    return {module_name(path, source): path for path in sorted(source.rglob("*.py"))}


def imports(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[tuple[str, bool]]:
    """Modules of ours that a file imports, and whether it does so as it is loaded itself."""
    for node, at_load in _statements(tree, at_load=True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, "a relative import hides where a name comes from"
            both = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in both]
        yield from ((name, at_load) for name in names if name.startswith("recame."))


def _statements(
    node: ast.AST, *, at_load: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_load
            continue
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _statements(child, at_load=at_load and not lazy and not typing_only)


def room_of(module: str) -> str:
    return module.split(".")[1]


def wrong_imports(source: Path) -> list[str]:
    """`importer -> imported` for each import, wherever it stands, that the ranks forbid."""
    known = modules_of(source)
    wrong = []
    for name, path in known.items():
        if name == "recame":
            continue
        for imported, _ in imports(ast.parse(path.read_text(encoding="utf-8")), known):
            here, there = room_of(name), room_of(imported)
            same = ONE_ROOM.get(here, here) == ONE_ROOM.get(there, there)
            if not same and not RANKS[there] < RANKS[here]:
                wrong.append(f"{name} -> {imported}")
    return wrong


def circles(source: Path) -> list[set[str]]:
    """Files that import each other, directly or through others, wherever the imports stand."""
    known = modules_of(source)
    edges = {
        name: {
            imported
            for imported, _ in imports(ast.parse(path.read_text(encoding="utf-8")), known)
            if imported in known and imported != name
        }
        for name, path in known.items()
        if name != "recame"
    }
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for following in edges.get(waiting.pop(), set()) - seen:
                seen.add(following)
                waiting.append(following)
        reached[start] = seen
    found: list[set[str]] = []
    for name, seen in reached.items():
        if name in seen and not any(name in circle for circle in found):
            found.append({other for other in seen if name in reached.get(other, set())})
    return found


def test_imports_follow_the_ranks() -> None:
    assert {room_of(name) for name in modules_of(SOURCE) if name != "recame"} <= set(RANKS)
    assert wrong_imports(SOURCE) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(SOURCE) == []


@pytest.mark.parametrize(
    ("files", "wrong", "round_trips"),
    [
        ({"data/a.py": "from recame.models import b", "models/b.py": ""}, 1, 0),
        ({"data/a.py": "def f():\n    from recame.training import b", "training/b.py": ""}, 1, 0),
        ({"data/a.py": "import recame.errors", "errors.py": ""}, 0, 0),
        ({"data/a.py": "from recame.data.b import x", "data/b.py": "import recame.data.a"}, 0, 1),
        (
            {
                "bench/a.py": "from recame.bench import b",
                "bench/b.py": "from recame.bench.c import x",
                "bench/c.py": "def f():\n    import recame.bench.a",
            },
            0,
            1,
        ),
    ],
)
def test_a_planted_violation_is_found(
    files: dict[str, str], wrong: int, round_trips: int, tmp_path: Path
) -> None:
    source = tmp_path / "recame"
    for name, text in {"__init__.py": "", **files}.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert len(wrong_imports(source)) == wrong
    assert len(circles(source)) == round_trips


def test_files_hold_one_idea() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert [path.name for path in files if path.stem in FORBIDDEN_NAMES] == []
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def modules_after(*statements: str) -> set[str]:
    code = "\n".join([*statements, "import sys; print(' '.join(sys.modules))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("room", [room for room in NEVER_IN if (SOURCE / room).is_dir()])
def test_rooms_import_no_more_than_their_extra_brings(room: str) -> None:
    names = [name for name in modules_of(SOURCE) if name != "recame" and room_of(name) == room]
    assert modules_after(*(f"import {name}" for name in names)) & NEVER_IN[room] == set()


def test_what_the_runtime_shares_needs_nothing_else() -> None:
    loaded = modules_after(*(f"import {name}" for name in SHARED_WITH_RUNTIME))
    assert loaded & NEVER_IN["runtime"] == set()


@pytest.mark.parametrize("words", [["-c", "import recame"], ["-m", "recame", "--help"]])
def test_starting_brings_nothing_slow(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "recame" in loaded
    assert loaded & (TORCH | TABLES | DRAWING | SETTINGS | SLOW) == set()


def test_public_names_exist() -> None:
    import recame

    for name in recame.__all__:
        there = recame._HOMES[name].partition(":")[2] or name
        assert getattr(recame, name).__name__ == there
    assert len(recame.__all__) <= 42


def test_no_name_of_the_runtime_is_also_a_module_of_it() -> None:
    """Once the module is imported, the package's name would give it in the function's place."""
    modules = {path.stem for path in (SOURCE / "runtime").glob("*.py")}
    assert modules.isdisjoint(runtime.__all__)
