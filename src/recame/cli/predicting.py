"""What `recame predict` shows: a bar while it works, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from recame.data.image_table import USUAL, TableColumns
from recame.errors import ConfigError
from recame.names import quoted
from recame.progress import say

if TYPE_CHECKING:
    from recame.runtime import PredictionSummary


def table_columns(image: str | None, boxes: str | tuple[str, str, str, str] | None) -> TableColumns:
    """The columns that `--image-column` and `--box-columns` name; None: the usual ones.

    Raises:
        ConfigError: those of boxes are not four names, nor `none`.
    """
    image = image or USUAL.image
    if boxes is None or isinstance(boxes, tuple):
        return TableColumns(image, boxes or USUAL.box)
    if boxes == "none":
        return TableColumns(image, None)
    names = [name.strip() for name in boxes.split(",")]
    if len(names) != 4 or not all(names):
        raise ConfigError(
            f"--box-columns {boxes!r} are not four names: those of a box's left and upper edge, "
            "its width and its height, as x,y,width,height; or none, where a table means whole "
            "images."
        )
    left, top, width, height = names
    return TableColumns(image, (left, top, width, height))


class _Rate(TextColumn):
    """Images a second, of late."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s")


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, total) that moves one bar; what it begins with counts as no work."""
    bar = Progress(
        TextColumn("  predicting"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(""),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def advance(done: int, total: int) -> None:
        if not bar.task_ids:
            bar.add_task("predicting", total=total, completed=done)
        bar.update(bar.task_ids[0], completed=done)

    with bar:
        yield advance


#: What an image has lost on its way to the model: the end of "1 image ..." and "12 images ...".
_LOST = {
    "clipped": (
        "has",
        "have",
        "values outside the model's range, which are cut off: of another camera?",
    ),
    "near black": ("uses", "use", "fewer bits than the model's images: near black to it"),
    "colour": ("is", "are", "in colour, of which the model sees the grey values alone"),
    "pages": (
        "holds",
        "hold",
        (
            "further pages or pictures, of which the first alone was looked at; pages of a TIFF "
            "are judged where they are named (file.tif#2)"
        ),
    ),
}


#: What is done, and why a person looks: the end of "12 of them ...".
_ACTIONS = {
    "release": "released",
    "automatic": "classified automatically",
    "review": "go to a person",
    "unknown": "are like nothing known, and go to a person",
}
_REASONS = {
    "below_release": "normal, but not surely enough",
    "near_black": "near black to the model",
    "not_finite": "without an answer",
    "audit": "audit",
    "ambiguous": "not surely enough of any class",
    "class_not_promised": "of a class that promises nothing",
    "product_unseen": "of a product that training has not seen",
    "over_budget": "beyond what people can see",
}
#: Production lots that are named.
_LOTS = 10


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def print_summary(summary: PredictionSummary, console: Console) -> None:
    """Print what a prediction found, and where it lies."""
    if summary.num_unreadable:
        say(console, f"{summary.num_unreadable:,} files cannot be read:", "yellow")
        for path, reason in summary.unreadable:
            say(console, f"  {path}: {reason}")
        if summary.num_unreadable > len(summary.unreadable):
            say(console, f"  and {summary.num_unreadable - len(summary.unreadable):,} more")
    told = ", ".join(f"{quoted(name)} {count:,}" for name, count in summary.counts.items())
    if summary.num_unanswered:
        told += f"{', ' if told else ''}none {summary.num_unanswered:,}"
    say(console, f"{_images(summary.num_images)}: {told}")
    for action, what in _ACTIONS.items():
        reasons = {why: n for (done, why), n in summary.decided.items() if done == action}
        if reasons and not (action == "automatic" and len(summary.decided) == 1):
            why = ", ".join(f"{_REASONS.get(why, why)} {n:,}" for why, n in reasons.items())
            told = f" ({why})" if action in ("review", "unknown") else ""
            say(console, f"{sum(reasons.values()):,} of them {what}{told}")
    _print_over_budget(summary, console)
    if summary.num_unanswered:
        say(
            console,
            f"{_images(summary.num_unanswered)} without an answer: the model's names no class. "
            "Check its weights and what runs it.",
            "yellow",
        )
    for kind, (number, first) in summary.lost.items():
        one, several, what = _LOST[kind]
        verb, named = (one, first) if number == 1 else (several, f"{first}, ...")
        say(console, f"{_images(number)} {verb} {what} ({named})", "yellow")
    if summary.num_resumed:
        say(console, f"{summary.num_resumed:,} files were done before this start")
    fresh = summary.num_images + summary.num_unreadable - summary.num_resumed
    say(console, f"{fresh / summary.seconds:,.0f} images/s from files to decisions")
    say(console, f"Written: {summary.out}")


def _print_over_budget(summary: PredictionSummary, console: Console) -> None:
    """Print which production lots need more people than there are, and what to do."""
    lots = summary.over_budget
    for lot in lots[:_LOTS]:
        name = f"Lot {quoted(lot.lot)}" if lot.lot else "This lot"
        need = "needs" if lot.people == 1 else "need"
        say(
            console,
            f"{name}: {lot.people:,} of {_images(lot.images)} {need} a person, the review budget "
            f"is {lot.places:,}: {lot.people - lot.over:,} have a place, {lot.over:,} are over it",
            "yellow",
        )
    if len(lots) > _LOTS:
        say(console, f"and {len(lots) - _LOTS:,} more lots are over it", "yellow")
    if lots:
        say(
            console,
            "Hold what is over it (reason over_budget): it is neither released nor booked. Find "
            "time for it, or see what other limits would cost: decisions.html of the model, "
            "'Other limits'.",
            "yellow",
        )
