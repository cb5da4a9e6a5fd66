"""Bytes of a table -> its text and separator, if both are certain, and the guessed encoding."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from recame.errors import ConfigError, DataError
from recame.files import open_regular

#: Byte-order marks; UTF-32 comes first, as its mark begins like that of UTF-16.
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SEPARATORS = ",;\t|"
_WESTERN = "cp1252"
#: Signs in Western European texts beside letters.
_SIGNS = frozenset("°µ²³¹€£§±·…“”„«»ºª½¼¾®©™¿¡\u00a0\u00d7\u2013\u2014\u2018\u2019\u201a")
#: Two accented letters stand beside each other now and then, three never do.
_LONGEST_RUN = 2


class TableText(NamedTuple):
    """A table as text.

    Attributes:
        text: without a byte-order mark, and without a line that gives the separator.
        separator: one character.
        guessed: the code page that was guessed from the bytes; None if the encoding is certain.
    """

    text: str
    separator: str
    guessed: str | None


def read_table_text(source: Path, columns: Collection[str], encoding: str = "auto") -> TableText:
    """Read a CSV file as spreadsheets and programs write it.

    The encoding is that of the byte-order mark, else the declared one, else UTF-8 if it decodes the
    whole file. Bytes that are not UTF-8 count as Windows-1252 only if all of them mean letters and
    signs as Western European texts use them; any other code page must be declared. The separator is
    the one with which the header has the wanted columns; a first line `sep=;` gives it.

    Args:
        source: the file.
        columns: names that the header should hold.
        encoding: a name that Python knows, or `auto`.

    Raises:
        ConfigError: the encoding is unknown.
        DataError: the file cannot be opened, or its encoding is not certain.
    """
    try:
        with open_regular(source) as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(
            f"{source} cannot be opened ({error.strerror or error}): check the file and its "
            "permissions."
        ) from error
    text, guessed = _decoded(source, content, encoding)
    if "\0" in text:
        raise DataError(
            f"{source} contains zero bytes, so it cannot be read as a table: if it is UTF-16, "
            "declare it with --set data.encoding=utf-16-le, or save it as UTF-8."
        )
    first, newline, rest = text.partition("\n")
    told = re.fullmatch(r'"?sep=(.)"?\r?', first)
    if told is not None and newline:  # Excel's own line
        return TableText(rest, told[1], guessed)
    return TableText(text, _separator(first, columns), guessed)


def _decoded(source: Path, content: bytes, encoding: str) -> tuple[str, str | None]:
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding == "auto" or marked is not None:
        try:
            return content.decode(marked or "utf-8"), None
        except UnicodeDecodeError as error:
            if marked is not None:
                raise DataError(
                    f"{source} begins as {marked.upper()}, but not all of it is ({error}): it was "
                    "cut or damaged. Save it again as UTF-8."
                ) from error
        return _western(source, content), _WESTERN
    try:
        return content.decode(encoding), None
    except LookupError as error:
        raise ConfigError(
            f"data.encoding={encoding!r} is not an encoding that Python knows ({error}): give for "
            "example utf-8, cp1252, cp1250, cp1251, cp932 or gbk."
        ) from error
    except UnicodeError as error:
        raise DataError(
            f"{source} is not {encoding} text ({error}): declare the right data.encoding, or save "
            "it as UTF-8."
        ) from error


def _western(source: Path, content: bytes) -> str:
    """The text in Windows-1252, if no other encoding is likely."""
    text = content.decode(_WESTERN, errors="replace")
    runs = [found[0] for found in re.finditer(r"[^\0-\x7f]+", text)]
    if all(len(run) <= _LONGEST_RUN and all(map(_is_western, run)) for run in runs):
        return text
    shown = next(line for line in text.splitlines() if not line.isascii())[:60]
    raise DataError(
        f"{source} is not UTF-8, and its encoding cannot be detected ({shown!r} in Windows-1252): "
        "a wrong guess would misname classes and miss files. Save it as UTF-8, or declare it with "
        "--set data.encoding=cp1252 (Western Europe), cp1250 (Central Europe), cp1251 (Cyrillic), "
        "cp932 (Japan) or gbk (China)."
    )


def _is_western(character: str) -> bool:
    return character in _SIGNS or (character.isalpha() and character <= "\u0178")


def _separator(header: str, columns: Collection[str]) -> str:
    """The separator with which the header has most of the columns, else the most frequent."""

    def fits(separator: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:
            return 0, 0
        known = {name.strip() for name in names}
        return len(known.intersection(columns)), header.count(separator)

    return max(_SEPARATORS, key=fits)
