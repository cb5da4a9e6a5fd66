"""The queue on the terminal: a line for each running job, and the time left for all."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from recame.bench.queue.ledger import Event, Ledger
from recame.durations import spoken_duration
from recame.errors import CheckpointError
from recame.files import read_json
from recame.progress import say

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job


class QueueDisplay:
    """Print a line when a job ends; on a terminal, show the running ones below.

    Args:
        bench: its run folders hold the logs.
        ledger: the jobs of this call.
        console: where to print; nothing is shown if it is quiet.
        lanes: number of jobs at the same time.

    Attributes:
        elsewhere: number of awaited jobs that only other processes work on.
    """

    def __init__(self, bench: Bench, ledger: Ledger, console: Console, lanes: int) -> None:
        self.lanes = lanes
        self.elsewhere = 0
        self._bench = bench
        self._console = console
        self._open = {job.key: job for job in ledger.waiting()}
        self._running: dict[str, float] = {}
        self._before = len(ledger.finished_before)
        self._total = self._before + len(self._open)
        self._failures: dict[str, str] = {}
        recorded = [(j, _recorded_seconds(bench.result_path(j))) for j in ledger.finished_before]
        self._seconds = [(job, seconds) for job, seconds in recorded if seconds is not None]
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=2,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self._before:
            self._say(f"{self._before} of {self._total} runs are done already.")
        if self._console.is_terminal and not self._console.quiet:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._live.stop()
        if kind is None and self._failures:
            self._say(f"{len(self._failures)} of {self._total} runs failed:")
            for key, reason in self._failures.items():
                self._say(f"  {key}: {reason}")
            self._say(
                f"failure.txt and log.txt in {self._bench.path / 'runs'}/<run> say why; the same "
                "command tries these runs again."
            )

    def show(self, event: Event) -> None:
        """Show an event."""
        key = event.job.key
        if event.kind == "started":
            self._running[key] = time.monotonic()
            return
        since = self._running.pop(key, None)
        if event.kind == "retried":
            self._say(f"again  {key}: {event.reason}")
        elif event.kind == "failed":
            self._failures[key] = event.reason
            self._settle(event, f"failed {key}: {event.reason}")
        elif event.kind == "done":
            assert since is not None
            seconds = time.monotonic() - since
            self._seconds.append((event.job, seconds))
            self._settle(event, f"done   {key} in {spoken_duration(seconds)}")
        elif not event.reason:
            self._settle(event, f"done   {key} by another process")

    def say_stopped(self, in_hand: Sequence[Job]) -> None:
        """Say what is kept and how to continue."""
        self._live.stop()
        kept = self._total - len(self._open) - len(self._failures)
        self._say(f"Stopped: {kept} of {self._total} results are kept in {self._bench.path}.")
        if in_hand:
            names = ", ".join(job.key for job in in_hand)
            self._say(f"Interrupted, to continue from the last checkpoint: {names}.")
        self._say("The same command continues from here.")

    def _settle(self, event: Event, text: str) -> None:
        self._open.pop(event.job.key, None)
        number = self._total - len(self._open)
        left = self._left_s() if event.kind == "done" else None
        ending = f", about {spoken_duration(left)} left" if left else ""
        self._say(f"[{number}/{self._total}] {text}{ending}")

    def _say(self, text: str) -> None:
        say(self._console, text)

    def _left_s(self) -> int | None:
        """Seconds until all is done, estimated from jobs of the same kind."""
        if not self._seconds:
            return None
        now, left = time.monotonic(), []
        for job in list(self._open.values()):
            same = [(j.method, seconds) for j, seconds in self._seconds if j.data == job.data]
            alike = [seconds for method, seconds in same if method == job.method]
            alike = alike or [s for _, s in same] or [s for _, s in self._seconds]
            elapsed = now - self._running.get(job.key, now)
            left.append(max(0.0, sum(alike) / len(alike) - elapsed))
        # One job is never split, however many lanes there are.
        return round(max([sum(left) / self.lanes, *left]))

    def _render(self) -> Group:
        table = Table.grid(
            Column(no_wrap=True),
            Column(no_wrap=True, justify="right"),
            Column(no_wrap=True, overflow="ellipsis"),
            padding=(0, 2),
        )
        now = time.monotonic()
        for key, since in list(self._running.items()):
            job = self._open.get(key)
            last = "" if job is None else _last_line(self._bench.run_dir(job) / "log.txt")
            table.add_row(Text(key), Text(spoken_duration(now - since)), Text(last, style="dim"))
        settled = self._total - len(self._open)
        left = self._left_s()
        words = [f"{settled}/{self._total} runs"]
        words += [f"{len(self._failures)} failed"] if self._failures else []
        words += [f"about {spoken_duration(left)} left"] if left else []
        words += [f"{self.elsewhere} running in another process"] if self.elsewhere else []
        total = Table.grid(padding=(0, 2))
        bar = ProgressBar(self._total, settled, width=30)
        total.add_row(bar, Text(", ".join(words), no_wrap=True))
        return Group(table, total)


def _recorded_seconds(path: Path) -> float | None:
    """Duration that a result records; None for a damaged result, which the tables refuse."""
    try:
        values = read_json(path)
        seconds = float(values["train_s"]) + float(values["evaluate_s"])
    except (CheckpointError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None


def _last_line(path: Path) -> str:
    """The newest line of a log."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip() and not line.startswith("--- ")]
    return said[-1] if said else ""
