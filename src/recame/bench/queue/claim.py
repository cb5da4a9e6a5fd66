"""Claims on jobs: file locks, which the system releases however a process ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recame.files import Hold, hold

if TYPE_CHECKING:
    from recame.bench.plan.plan import Bench, Job


def locks_dir(bench: Bench) -> Path:
    """Folder of the claims; it is outside of the run folders, because a run may be deleted."""
    return bench.path / ".locks"


def claim(bench: Bench, job: Job, kind: Literal["run", "sent"] = "run") -> Hold | None:
    """Claim a job: others of this folder cannot take it until the claim is closed.

    Args:
        bench: a plan with its folder.
        job: one of its jobs.
        kind: `run` for the process that runs it; `sent` for the process that sent it to a cluster,
            whose nodes may not see this folder's locks.

    Returns:
        The claim; None if another process has the job.
    """
    folder = locks_dir(bench)
    return hold(folder / f"{job.key.replace('/', '~')}.{kind}.lock")


def is_claimed(bench: Bench, job: Job) -> bool:
    """Whether a process works on the job now, here or on a cluster."""
    for kind in ("run", "sent"):
        if (lock := claim(bench, job, kind)) is None:
            return True
        lock.close()
    return False
