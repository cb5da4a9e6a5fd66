"""Does `recame train --time-budget` keep its time? Real commands on small generated sets.

    python benchmarks/training/clock.py [--budgets 30s 1m 3m] [--sets small wide] [--busy late]

For each set and budget one `recame train` in a process of its own, its wall time from before the
process starts until after it has left; where less than nine tenths were used, or the time was not
kept, the run's own reason. `--busy` runs an endless loop beside it: from its first to its last
moment (`always`), for its second half (`late`), or for its first (`early`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from recame.durations import parse_duration
from recame.machine import describe_machine

#: Name -> words of `recame synth`: few images, many classes, large images, images whose size is
#: searched, many images.
SETS = {
    "small": "--count 600 --classes 4 --imbalance 20 --size 64",
    "wide": "--count 4000 --classes 14 --imbalance 200 --size 64",
    "large": "--count 1500 --classes 6 --imbalance 50 --size 128",
    "fine": "--count 900 --classes 5 --imbalance 30 --size 256",
    "many": "--count 20000 --classes 10 --imbalance 500 --size 64",
}
BUSY = ("never", "always", "late", "early")
#: What is kept of a run: at most this share over its budget, and used at least this.
MOST, LEAST = 1.02, 0.90


@contextmanager
def busy_loop(when: str, budget_s: float) -> Iterator[None]:
    """Keep a core busy for a part of the budget."""
    if when == "never":
        yield
        return
    over = threading.Event()
    after_s = budget_s / 2 if when == "late" else 0.0
    until_s = budget_s / 2 if when == "early" else 10 * budget_s

    def keep_busy() -> None:
        if over.wait(after_s):
            return
        loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        over.wait(until_s - after_s)
        loop.kill()
        loop.wait()

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def trained(data: Path, budget: str, busy: str, seed: int) -> dict[str, Any]:
    """One run: its wall time against its budget, and what it says of itself."""
    budget_s = parse_duration(budget)
    place = data.parents[1]
    out = place / "run"
    shutil.rmtree(out, ignore_errors=True)
    # A cache of its own: decoding belongs to the time.
    places = {"RECAME_CACHE": str(place / "cache"), "COLUMNS": "1000"}
    shutil.rmtree(places["RECAME_CACHE"], ignore_errors=True)
    words = ["train", data, "--out", out, "--time-budget", budget, "--seed", seed]
    start = "from recame.cli import main; main()"
    with busy_loop(busy, budget_s):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", start, *map(str, words)],
            env={**os.environ, **places},
            capture_output=True,
            text=True,
            check=False,
        )
        wall_s = time.monotonic() - began
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    settings = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    finetune, probe = settings["finetune"], settings["probe"]
    used = wall_s / budget_s
    told_by_run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    told = [line.strip() for line in done.stdout.splitlines()]
    enough = [line for line in told if "are enough for" in line or "finetune.enabled = " in line]
    longer = [line for line in told if line.startswith("Longer than the time budget")]
    reasons = (enough if used < LEAST else []) + (longer if used > MOST else [])
    return {
        "set": place.name,
        "budget_s": budget_s,
        "busy": busy,
        "wall_s": round(wall_s, 1),
        "used": round(used, 4),
        "seconds": told_by_run["seconds"],
        "set_aside": told_by_run.get("set_aside"),
        "experts": settings["model"]["num_experts"],
        "probe": f"{probe['max_per_class']} x {probe['views']}",
        "epochs": finetune["epochs"] if finetune["enabled"] else 0,
        "steps": finetune["steps"],
        "balanced_accuracy": json.loads((out / "phases.json").read_text(encoding="utf-8")).get(
            "val_balanced_accuracy"
        ),
        "reasons": reasons,
    }


def verdict(row: dict[str, Any]) -> str:
    """Whether the time was kept and used."""
    if row["used"] > MOST:
        return "over"
    return "kept" if row["used"] >= LEAST else "left" if row["reasons"] else "left, unexplained"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    stages = "seconds: start, images, probe, fine-tuning, judging"
    lines = [
        f"| set | budget | busy | wall | used | | experts | probe | {stages} |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: | --- | --- |",
    ]
    for row in rows:
        parts = ", ".join(f"{s:.1f}" for name, s in row["seconds"].items() if name != "whole")
        cells = (
            *(row["set"], f"{row['budget_s']:.0f} s", row["busy"], f"{row['wall_s']:.1f} s"),
            *(f"{row['used']:.1%}", verdict(row), row["experts"], row["probe"], parts),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for row in rows:
        lines += [f"\n{row['set']}, {row['budget_s']:.0f} s: {text}" for text in row["reasons"]]
    return "\n".join(lines)


def main() -> None:
    """Train, print the table and write results/clock.json and clock.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", nargs="+", default=["30s", "1m", "3m"])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["small", "wide", "large"])
    parser.add_argument("--busy", nargs="+", choices=BUSY, default=["never"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--name", default="clock", help="of the files in results/")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="recame-clock-") as folder:
        for name in options.sets:
            data = Path(folder) / name / "images"
            start = "from recame.cli import main; main()"
            words = ["synth", str(data), *SETS[name].split()]
            subprocess.run([sys.executable, "-c", start, *words], check=True, capture_output=True)
            for seed in options.seeds:
                for busy in options.busy:
                    for budget in options.budgets:
                        rows.append(trained(data / "manifest.csv", budget, busy, seed))
                        print(table(rows[-1:]).splitlines()[2], flush=True)
    print(f"\n{table(rows)}")
    kept = sum(verdict(row) in {"kept", "left"} for row in rows)
    print(f"\n{kept} of {len(rows)} kept their time, used or with a reason for what they left.")
    results = Path(__file__).parent / "results"
    machine = describe_machine()
    content = json.dumps({"rows": rows, "machine": machine}, indent=2)
    (results / f"{options.name}.json").write_text(content + "\n", encoding="utf-8")
    (results / f"{options.name}.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
