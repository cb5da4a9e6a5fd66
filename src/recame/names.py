"""Names as others take them: the cell of a table, the word of a command, a name in a sentence.

A class or a file may be called whatever a file system or a table holds: bytes that are no text,
line ends, what a spreadsheet takes for a formula and a terminal for a command.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sized
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from recame.errors import ConfigError
from recame.files import file_name

if TYPE_CHECKING:  # a line's machine has none
    import pandas as pd

#: How a formula begins in a spreadsheet.
_FORMULA = frozenset("=+-@\t\r")
#: What stands for a byte, or half a character, that is no text.
_NO_TEXT = re.compile(r"(\\*)([\ud800-\udfff]|ud[89a-f][0-9a-f]{2})")
_ESCAPE = re.compile(r"(\\+)ud([89a-f][0-9a-f]{2})")
#: What a terminal obeys, and what turns the order of the letters that follow.
_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
#: Signs between names, as lists in sentences have them.
_BETWEEN = frozenset(",;\"'()")
#: Bytes of a name that every file system takes, with room for what is put around it.
_LONGEST = 200


def counted(count: int, what: str = "image") -> str:
    """A number with its noun.

    Examples:
        >>> counted(1), counted(1200, "pair"), counted(2, "class")
        ('1 image', '1,200 pairs', '2 classes')
    """
    many = "" if count == 1 else "es" if what.endswith("ss") else "s"
    return f"{count:,} {what}{many}"


def by_number(count: int, one: str, several: str) -> str:
    """The verb, or another word, that goes with a number.

    Examples:
        >>> by_number(1, "goes", "go"), by_number(0, "goes", "go")
        ('goes', 'go')
    """
    return one if count == 1 else several


def in_words(given: object) -> str:
    """What was given as data, as a sentence names it: its path, or what it is in memory.

    Examples:
        >>> in_words("night_shift.csv"), in_words([("a.png", "ok"), ("b.png", "dent")])
        ('night_shift.csv', 'list of 2 rows')
    """
    if isinstance(given, str | os.PathLike):
        return os.fsdecode(given)
    name = type(given).__name__
    return f"{name} of {counted(len(given), 'row')}" if isinstance(given, Sized) else name


def escaped(text: str) -> str:
    r"""A name as valid Unicode: what is no text becomes an escape, as `\udcff` for the byte FF.

    It is the one that JSON has for it (`recame.files.write_text`). Backslashes before it, and
    before what looks like one, are doubled, so that `unescaped` gives every name back.

    Examples:
        >>> print(escaped("bad\udcff.png"), escaped(r"c:\new"), escaped(r"a\udcff"))
        bad\udcff.png c:\new a\\udcff
    """

    def escape(found: re.Match[str]) -> str:
        slashes, what = found[1] * 2, found[2]
        return f"{slashes}\\u{ord(what):04x}" if len(what) == 1 else f"{slashes}{what}"

    return _NO_TEXT.sub(escape, text)


def unescaped(text: str) -> str:
    """What `escaped` was given."""

    def restore(found: re.Match[str]) -> str:
        half, odd = divmod(len(found[1]), 2)
        return "\\" * half + (chr(int(f"d{found[2]}", 16)) if odd else f"ud{found[2]}")

    return _ESCAPE.sub(restore, text)


def cell_of(text: str) -> str:
    """A text as a CSV's cell: valid Unicode that a spreadsheet takes for no formula.

    What is no text is `escaped`; what begins with one of `= + - @`, a tab or a carriage return, or
    with apostrophes and then one of these, gets an apostrophe in front. `text_of` undoes both.
    """
    text = escaped(text)
    return f"'{text}" if text.lstrip("'")[:1] in _FORMULA else text


def text_of(cell: str) -> str:
    """What `cell_of` made a cell of."""
    is_marked = cell[:1] == "'" and cell.lstrip("'")[:1] in _FORMULA
    return unescaped(cell[1:] if is_marked else cell)


def cells_of(table: pd.DataFrame) -> pd.DataFrame:
    """A table with each of its texts, and of its columns' names, as `cell_of` writes it."""
    return texts_changed(table, cell_of).rename(
        columns=lambda name: cell_of(name) if isinstance(name, str) else name
    )


def texts_changed(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """A table with each of its texts changed; what is none stays."""
    import pandas as pd

    changed = table.copy(deep=False)
    for name in changed.select_dtypes(exclude="number"):
        before = changed[name].tolist()
        after = [change(value) if isinstance(value, str) else value for value in before]
        if any(a is not b and a != b for a, b in zip(before, after, strict=True)):
            # Of objects, since columns of text hold nothing that is no text.
            changed[name] = pd.Series(after, changed.index, dtype=object)
    return changed


def printable(text: str) -> str:
    r"""A text that a terminal prints and does not obey: control characters become escapes.

    Line ends and tabs stay.

    Examples:
        >>> print(printable("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""`printable`, and without line ends and tabs: for the cell of a table on a terminal.

    Examples:
        >>> print(one_line("a\nb"))
        a\nb
    """
    return printable(re.sub("[\t\n]", lambda found: repr(found[0])[1:-1], text))


def quoted(name: object) -> str:
    """A name in a sentence: as it is where nobody can misread it, else between quotes.

    Blanks at its ends, signs that stand between names, and what cannot be seen ask for quotes.

    Examples:
        >>> print(quoted("scratch"), quoted(" X "), quoted("a, b"), quoted(""))
        scratch ' X ' 'a, b' ''
    """
    text = str(name)
    plain = text == text.strip() and text.isprintable() and not _BETWEEN.intersection(text)
    return text if plain and text else repr(text)


def command(*words: str | Path) -> str:
    """A command to copy into a shell, each word quoted where it needs to be.

    A path that begins with a hyphen is no option. What is no text is written as `$'...'`, which
    bash and zsh read.

    Examples:
        >>> print(command("recame", "evaluate", Path("tr [x] y"), "--name", "a"))
        recame evaluate 'tr [x] y' --name a
    """
    return " ".join(map(_word, words))


def _word(word: str | Path) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = os.path.join(os.curdir, text)  # noqa: PTH118 - a Path drops the dot
    if not _COMMANDS.search(text):
        return shlex.quote(text)
    plain = (
        chr(b) if 31 < b < 127 and b not in b"'\\" else f"\\{b:03o}" for b in os.fsencode(text)
    )
    return f"$'{''.join(plain)}'"


def usual_run_dir(data: Path) -> Path:
    """Where a run on such data goes, if nobody says otherwise: `runs/<data>-<time>`."""
    name = data.resolve().name if data.is_dir() else data.stem
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def check_folder_name(name: str, option: str) -> None:
    """Refuse a name that some system cannot have as the name of a visible folder.

    Args:
        name: the name.
        option: the option that gave it, with which the message begins.

    Raises:
        ConfigError: the name leads elsewhere, is hidden, empty or too long, or some system cannot
            have it.
    """
    hidden = name != name.strip() or name.startswith(".")
    if hidden or file_name(name) != name or len(escaped(name).encode()) > _LONGEST:
        shown = name if len(name) <= _LONGEST else f"{name[:40]}..."
        raise ConfigError(
            f"{option} {shown!r} cannot be the name of a folder on every system: a name must not "
            'hold / \\ : * ? " < > | or %, begin with a dot, begin or end with a blank, be a '
            f"device of Windows such as con, or have more than {_LONGEST} bytes. Choose a name "
            "like lot-7."
        )
