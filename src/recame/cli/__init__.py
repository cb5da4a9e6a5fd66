"""The command line: one function for each verb; it parses, calls one function and prints."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, TextIO

from recame.errors import RecameError, as_missing_dependency
from recame.machine import process_began
from recame.names import printable

_PACKAGE = Path(__file__).parents[1]
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}

#: Turns of OpenMP's waiting loop before a thread sleeps. With the default of 300,000 (milliseconds)
#: a thread spins on a core that another thread needs while other programs are busy: training became
#: up to ten times slower. On a quiet machine 5,000 turns cost nothing
#: (benchmarks/training/busy.py).
_SPINS = 5000

#: The exit code after Ctrl-C.
_INTERRUPTED = 130


def main() -> None:
    """Entry point of `recame`: prints a user's error on one line, with its exit code."""
    began = process_began()
    share_the_cores()
    _print_anything()
    from recame.cli.app import app

    try:
        with _warnings_in_words():
            app(standalone_mode=True, obj=began)  # a verb with a time budget counts from here
    except RecameError as error:
        _refuse(error)
    except ModuleNotFoundError as error:
        verb = sys.argv[1] if len(sys.argv) > 1 else ""  # options before it end the program
        known = as_missing_dependency(error, f"recame {verb}".strip())
        if known is error:
            raise
        _refuse(known)
    except SystemExit as left:
        if left.code == _INTERRUPTED:  # by a verb, which says how to continue, or by typer
            print(": ".join(["interrupted", *getattr(left, "__notes__", [])]), file=sys.stderr)  # noqa: T201
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        where = f"{error.filename or 'A file'} cannot be"
        advice = "choose another folder (--out, RECAME_CACHE, TMPDIR)."
        if error.errno == errno.EACCES:  # the file was read or written
            _refuse(f"{where} opened ({error.strerror}): change its permissions, or {advice}")
        _refuse(f"{where} written ({error.strerror}): free space there, or {advice}")


@contextmanager
def _warnings_in_words() -> Iterator[None]:
    """Print each warning of recame once, without the line of code; others as Python does."""
    others, told = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not Path(filename).is_relative_to(_PACKAGE):
            others(message, category, filename, lineno, file, line)
        elif (text := str(message)) not in told:
            told.add(text)
            print(f"warning: {printable(text)}", file=sys.stderr)  # noqa: T201

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others


def _print_anything() -> None:
    """Print a character that the terminal's encoding lacks as an escape, without an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def share_the_cores() -> None:
    """Let threads that wait for work sleep soon; must be called before torch is imported.

    Only libgomp (torch on Linux) reads the variable. If the user has set it, or `OMP_WAIT_POLICY`,
    nothing is changed.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))


def _refuse(error: BaseException | str) -> NoReturn:
    # A library's message of several lines, for example about bad YAML, becomes one line.
    line = " ".join(part.strip() for part in str(error).splitlines())
    print(f"error: {printable(line)}", file=sys.stderr)  # noqa: T201
    sys.exit(error.exit_code if isinstance(error, RecameError) else 2)
