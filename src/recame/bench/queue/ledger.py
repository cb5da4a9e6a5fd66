"""The ledger of jobs that wait, run, are done or failed; for local workers and for a cluster."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from recame.bench.queue.claim import is_claimed
from recame.bench.queue.process import Outcome, note_failure, read_failure

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job

Kind = Literal["started", "done", "failed", "retried", "skipped"]

#: A job counts as failed after so many deaths of its process.
_DEATHS = 2


@dataclass(frozen=True)
class Event:
    """An event of a job.

    Attributes:
        kind: `started`; `done`; `failed`; `retried`: its process died and it will run again;
            `skipped`: another process ran it meanwhile, or works on it.
        job: the job.
        reason: of a failure or a retry.
    """

    kind: Kind
    job: Job
    reason: str = ""


@dataclass(frozen=True)
class QueueSummary:
    """The result of a call for each of its jobs, by key.

    Attributes:
        done: jobs that this call ran.
        failed: job -> reason; the next call tries it again.
        skipped: jobs whose result existed already, or was written by another process meanwhile.
    """

    done: tuple[str, ...]
    failed: dict[str, str]
    skipped: tuple[str, ...]


class Ledger:
    """The state of each job of a call. Its length is the number of waiting jobs.

    Args:
        bench: a plan with its folder.
        jobs: in the order in which to run them; a job that is named twice runs once.
    """

    def __init__(self, bench: Bench, jobs: Sequence[Job]) -> None:
        self._bench = bench
        self._listeners: tuple[Callable[[Event], None], ...] = ()
        self._events: list[Event] = []
        self._deaths: Counter[str] = Counter()
        unique = {job.key: job for job in jobs}.values()
        self.finished_before = [job for job in unique if bench.result_path(job).exists()]
        self._waiting = deque(job for job in unique if not bench.result_path(job).exists())
        # Compare content, not time: clocks of nodes may differ.
        self._failed_before = {job.key: read_failure(bench, job) for job in self._waiting}

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> Iterable[Job]:
        """The jobs that wait, in their order."""
        return tuple(self._waiting)

    def listen(self, *listeners: Callable[[Event], None] | None) -> None:
        """Call these with each event."""
        self._listeners = tuple(call for call in listeners if call is not None)

    def take(self) -> Job | None:
        """The next job that no process works on, or None.

        Jobs that another process finished meanwhile are settled here too.
        """
        for _ in range(len(self._waiting)):
            job = self._waiting.popleft()
            failure = read_failure(self._bench, job)
            if self._bench.result_path(job).exists():
                self._tell("skipped", job)
            elif is_claimed(self._bench, job):
                self._waiting.append(job)
            elif failure and failure != self._failed_before[job.key] and not self._deaths[job.key]:
                self._tell("failed", job, f"in another process: {failure.splitlines()[0]}")
            else:
                self._tell("started", job)
                return job
        return None

    def settle(self, job: Job, outcome: Outcome) -> None:
        """Note the outcome of a taken job."""
        state, reason = outcome.state, outcome.reason
        if state == "found":  # another process was faster
            self._tell("skipped", job)
        elif state == "held":
            self._waiting.append(job)
            self._tell("skipped", job, "running in another process")
        elif state != "died":
            self._tell(state, job, reason)
        elif self._deaths[job.key] + 1 < _DEATHS:
            self._deaths[job.key] += 1
            self._waiting.append(job)  # last, when fewer jobs may run beside it
            self._tell("retried", job, reason)
        else:
            reason = f"{reason} ({_DEATHS} times)"
            note_failure(
                self._bench, job, reason, "log.txt beside this file holds its last output."
            )
            self._tell("failed", job, reason)

    def summary(self) -> QueueSummary:
        """The results so far."""
        settled = [Event("skipped", job) for job in self.finished_before] + self._events
        return QueueSummary(
            tuple(e.job.key for e in settled if e.kind == "done"),
            {e.job.key: e.reason for e in settled if e.kind == "failed"},
            tuple(e.job.key for e in settled if e.kind == "skipped" and not e.reason),
        )

    def _tell(self, kind: Kind, job: Job, reason: str = "") -> None:
        event = Event(kind, job, reason)
        self._events.append(event)
        for listener in self._listeners:
            listener(event)
