"""Who has a job in work: file locks, which the system releases when a process ends, however."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recame.files import Hold, hold

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job


def locks_dir(bench: Bench) -> Path:
    """Where claims lie: outside of the runs' folders, so that a run may be deleted or emptied."""
    return bench.path / ".locks"


def claim(bench: Bench, job: Job, kind: Literal["run", "sent"] = "run") -> Hold | None:
    """Keep all others of this folder from a job until it is closed; None if one has it.

    Args:
        bench: a loaded plan at work in a folder.
        job: one of its jobs.
        kind: `run` by whoever runs it; `sent` by whoever sent it to a cluster, where this folder's
            locks may not be seen.
    """
    folder = locks_dir(bench)
    return hold(folder / f"{job.key.replace('/', '~')}.{kind}.lock")


def is_claimed(bench: Bench, job: Job) -> bool:
    """Whether some process has the job in work now, here or on a cluster."""
    for kind in ("run", "sent"):
        if (lock := claim(bench, job, kind)) is None:
            return True
        lock.close()
    return False
