"""Progress of the long steps on a terminal, and silence elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Called with (what is being done, done, total).
Report = Callable[[str, int, int], None]


@contextmanager
def progress_bars(console: Console) -> Iterator[Report]:
    """Give a function (label, done, total) that moves one bar for each label."""
    bars = Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, int] = {}

    def report(label: str, done: int, total: int) -> None:
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(bars.task_ids[list(tasks).index(label)], completed=done, total=total)

    with bars:
        yield report
