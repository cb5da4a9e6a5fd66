"""Tables on a terminal: whatever its width, each figure is whole or the table says so."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from recame.terminal_table import Cell, Column, fitted_table

COLUMNS = (
    Column("class", figures=False, least=8, most=24),
    Column("images"),
    Column("each", expendable=1),
    Column("similarity", expendable=2),
    Column("kind", figures=False, least=7),
)
ROWS: tuple[tuple[Cell, ...], ...] = (
    ("[red]a rather long name of a class", "1,050", Text("152.2", "green"), "0.38", "many in few"),
    ("ok", "48,123", "16.5", "1.05", ""),
)


def printed(table: RenderableType, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [*range(16, 60), 80, 120])
def test_no_figure_is_cut_at_any_width(width: int) -> None:
    text = printed(fitted_table(COLUMNS, ROWS, width, title="Classes", caption="legend"), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    left_out = re.sub(r".*Not shown in|\Z", "", text, flags=re.DOTALL)
    for place in range(1, 4):
        for row in ROWS:
            figure = str(row[place])
            assert COLUMNS[place].name in left_out or re.search(rf"(?<!\S){figure}(?![\w.])", text)
    for word in ("[red]a", "legend", "Classes", "many"):
        assert word in text


def test_expendable_columns_go_first() -> None:
    assert "Not shown" not in printed(fitted_table(COLUMNS, ROWS, 80), 80)
    narrow = printed(fitted_table(COLUMNS, ROWS, 42), 42)
    assert "Not shown in 42 columns: similarity" in narrow
    assert "152.2" in narrow
    assert "0.38" not in narrow


def test_a_row_becomes_lines_where_no_table_fits() -> None:
    columns = [Column("model", figures=False), *(Column(f"balanced_accuracy_{n}") for n in "abc")]
    text = printed(fitted_table(columns, [["expert 1", "0.812", "0.913", "0.014"]], 60), 60)
    words = " ".join(text.split())
    assert words == (
        "expert 1 balanced_accuracy_a 0.812, balanced_accuracy_b 0.913, balanced_accuracy_c 0.014"
    )


def test_no_rows() -> None:
    assert "images" in printed(fitted_table(COLUMNS, [], 80), 80)
