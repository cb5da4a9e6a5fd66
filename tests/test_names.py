"""Names as cells, in sentences, in commands and as folders."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recame.errors import ConfigError
from recame.names import (
    cell_of,
    cells_of,
    check_folder_name,
    command,
    counted,
    escaped,
    one_line,
    printable,
    quoted,
    text_of,
    unescaped,
)


@given(st.text(alphabet="'=+-@\t\rab", max_size=6))
def test_a_cell_is_no_formula_and_comes_back(text: str) -> None:
    cell = cell_of(text)
    assert cell[:1] not in set("=+-@\t\r")
    assert text_of(cell) == text
    assert cell == text or cell == f"'{text}"


@given(st.text(alphabet="'=\\udcf8\udcff\ud83d\ude00é", max_size=12))
def test_what_is_no_text_comes_back(text: str) -> None:
    assert unescaped(escaped(text)) == text
    assert text_of(cell_of(text)) == text
    assert cell_of(text).encode().decode() == cell_of(text)


def test_escapes_are_those_of_json() -> None:
    assert escaped(os.fsdecode(b"bad\xff.png")) == "bad\\udcff.png"
    # Nothing else is changed, be it a path of Windows.
    for text in ("C:\\users\\udo\\new.png", "Bürste", "😀", "udcff", "\\u00e9"):
        assert escaped(text) == text


def test_a_table_of_cells() -> None:
    table = pd.DataFrame({"=a": ["=1", None], "n": [1, 2]})
    table["b"] = pd.Series(["x", "\udcff"], dtype=object)
    found = cells_of(table)
    assert list(found) == ["'=a", "n", "b"]
    assert found.iloc[0].tolist() == ["'=1", 1, "x"]
    assert found["'=a"].isna().tolist() == [False, True]
    assert found["b"].tolist() == ["x", "\\udcff"]
    assert table["=a"][0] == "=1"


def test_a_terminal_obeys_no_name() -> None:
    assert printable("a\x1b[2J\u202eb\udcff\r") == "a\\x1b[2J\\u202eb\\udcff\\r"
    assert printable("two\nlines\tof Bürste 😀 \\n") == "two\nlines\tof Bürste 😀 \\n"
    assert one_line("two\nlines\t") == "two\\nlines\\t"


@pytest.mark.parametrize("name", ["ok", "solder bridge", "[/]", "C:\\[a]\\", "Bürste", "😀"])
def test_what_nobody_misreads_has_no_quotes(name: str) -> None:
    assert quoted(name) == name


@pytest.mark.parametrize("name", [" X ", "X ", "", "a, b", "a\nb", "\u202ea", "it's", "a (3)"])
def test_other_names_have_quotes(name: str) -> None:
    assert quoted(name) == repr(name)


# Control characters and line separators are written as only bash and zsh read them.
@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1), min_size=1)
)
def test_a_shell_takes_a_command_apart_as_it_was(words: list[str]) -> None:
    assert shlex.split(command("recame", *words)) == ["recame", *words]


def test_a_path_is_no_option() -> None:
    assert command("recame", "evaluate", Path("-x y")) == "recame evaluate './-x y'"
    assert command("recame", "evaluate", "--name") == "recame evaluate --name"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bytes_that_are_no_text_reach_the_shell() -> None:
    name = b"it's\xff\x1b \\ %s\n"
    words = command("printf", "%s", os.fsdecode(name))
    done = subprocess.run(["bash", "-c", words], capture_output=True, check=True)
    assert done.stdout == name


@pytest.mark.parametrize(
    "name",
    [
        "../../esc",
        "..",
        ".",
        "",
        ".hidden",
        "a/b",
        "a\\b",
        " a",
        "a ",
        "con",
        "x:y",
        "a\nb",
        "é" * 101,
    ],
)
def test_what_is_no_plain_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--name .* cannot be the name.*Choose a name"):
        check_folder_name(name, "--name")


@pytest.mark.parametrize("name", ["test", "lot 7", "val_2", "缺陷", "a.b", "lot-7"])
def test_plain_names_are_taken(name: str) -> None:
    check_folder_name(name, "--name")


def test_a_number_has_its_noun() -> None:
    assert [counted(n, "view") for n in (0, 1, 2)] == ["0 views", "1 view", "2 views"]
