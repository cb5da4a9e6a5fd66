"""A bench of jobs that train nothing, for the queue's tests: its processes import this module.

Each job takes the steps that its method names (`STEPS`), counts them in a checkpoint, and says in
`trace.txt` of the bench's folder when it starts, from which step, and when it ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from recame.errors import DataError

#: Seconds a step, and steps, of a method.
STEPS = {"quick": (0.0, 1), "slow": (0.05, 20), "endless": (0.05, 100_000)}


@dataclass(frozen=True)
class TinyJob:
    data: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.data}/{self.method}/seed{self.seed}"


@dataclass(frozen=True)
class TinyBench:
    path: Path
    sources: dict[tuple[str, int], Path] = field(default_factory=dict)

    def run_dir(self, job: TinyJob) -> Path:
        return self.path / "runs" / job.key

    def result_path(self, job: TinyJob) -> Path:
        return self.run_dir(job) / "result.json"

    @property
    def costs_path(self) -> Path:
        return self.path / "costs.json"


def trace(bench: TinyBench, *words: object) -> None:
    with (bench.path / "trace.txt").open("a", encoding="utf-8") as file:
        file.write(" ".join(map(str, words)) + "\n")


def traced(path: Path, *beginning: object) -> list[list[str]]:
    """The lines of a trace that begin so, as words."""
    lines = (path / "trace.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split() for line in lines]
    return [words for words in found if words[: len(beginning)] == [str(b) for b in beginning]]


def run_tiny(bench: TinyBench, job: TinyJob, console: Console) -> None:
    run = bench.run_dir(job)
    checkpoint = run / "steps.json"
    begun = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
    where = os.environ.get("RAY_RAYLET_PID") or os.environ.get("CUDA_VISIBLE_DEVICES")
    trace(bench, "start", job.key, begun, os.getpid(), where)
    console.print(f"training with {os.environ['OMP_NUM_THREADS']} threads")
    print("a print")  # noqa: T201
    os.write(2, b"from below Python\n")
    if job.method == "broken":
        raise DataError("Image 7 is damaged: take it out.")
    if job.method == "killed" and not begun:
        checkpoint.write_text("3")
        os.kill(os.getpid(), signal.SIGKILL)
    if job.method == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.method == "forgetful":
        return
    pause_s, steps = STEPS.get(job.method, (0.0, 1))
    for step in range(begun, steps):
        time.sleep(pause_s)
        partial = checkpoint.with_suffix(".tmp")
        partial.write_text(str(step + 1))
        partial.replace(checkpoint)
    (run / "model.safetensors").write_bytes(b"weights")
    (run / "history.csv").write_text("epoch,loss\n1,0.5\n")
    result = {"train_s": 60.0, "evaluate_s": 1.0, "torch": "torch" in sys.modules}
    (run / "result.json").write_text(json.dumps(result))
    trace(bench, "end", job.key, os.getpid())


def run_stubborn(bench: TinyBench, job: TinyJob, console: Console) -> None:
    """Hang, and hear nobody who asks for an end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (bench.run_dir(job) / "steps.json").write_text("1")
    while True:
        time.sleep(1)


def run_breaking(bench: TinyBench, job: TinyJob, console: Console) -> None:
    (bench.run_dir(job) / "steps.json").write_text("1")
    raise OSError("disk gone")


def main() -> None:
    """A queue as a command of its own: `OUT WORKERS METHOD METHOD ...`, one job a word."""
    # A shell's background job ignores Ctrl-C, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from recame.bench.queue.local import run_queue

    out, workers, *methods = sys.argv[1:]
    jobs = [TinyJob("set", method, seed) for seed, method in enumerate(methods)]
    bench = TinyBench(Path(out))
    summary = run_queue(
        bench, jobs, workers=int(workers), console=Console(soft_wrap=True), runner=run_tiny
    )
    print(json.dumps([summary.done, summary.failed, summary.skipped]))  # noqa: T201
