"""Jobs whose result depends on each of their steps, once and in order; their processes import this.

Each writes down, in `trace.txt` of the bench's folder, what must never happen: a second process
in the same job, or a start of what is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from recame.files import hold, write_json

STEPS = 25
PAUSE_S = 0.004


@dataclass(frozen=True)
class ChainJob:
    seed: int
    data: str = "set"
    method: str = "chain"

    @property
    def key(self) -> str:
        return f"{self.data}/{self.method}/seed{self.seed}"


@dataclass(frozen=True)
class ChainBench:
    path: Path
    sources: dict[tuple[str, int], Path] = field(default_factory=dict)

    def run_dir(self, job: ChainJob) -> Path:
        return self.path / "runs" / job.key

    def result_path(self, job: ChainJob) -> Path:
        return self.run_dir(job) / "result.json"


def chained(seed: int) -> str:
    """What a job's result must say."""
    state = str(seed)
    for step in range(STEPS):
        state = _next(state, step)
    return state


def _next(state: str, step: int) -> str:
    return hashlib.sha256(f"{state} {step}".encode()).hexdigest()


def note(bench: ChainBench, *words: object) -> None:
    # One call of the system, so that lines of several processes do not mix.
    number = os.open(bench.path / "trace.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(number, (" ".join(map(str, words)) + "\n").encode())
    os.close(number)


def run_chain(bench: ChainBench, job: ChainJob, console: Console) -> None:
    run = bench.run_dir(job)
    if (alone := hold(run / "alone.lock")) is None:
        note(bench, "twice", job.key)
    if bench.result_path(job).exists():
        note(bench, "again", job.key)
    checkpoint = run / "steps.json"
    begun = json.loads(checkpoint.read_text()) if checkpoint.exists() else [0, str(job.seed)]
    step, state = begun
    note(bench, "start", job.key, step, os.getpid())
    while step < STEPS:
        time.sleep(PAUSE_S)
        state, step = _next(state, step), step + 1
        write_json(checkpoint, [step, state])
        note(bench, "step", job.key, step)
    write_json(bench.result_path(job), {"state": state, "train_s": 0.1, "evaluate_s": 0.0})
    if alone is not None:
        alone.close()


def main() -> None:
    """A queue as a command of its own: `OUT JOBS WORKERS ORDER`."""
    from recame.bench.queue.local import run_queue

    out, num_jobs, workers, order = sys.argv[1:]
    jobs = [ChainJob(seed) for seed in range(int(num_jobs))]
    random.Random(int(order)).shuffle(jobs)
    run_queue(ChainBench(Path(out)), jobs, workers=int(workers), threads=1, runner=run_chain)
