"""Tables on a terminal, or in its log file, that never cut a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Characters between two columns, and those at both ends of a line.
_BETWEEN, _ENDS = 2, 2

Cell = str | Text


@dataclass(frozen=True)
class Column:
    """A column of a table on a terminal.

    Attributes:
        name: its heading.
        figures: whether it is on the right and always whole; else it has words, which go on in
            the next line if they are too long.
        least: characters that a column of words keeps in each line.
        most: characters that a column of words has in each line at most, or None.
        expendable: columns with the highest value are left out first if the terminal is narrow;
            0 stays.
        style: of rich.
    """

    name: str
    figures: bool = True
    least: int = 10
    most: int | None = None
    expendable: int = 0
    style: str = ""


def fitted_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    width: int,
    *,
    title: str = "",
    caption: str = "",
) -> RenderableType:
    """A table of at most `width` characters; no cell is cut.

    If the table is too wide, columns of words are folded, then expendable columns are left out,
    which a line below the table says. If that is not enough, each row becomes a few lines.

    Args:
        columns: K columns.
        rows: of K cells each.
        width: characters in a line.
        title: above the table.
        caption: below the table.
    """
    wanted = [
        max(cell_len(column.name), *(cell_len(_plain(row[place])) for row in rows), 1)
        for place, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    while True:
        least = [
            wanted[place] if columns[place].figures else min(wanted[place], columns[place].least)
            for place in shown
        ]
        if sum(least) + _around(len(shown)) <= width:
            break
        spare = [place for place in shown if columns[place].expendable]
        if not spare:
            return _as_lines(columns, rows, title, caption)
        shown.remove(max(spare, key=lambda place: (columns[place].expendable, place)))
    left_out = [column.name for place, column in enumerate(columns) if place not in shown]
    if left_out:
        told = f"Not shown in {width} columns: {', '.join(left_out)}"
        caption = f"{caption}\n{told}" if caption else told
    room = width - _around(len(shown)) - sum(least)
    widths = []
    for place, start in zip(shown, least, strict=True):
        more = min(room, min(wanted[place], columns[place].most or width) - start)
        widths.append(start + max(0, more))
        room -= max(0, more)
    return _table([columns[place] for place in shown], widths, rows, shown, title, caption)


def _around(number: int) -> int:
    return _ENDS + _BETWEEN * (number - 1)


def _plain(cell: Cell) -> str:
    return cell.plain if isinstance(cell, Text) else cell


def _table(
    columns: Sequence[Column],
    widths: Sequence[int],
    rows: Sequence[Sequence[Cell]],
    shown: Sequence[int],
    title: str,
    caption: str,
) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(
        title=Text(title, "bold") if title else None,
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_header=any(column.name for column in columns),
    )
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            Text(column.name),
            justify="right" if column.figures else "left",
            width=width,
            overflow="fold",
            style=column.style,
        )
    for row in rows:
        table.add_row(*(_as_text(row[place]) for place in shown))
    return table


def _as_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], title: str, caption: str
) -> RenderableType:
    """Every row as its first cell, and the others with their headings, indented."""
    from rich.console import Group
    from rich.padding import Padding

    lines: list[RenderableType] = [Text(title, "bold")] if title else []
    for first, *others in rows:
        lines.append(_as_text(first))
        named = [
            f"{column.name} {_plain(cell)}".strip()
            for column, cell in zip(columns[1:], others, strict=True)
            if _plain(cell)
        ]
        lines.append(Padding(Text(", ".join(named), overflow="fold"), (0, 0, 0, 2), expand=False))
    return Group(*lines, Text(caption))


def _as_text(cell: Cell) -> Text:
    text = cell.copy() if isinstance(cell, Text) else Text(cell)
    text.overflow = "fold"
    return text
