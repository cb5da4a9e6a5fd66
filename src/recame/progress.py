"""How far a long step is, and what it says: one protocol, its bars and lines on a terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from recame.names import printable

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def silent(label: str, done: int, total: int) -> None:
    """Tell nobody."""


def relabelled(progress: Progress, label: str) -> Progress:
    """Pass a step's progress on under another label."""
    return lambda _, done, total: progress(label, done, total)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line in which every name stands as it is: a class may be called `[/]` or `:x:`.

    What a terminal would obey is shown and not obeyed (`recame.names.printable`). Who has given the
    logger `recame` a level and a handler reads it there, too.
    """
    shown = printable(text)
    logger.info("%s", shown.strip())
    console.print(
        shown, style=style or None, markup=False, emoji=False, highlight=False, soft_wrap=True
    )


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Give a `Progress` that moves one bar for each label."""
    # Not above: the runtime extra has no rich.
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, int] = {}

    def progress(label: str, done: int, total: int) -> None:
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(bars.task_ids[list(tasks).index(label)], completed=done, total=total)

    with bars:
        yield progress
