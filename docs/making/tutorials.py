"""Run the commands of a tutorial and write what they print into its page.

    python docs/making/tutorials.py docs/tutorials/my-first-model.md --in FOLDER

A fenced block with a `title` is a file of that name; a `console` block holds commands, each after
a `$`, and below each what it printed. Both are run in the page's order in FOLDER, which must be
new. Progress lines are left out; nothing else is.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
MACHINE = re.compile(r"<!-- machine -->.*?<!-- end of machine -->", re.DOTALL)
#: What a command may leave with, beside 0: `recame verify` answers by its exit code.
ANSWERS = {"verify": {0, 1, 3}}
#: Columns of a terminal as a page has them.
COLUMNS = "100"


@dataclass(frozen=True)
class Step:
    """A command of a page.

    Attributes:
        command: as it is typed.
        output: what the page says that it prints.
    """

    command: str
    output: str


def files(page: str) -> dict[str, str]:
    """Name -> text of the files that a page tells to save."""
    return {found["title"]: found["text"] for found in BLOCK.finditer(page) if found["title"]}


def steps(block: str) -> Iterator[Step]:
    """The commands of a console block."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield Step(command, output)


def commands(page: str) -> list[Step]:
    """All commands of a page in their order."""
    blocks = (found["text"] for found in BLOCK.finditer(page) if found["kind"] == "console")
    return [step for block in blocks for step in steps(block)]


def run(command: str, folder: Path) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it fails.
    """
    words = shlex.split(command)
    if words[0] in ("python", "recame"):
        words[:1] = [sys.executable, *(["-m", "recame"] if words[0] == "recame" else [])]
    environment = {**os.environ, "COLUMNS": COLUMNS, "NO_COLOR": "1", "PYTHONUTF8": "1"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    verb = command.split()[1] if command.startswith("recame") else ""
    if done.returncode not in ANSWERS.get(verb, {0}):
        raise RuntimeError(f"{command} left with {done.returncode}:\n{done.stdout}{done.stderr}")
    # A reader's folder is another one.
    told = done.stdout.replace(f"{folder.resolve()}{os.sep}", "")
    return "\n".join(line.rstrip() for line in told.strip("\n").split("\n"))


def renewed(page: str, answer: Callable[[str], str]) -> str:
    """The page with what each of its commands prints now.

    Args:
        page: Markdown.
        answer: from a command to its output.
    """

    def console(found: re.Match[str]) -> str:
        if found["kind"] != "console":
            return found[0]
        told = []
        for step in steps(found["text"]):
            output = answer(step.command)
            told.append(f"$ {step.command}\n{output}\n" if output else f"$ {step.command}\n")
        return f"```console\n{''.join(told)}```"

    return BLOCK.sub(console, page)


def machine() -> str:
    """The sentence that names the machine of a page's outputs."""
    processor = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        named = re.search(r"model name\s*: (.*)", described.read_text(encoding="utf-8"))
        processor = named[1] if named else processor
    cores = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
    beside = getattr(os, "getloadavg", lambda: (0.0,))()[0] > float(cores) + 1
    told = f"The machine: {processor}, {cores} core{'' if cores == '1' else 's'}"
    return told + (", other programs beside it." if beside else ".")


def main() -> None:
    """Run one page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--in", dest="folder", type=Path, required=True)
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    options.folder.mkdir(parents=True)
    for name, text in files(page).items():
        (options.folder / name).write_text(text, encoding="utf-8")

    def answer(command: str) -> str:
        print(f"$ {command}", flush=True)
        output = run(command, options.folder)
        print(output, flush=True)
        return output

    told = renewed(page, answer)
    told = MACHINE.sub(f"<!-- machine -->{machine()}<!-- end of machine -->", told)
    options.page.write_text(told, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
