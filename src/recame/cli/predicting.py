"""What `recame predict` shows: a progress bar, and a summary."""

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
from recame.names import by_number, counted, quoted
from recame.progress import say

if TYPE_CHECKING:
    from recame.runtime import PredictionSummary


def table_columns(image: str | None, boxes: str | tuple[str, str, str, str] | None) -> TableColumns:
    """The columns that `--image-column` and `--box-columns` name; None: the usual ones.

    Raises:
        ConfigError: the columns of boxes are neither four names nor `none`.
    """
    image = image or USUAL.image
    if boxes is None or isinstance(boxes, tuple):
        return TableColumns(image, boxes or USUAL.box)
    if boxes == "none":
        return TableColumns(image, None)
    names = [name.strip() for name in boxes.split(",")]
    if len(names) != 4 or not all(names):
        raise ConfigError(
            f"--box-columns {boxes!r} are not four names, so no box can be read: give the columns "
            "of a box's left edge, upper edge, width and height, for example x,y,width,height; or "
            "none, if the table has no boxes."
        )
    left, top, width, height = names
    return TableColumns(image, (left, top, width, height))


class _Rate(TextColumn):
    """Images per second, over the last while."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s")


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, total) that moves one bar; the first `done` counts as no work."""
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


#: What part of an image the model does not see: the end of "1 image ..." and "12 images ...".
_LOST = {
    "clipped": (
        "has",
        "have",
        "values outside the model's range, which are clipped: do they come from another camera?",
    ),
    "near black": (
        "uses",
        "use",
        (
            "only the darkest part of the model's range of values, which is nearly black to the "
            "model: convert to the bit depth of the training images"
        ),
    ),
    "colour": ("is", "are", "in colour, but the model sees only grey values"),
    "pages": (
        "holds",
        "hold",
        (
            "several pages or pictures, but only the first was predicted; name other pages of a "
            "TIFF to predict them (file.tif#2)"
        ),
    ),
}


#: The action, and why a person looks: the end of "12 of them ...".
_ACTIONS = {
    "release": "released",
    "automatic": "classified automatically",
    "review": "{go} to a person",
    "unknown": "{are} unlike the training images, and {go} to a person",
}
_REASONS = {
    "below_release": "normal, but below the release threshold",
    "near_black": "nearly black to the model",
    "not_finite": "without an answer",
    "audit": "audit",
    "ambiguous": "no class is certain enough",
    "class_not_promised": "class without a promise",
    "product_unseen": "product not in training",
    "over_budget": "over the review budget",
}
#: How many production lots are named.
_LOTS = 10


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def print_summary(summary: PredictionSummary, console: Console) -> None:
    """Print a summary of a prediction, and where its table lies."""
    if summary.num_unreadable:
        say(console, f"{counted(summary.num_unreadable, 'file')} cannot be read:", "yellow")
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
            number = sum(reasons.values())
            words = {"go": "goes", "are": "is"} if number == 1 else {"go": "go", "are": "are"}
            say(console, f"{number:,} of them {what.format(**words)}{told}")
    _print_over_budget(summary, console)
    if summary.num_unanswered:
        say(
            console,
            f"{_images(summary.num_unanswered)} without an answer: the model's output is not "
            "finite, so it names no class. Check its weights and the software that runs it.",
            "yellow",
        )
    for kind, (number, first) in summary.lost.items():
        one, several, what = _LOST[kind]
        verb, named = (one, first) if number == 1 else (several, f"{first}, ...")
        say(console, f"{_images(number)} {verb} {what} ({named})", "yellow")
    if summary.num_resumed:
        files, was = (
            counted(summary.num_resumed, "file"),
            by_number(summary.num_resumed, "was", "were"),
        )
        say(console, f"{files} {was} done by the interrupted prediction")
    fresh = summary.num_images + summary.num_unreadable - summary.num_resumed
    say(console, f"{fresh / summary.seconds:,.0f} images/s from files to decisions")
    say(console, f"Written: {summary.out}")


def _print_over_budget(summary: PredictionSummary, console: Console) -> None:
    """Print which production lots exceed the review budget, and what to do."""
    lots = summary.over_budget
    for lot in lots[:_LOTS]:
        name = f"Lot {quoted(lot.lot)}" if lot.lot else "This lot"
        need = "needs" if lot.people == 1 else "need"
        say(
            console,
            f"{name}: {lot.people:,} of {_images(lot.images)} {need} a person, but the review "
            f"budget is {lot.places:,}: {lot.people - lot.over:,} fit in it, {lot.over:,} are over "
            "it",
            "yellow",
        )
    if (more := len(lots) - _LOTS) > 0:
        verb = by_number(more, "is", "are")
        say(console, f"and {counted(more, 'more lot')} {verb} over the review budget", "yellow")
    if lots:
        say(
            console,
            "Hold back the images over the budget (reason over_budget): they are neither released "
            "nor booked. Let people look at them later, or see what other limits would cost: "
            "'Other limits' in decisions.html of the model.",
            "yellow",
        )
