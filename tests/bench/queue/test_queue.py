"""The queue on this machine: nothing lost, nothing twice, no job in the way of another."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))  # the jobs' processes inherit it

from tiny_jobs import TinyBench, TinyJob, run_tiny, traced

from recame.bench.queue.claim import is_claimed
from recame.bench.queue.display import QueueDisplay
from recame.bench.queue.ledger import Event, Ledger
from recame.bench.queue.local import run_queue
from recame.bench.queue.process import fresh_processes, run_claimed
from recame.errors import ConfigError


@pytest.fixture
def bench(tmp_path: Path) -> TinyBench:
    return TinyBench(tmp_path)


def command(out: Path, *words: str, workers: int = 1) -> subprocess.Popen[str]:
    """A queue in a process and a process group of its own, as in another terminal."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import tiny_jobs; tiny_jobs.main()",
            str(out),
            str(workers),
            *words,
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def until(true: Callable[[], object], limit_s: float = 20.0) -> None:
    ends = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Nobody waits for an orphan in a container without an init.
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def started(out: Path, key: str) -> list[list[str]]:
    return traced(out, "start", key) if (out / "trace.txt").exists() else []


def test_each_outcome(bench: TinyBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = ("quick", "killed", "deadly", "broken", "forgetful")
    jobs = [TinyJob("set", name, 0) for name in names]
    events: list[Event] = []
    text = io.StringIO()
    summary = run_queue(
        bench,
        [*jobs, jobs[0]],
        workers=2,
        threads=3,
        devices=(0, 1),
        console=Console(file=text, width=200),
        on_event=events.append,
        runner=run_tiny,
    )
    quick, killed, deadly, broken, forgetful = (job.key for job in jobs)
    assert sorted(summary.done) == sorted([quick, killed])
    assert summary.skipped == ()
    assert summary.failed[broken] == "Image 7 is damaged: take it out."
    assert summary.failed[deadly].startswith("its process was ended by SIGKILL, mostly because")
    assert summary.failed[forgetful].startswith("RuntimeError: the run ended without writing")
    # Once more after a death, from its checkpoint; a failure is not repeated by itself.
    assert [words[2] for words in started(bench.path, killed)] == ["0", "3"]
    assert len(started(bench.path, deadly)) == 2
    assert len(started(bench.path, broken)) == 1
    assert sorted(e.kind for e in events if e.job.key == killed) == [
        "done",
        "retried",
        "started",
        "started",
    ]
    assert {words[4] for words in traced(bench.path, "start")} == {"0", "1"}  # devices
    folder = bench.run_dir(jobs[3])
    assert "DataError: Image 7" in (folder / "failure.txt").read_text()
    log = (folder / "log.txt").read_text().splitlines()
    assert log[1:4] == ["training with 3 threads", "a print", "from below Python"]
    assert "log.txt" in (bench.run_dir(jobs[2]) / "failure.txt").read_text()
    shown = text.getvalue()
    assert f"done   {killed} in " in shown
    assert "[5/5]" in shown
    assert "3 of 5 runs failed:" in shown
    assert f"  {broken}: Image 7 is damaged: take it out.\n" in shown
    assert "Traceback" not in shown
    assert not any(is_claimed(bench, job) for job in jobs)


def test_next_call_runs_only_what_is_left(bench: TinyBench) -> None:
    jobs = [TinyJob("set", name, seed) for seed in (0, 1) for name in ("quick", "broken")]
    run_queue(bench, jobs[:2], runner=run_tiny)
    before = bench.result_path(jobs[0]).stat().st_mtime_ns
    text = io.StringIO()
    summary = run_queue(bench, jobs, runner=run_tiny, console=Console(file=text, width=200))
    assert summary.skipped == (jobs[0].key,)
    assert summary.done == (jobs[2].key,)
    assert set(summary.failed) == {jobs[1].key, jobs[3].key}
    assert bench.result_path(jobs[0]).stat().st_mtime_ns == before
    assert len(started(bench.path, jobs[1].key)) == 2
    assert text.getvalue().startswith("1 of 4 runs are done already.\n")
    pids = [words[3] for words in traced(bench.path, "start")]
    assert len(set(pids)) == len(pids) == 5  # a process for each job
    # A success takes the explanation of the last failure away.
    broken = bench.run_dir(jobs[1])
    outcome = run_claimed(bench, jobs[1], lambda *_: (broken / "result.json").write_text("{}"))
    assert outcome.state == "done"
    assert not (broken / "failure.txt").exists()


def test_killed_parent_takes_its_workers_along(tmp_path: Path) -> None:
    queue = command(tmp_path, "slow", "quick", workers=2)
    until((tmp_path / "runs/set/slow/seed0/steps.json").exists)
    (line,) = started(tmp_path, "set/slow/seed0")
    queue.kill()
    queue.communicate()
    until(lambda: gone(int(line[3])))
    assert not (tmp_path / "runs/set/slow/seed0/result.json").exists()
    # The claim died with the process, and the run goes on where it stopped.
    out, _ = command(tmp_path, "slow", "quick").communicate(timeout=30)
    done, failed, skipped = json.loads(out.splitlines()[-1])
    assert "set/slow/seed0" in done
    assert failed == {}
    assert len(done) + len(skipped) == 2
    assert 0 < int(started(tmp_path, "set/slow/seed0")[1][2]) < 20
    assert len(traced(tmp_path, "end", "set/slow/seed0")) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_stop_says_how_to_go_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    queue = command(tmp_path, "quick", "endless")
    until((tmp_path / "runs/set/endless/seed1/steps.json").exists)
    # Ctrl-C reaches the whole group, kill the one process.
    os.killpg(queue.pid, number) if number == signal.SIGINT else queue.send_signal(number)
    out, _ = queue.communicate(timeout=20)
    told = out.splitlines()
    assert told[-3] == f"Stopped: 1 of 2 results are kept in {tmp_path}."
    assert told[-2] == "Interrupted, to continue from the last checkpoint: set/endless/seed1."
    assert told[-1] == "The same command continues from here."
    assert queue.returncode in {code, -number}
    assert gone(int(started(tmp_path, "set/endless/seed1")[0][3]))


def test_two_queues_in_one_folder_share_the_work(tmp_path: Path) -> None:
    words = [*["slow"] * 4, "broken"]
    queues = [command(tmp_path, *words) for _ in range(2)]
    told = [json.loads(queue.communicate(timeout=40)[0].splitlines()[-1]) for queue in queues]
    keys = [f"set/{word}/seed{seed}" for seed, word in enumerate(words)]
    slow = sorted(key for key in keys if "slow" in key)
    for key in slow:
        assert len(started(tmp_path, key)) == 1, key
    # What failed is tried again by a call that began after it did, as on a busy machine.
    assert len(started(tmp_path, keys[-1])) in {1, 2}
    # Both return when all is settled, whoever did it.
    for done, failed, skipped in told:
        assert sorted(done + skipped) == slow
        assert list(failed) == ["set/broken/seed4"]
        assert "Image 7 is damaged" in failed["set/broken/seed4"]
    assert sorted(told[0][0] + told[1][0]) == slow


def test_held_job_is_left_alone(bench: TinyBench) -> None:
    job = TinyJob("set", "quick", 0)
    bench.run_dir(job).mkdir(parents=True)
    seen = []

    def inside(bench: TinyBench, job: TinyJob, console: Console) -> None:
        seen.append(run_claimed(bench, job, run_tiny).state)
        assert is_claimed(bench, job)
        run_tiny(bench, job, console)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert run_claimed(bench, job, inside).state == "done"
    assert seen == ["held"]
    assert len(traced(bench.path, "end")) == 1
    found = run_claimed(bench, job, run_tiny)
    assert found.state == "found"
    ledger = Ledger(bench, [])
    ledger.settle(job, found)
    assert ledger.summary().skipped == (job.key,)


def test_running_jobs_and_time_left_on_a_terminal(bench: TinyBench) -> None:
    done, *rest = (TinyJob("set", "quick", seed) for seed in range(4))
    bench.run_dir(done).mkdir(parents=True)
    bench.result_path(done).write_text('{"train_s": 3500, "evaluate_s": 100}')
    ledger = Ledger(bench, [done, *rest])
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True)
    with QueueDisplay(bench, ledger, console, 2) as display:
        ledger.listen(display.show)
        job = ledger.take()
        assert job == rest[0]
        bench.run_dir(job).mkdir(parents=True)
        (bench.run_dir(job) / "log.txt").write_text("--- a\n  epoch 3/40  loss 0.512\n\n")
        plain = Console(file=io.StringIO(), width=100)
        plain.print(display._render())
        running, total = plain.file.getvalue().splitlines()
        assert running.split() == [job.key, "0", "s", "epoch", "3/40", "loss", "0.512"]
        # Three jobs of an hour on two workers.
        assert total.rstrip().endswith("1/4 runs, about 1 h 30 min left")


