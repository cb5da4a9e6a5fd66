"""A job that hangs ends the queue's patience and not the queue."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))  # the jobs' processes inherit it

from tiny_jobs import TinyBench, TinyJob, run_stubborn, run_tiny, traced

from recame.bench.queue.claim import is_claimed
from recame.bench.queue.local import run_queue
from recame.bench.queue.process import Outcome, outcome_of, start_process

ENDLESS, QUICK = TinyJob("set", "endless", 0), TinyJob("set", "quick", 0)


@pytest.mark.parametrize("runner", [run_tiny, run_stubborn])
@pytest.mark.slow
def test_a_job_has_its_time_and_the_others_go_on(runner: object, tmp_path: Path) -> None:
    bench, text = TinyBench(tmp_path), io.StringIO()
    jobs = [ENDLESS] if runner is run_stubborn else [ENDLESS, QUICK]
    summary = run_queue(
        bench,
        jobs,
        job_limit_s=2.0,
        console=Console(file=text, width=300),
        runner=runner,  # type: ignore[arg-type]
    )
    assert list(summary.failed) == [ENDLESS.key]
    reason = summary.failed[ENDLESS.key]
    assert reason.startswith("it was not done after 2 s, the limit of a run, and was stopped; the ")
    assert "--job-limit gives more time" in reason
    assert (bench.run_dir(ENDLESS) / "failure.txt").read_text().startswith(reason)
    assert f"failed {ENDLESS.key}: {reason}" in text.getvalue()
    assert summary.done == ((QUICK.key,) if QUICK in jobs else ())
    assert not is_claimed(bench, ENDLESS)  # its process is gone


def test_the_next_call_goes_on_with_it(tmp_path: Path) -> None:
    bench = TinyBench(tmp_path)
    for _ in range(2):
        run_queue(bench, [ENDLESS], job_limit_s=1.5, runner=run_tiny)
    first, second = traced(tmp_path, "start", ENDLESS.key)
    assert int(first[2]) == 0
    assert int(second[2]) > 0


def test_what_is_done_in_the_last_moment_counts(tmp_path: Path) -> None:
    bench = TinyBench(tmp_path)
    process = start_process(bench, ENDLESS, {"OMP_NUM_THREADS": "1"}, run_tiny)
    while not (bench.run_dir(ENDLESS) / "steps.json").exists():
        time.sleep(0.02)
    bench.result_path(ENDLESS).write_text(json.dumps({}))
    (bench.run_dir(ENDLESS) / "failure.txt").write_text("of an earlier try")
    assert outcome_of(bench, ENDLESS, process, 60.0, time.monotonic()) == Outcome("done")
    assert not (bench.run_dir(ENDLESS) / "failure.txt").exists()
