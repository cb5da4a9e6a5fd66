"""Which files one image passes on its way to a decision, and one setting on its way to the loss.

`python benchmarks/structure/paths.py [RUN IMAGE]` loads a finished run, predicts one image as
`recame predict` does, and prints the files of recame that were entered after loading, in order:
from which other files, and by which functions (`models/` is the network itself and not shown). Then
it prints the files whose code knows `objective.tau`. Without arguments it takes the run that the
tests keep.
"""

from __future__ import annotations

import ast
import inspect
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import recame
from recame.runtime import load
from recame.runtime.predicting_files import predict_files

ROOT = Path(__file__).parents[2]
SOURCE = Path(recame.__file__).parent
KEPT = ROOT / "tests" / "fixtures" / "before"


def place_of(frame: FrameType | None) -> str | None:
    """The file of ours that a frame runs, relative; None for the network and other packages."""
    if frame is None:
        return None
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(SOURCE):
        return None
    name = path.relative_to(SOURCE).as_posix()
    return None if name.startswith("models/") else name


@dataclass
class Entrance:
    """How a file was entered.

    Attributes:
        callers: files that called into it, or `` for what started the work.
        functions: of this file that they called.
    """

    callers: dict[str, None] = field(default_factory=dict)
    functions: dict[str, None] = field(default_factory=dict)


def files_entered(work: Callable[[], object]) -> dict[str, Entrance]:
    """Files in the order in which they are entered.

    Args:
        work: what is watched, in all its threads.
    """
    entrances: dict[str, Entrance] = {}
    generators: set[int] = set()  # that were begun: going on with one enters nothing

    def watch(frame: FrameType, event: str, _: object) -> None:
        here = place_of(frame) if event == "call" else None
        if here is None or frame.f_code.co_name == "<module>":
            return
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            if id(frame) in generators:
                return
            generators.add(id(frame))
        caller = frame.f_back
        while caller is not None and place_of(caller) is None:
            caller = caller.f_back
        before = place_of(caller) or ""
        if before != here and (before or not entrances):  # a thread begins where others left off
            entrance = entrances.setdefault(here, Entrance())
            entrance.callers[before] = None
            entrance.functions[frame.f_code.co_qualname] = None

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # as its documentation says
    return entrances


def files_of_an_image(run: Path, image: Path) -> dict[str, Entrance]:
    """What `files_entered` says of one image's prediction by a finished run."""
    predictor = load(run)
    predictor.predict([image])  # what is made at the first call belongs to loading
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "predictions.csv"
        return files_entered(lambda: predict_files(predictor, [image], out=table))


def files_that_know(word: str) -> list[str]:
    """Files whose code mentions a name or a setting; docstrings and comments do not count.

    `bench/` is left out: it compares settings and passes none on.
    """
    found = []
    for path in sorted(set(SOURCE.rglob("*.py")) - set((SOURCE / "bench").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                getattr(node, "id", None),
                getattr(node, "attr", None),
                getattr(node, "arg", None),
                getattr(node, "value", None) if isinstance(node, ast.Constant) else None,
            )
            if word in names or f"objective.{word}" in names:
                found.append(path.relative_to(SOURCE).as_posix())
                break
    return found


def main() -> None:
    """Print both paths."""
    run, image = (Path(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (None, None)
    files = files_of_an_image(run or KEPT / "run", image or KEPT / "images" / "ok" / "00.png")
    print(f"One image passes {len(files)} files after loading:")
    for name, entrance in files.items():
        callers = ", ".join(caller or "the verb" for caller in entrance.callers)
        print(f"  {name}, from {callers}: {', '.join(entrance.functions)}")
    known = files_that_know("tau")
    print(f"objective.tau is known to {len(known)} files:")
    for name in known:
        print(f"  {name}")


if __name__ == "__main__":
    main()
