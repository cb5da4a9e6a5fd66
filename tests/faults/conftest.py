"""A program run as its users run it, on small data, for tests that stop it where it hurts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recame.config import Config


@pytest.fixture(scope="session")
def verb() -> Callable[..., list[str]]:
    """The command of a verb: `verb("train", folder)`; needs no installed script."""

    def command(*words: object) -> list[str]:
        start = "from recame.cli import main; main()"
        return [sys.executable, "-c", start, *map(str, words)]

    return command


#: What the tests counted, for the end of the report.
_TOLD: list[str] = []


@pytest.fixture(scope="session")
def tell() -> Callable[[str], None]:
    """Say a figure at the end of pytest's report."""
    return _TOLD.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was told."""
    for line in _TOLD:
        terminalreporter.write_line(f"faults: {line}")


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """What makes a process obey the variables of `faulty_system.c`; None without a compiler."""
    if shutil.which("gcc") is None:
        return None
    source = Path(__file__).with_name("faulty_system.c")
    library = tmp_path_factory.mktemp("preloaded") / "faulty_system.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    # Read by the server that processes are forked from, when it starts.
    os.environ["LD_PRELOAD"] = str(library)
    return library


@pytest.fixture
def faulty_system(preloaded: Path | None) -> None:
    """Skip what needs a system at fault where none can be made."""
    if preloaded is None:
        pytest.skip("needs a C compiler: apt install gcc")


@pytest.fixture(scope="session")
def environment(preloaded: Path | None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of child processes: a cache of their own, one thread."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "RECAME_CACHE": cache, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def trained(
    defects: Path, tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run that was judged; work on a copy."""
    from recame import evaluate, train

    run = train(defects, tiny_config(), out=tmp_path_factory.mktemp("trained") / "run").path
    evaluate(run, report=False)
    return run


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder that is watched or cut off: nothing else is written there."""
    folder = tmp_path.resolve() / "room"
    folder.mkdir()
    return folder