def test_impossible_requests(bench: TinyBench, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [TinyJob("set", "quick", 0)]
    with pytest.raises(ConfigError, match="0 workers with None threads"):
        run_queue(bench, jobs, workers=0, runner=run_tiny)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(ConfigError, match="Device 2 is not there: CUDA_VISIBLE_DEVICES=4,6"):
        run_queue(bench, jobs, devices=(2,), runner=run_tiny)
    run_queue(bench, jobs, devices=(1,), runner=run_tiny)
    assert traced(bench.path, "start")[0][4] == "6"
    with pytest.raises(ConfigError, match="Device -1 is not there"):
        run_queue(bench, jobs, devices=(-1,), runner=run_tiny)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="Device 1 is not there: torch sees 1"):
        run_queue(bench, jobs, devices=(1,), runner=run_tiny)


@pytest.mark.slow
def test_killed_run_ends_as_if_nothing_had_happened(
    defects_table: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    from recame.bench.plan.plan import Bench, load_plan, plan_methods
    from recame.config import parse_settings

    settings = parse_settings(tiny_words[1::2]) | {
        "model.num_experts": 1,
        "probe.enabled": False,
        "finetune.epochs": 6,
        "finetune.epoch_size": 200,
    }
    plan_path = tmp_path / "plan.yaml"
    plan = {
        "title": "one run",
        "seeds": [0],
        "data": {"defects": {"path": str(defects_table)}},
        "methods": ["balanced_softmax"],
        "settings": settings,
    }
    plan_path.write_text(json.dumps(plan))
    loaded = load_plan(plan_path)
    methods = plan_methods(loaded, tmp_path)
    sources = {("defects", 0): defects_table}
    whole, killed = (Bench(tmp_path / n, loaded, methods, sources) for n in ("whole", "killed"))
    (job,) = whole.jobs()
    run = killed.run_dir(job)

    def kill_once() -> None:
        until((run / "last.ckpt").exists, 120)
        pid = (run / "log.txt").read_text().split("process ")[1].split()[0]
        os.kill(int(pid), signal.SIGKILL)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    events: list[str] = []
    for bench in (whole, killed):
        summary = run_queue(bench, [job], threads=1, on_event=lambda e: events.append(e.kind))
        assert summary.done == (job.key,)
    killer.join(1)
    assert events == ["started", "done", "started", "retried", "started", "done"]
    splits = [json.loads(b.result_path(job).read_text())["splits"] for b in (whole, killed)]
    assert splits[0] == splits[1]
    assert (run / "log.txt").read_text().count(" epoch 6/6 ") == 1
    assert 1 <= (run / "log.txt").read_text().count(" epoch 1/6 ") <= 2


def test_a_long_temporary_folder_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fresh_processes([]).get_start_method() == "forkserver"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))
    assert fresh_processes([]).get_start_method() == "spawn"
