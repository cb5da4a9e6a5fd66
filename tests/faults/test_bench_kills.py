"""`kill -9` at random moments of a bench's queue: the same results, each job exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the jobs' processes inherit it

from chained_jobs import STEPS, ChainBench, ChainJob, chained

JOBS, WORKERS = 6, 2
KILLS = 4  # of each seed; then the queue may end

#: What is killed: the queue alone, all its processes as by a machine that stops, or one job.
VICTIMS = ("queue", "group", "job")


def queue(out: Path, order: int) -> subprocess.Popen[bytes]:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    words = [str(out), str(JOBS), str(WORKERS), str(order)]
    return subprocess.Popen(
        [sys.executable, "-c", "import chained_jobs; chained_jobs.main()", *words],
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def lines(out: Path) -> list[list[str]]:
    path = out / "trace.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def kill(victim: str, process: subprocess.Popen[bytes], out: Path, rng: random.Random) -> None:
    with suppress(ProcessLookupError):
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "queue":
            process.kill()
        else:
            pids = [int(words[3]) for words in lines(out) if words[0] == "start"]
            pid = rng.choice(pids[-WORKERS:] or [process.pid])
            if os.getsid(pid) == process.pid:  # else it ended, and the number may be another's
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_queue_that_is_killed_loses_nothing(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    bench = ChainBench(tmp_path)
    jobs = [ChainJob(number) for number in range(JOBS)]
    told = []
    for number in range(KILLS):
        process = queue(tmp_path, number)
        # So many steps of the queue's work later, and a little more: inside of any of its calls.
        left = JOBS * STEPS - sum(words[0] == "step" for words in lines(tmp_path))
        goal = len(lines(tmp_path)) + rng.randrange(max(1, 2 * left // (KILLS - number)))
        while process.poll() is None and len(lines(tmp_path)) <= goal:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        victim = rng.choice(VICTIMS)
        kill(victim, process, tmp_path, rng)
        told.append((victim, len(lines(tmp_path))))
        if victim == "job":  # the queue goes on by itself; then it is killed too
            time.sleep(rng.random() * 0.5)
            process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
    print(f"seed {seed}: killed {told}")  # noqa: T201 - to make a failure again
    for _ in range(3):  # a job that died twice in one call is tried again by the next
        assert queue(tmp_path, 99).wait(timeout=120) == 0
        if all(bench.result_path(job).exists() for job in jobs):
            break
    for job in jobs:
        assert json.loads(bench.result_path(job).read_text())["state"] == chained(job.seed)
        assert not (bench.run_dir(job) / "failure.txt").exists()
    trace = lines(tmp_path)
    assert not [words for words in trace if words[0] in ("twice", "again")]
    for job in jobs:  # each went on from its last checkpoint, and made no step again
        steps = [int(words[2]) for words in trace if words[:2] == ["step", job.key]]
        assert steps == sorted(set(steps))
