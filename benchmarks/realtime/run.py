"""Is the deployed student as good as its teacher, fast enough for a line, and the same as in torch?

    python benchmarks/realtime/run.py train --deeppcb MANIFEST.csv --runs DIR --seeds 0 1 2
    python benchmarks/realtime/run.py speed --deeppcb MANIFEST.csv --runs DIR --light-python PYTHON
    python benchmarks/realtime/run.py many --deeppcb MANIFEST.csv --runs DIR --light-python PYTHON
    python benchmarks/realtime/run.py apart --deeppcb MANIFEST.csv --runs DIR
    python benchmarks/realtime/run.py table
    python benchmarks/realtime/run.py untrained --deeppcb MANIFEST.csv --runs DIR

Every part keeps what is finished and writes its share of results/. README.md says how to make the
environment without torch. Run nothing beside `speed`, `apart` and `many`.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from targets import table

from models import NAMES, bundle_path, exported
from recame.files import write_json, write_text
from recame.machine import describe_machine, environment, load_average

HERE = Path(__file__).parent
#: The bundle that a line would run, named before any was timed.
DEPLOYED = "openvino-int8"
#: Settings with which `--quick` only shows that every step works.
QUICK: dict[str, object] = {
    "probe.max_per_class": 20,
    "probe.views": 1,
    "probe.steps": 20,
    "finetune.epochs": 1,
    "finetune.epoch_size": 128,
    "evaluation.bootstrap": 0,
}


def train(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Teachers, students, bundles, scores and parity."""
    from students import train_all

    changes = QUICK if options.quick else {}
    where = (options.deeppcb, options.runs, options.student)
    return train_all(*where, options.seeds, console, changes)


def speed(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Ratios side by side, and what an environment without torch does."""
    from speed import (
        gather_files,
        same_backbone,
        set_threads,
        student_against_teacher,
        without_torch,
    )

    seed, threads = options.seeds[0], options.threads
    rounds, seconds = (1, 0.1) if options.quick else (options.rounds, options.seconds)
    set_threads(threads)
    found: dict[str, Any] = {"threads": threads, "rounds": rounds, "seconds": seconds}
    found["load_average_before"] = load_average()
    files = gather_files(options.deeppcb, options.runs / "files-4000", 4000)
    if options.light_python is not None:
        console.rule("without torch")
        student = options.runs / f"student-{seed}"
        found["without_torch"] = {
            name: without_torch(
                options.light_python, bundle_path(student, name), files, threads, rounds, seconds
            )
            for name in exported(student)
            if name in options.bundles
        }
    console.rule("student against two separate experts")
    found["student"] = student_against_teacher(
        options.runs, seed, threads, rounds, seconds, console
    )
    console.rule("the same backbone")
    sizes = (64,) if options.quick else (64, 128)
    found["same_backbone"] = same_backbone(
        options.deeppcb, options.runs, threads, rounds, seconds, console, sizes
    )
    return found


def many(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A tenth of the files for comparison, then all of them with a kill half-way."""
    from many import score, score_and_kill
    from speed import gather_files

    python = options.light_python or Path(sys.executable)
    bundle = bundle_path(options.runs / f"student-{options.seeds[0]}", options.deployed)
    files = 3000 if options.quick else options.images
    few, work = files // 10, options.runs / "scored"
    work.mkdir(parents=True, exist_ok=True)
    folders = {
        n: gather_files(options.deeppcb, options.runs / f"files-{n}", n) for n in (few, files)
    }
    first = score(python, bundle, folders[few], few, work)
    return {
        "bundle": options.deployed,
        "few": {"files": few, **first},
        "all": score_and_kill(python, bundle, folders[files], files, work, console),
    }


def _without_places(results: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Results that say nothing of where on this machine things lie."""
    text = json.dumps(results)
    for place, name in (
        (options.deeppcb, "DATA/manifest.csv"),
        (options.runs, "runs/realtime"),
        (options.light_python, "light/bin/python"),
    ):
        if place is not None:
            text = text.replace(json.dumps(str(place))[1:-1], name)
    named: dict[str, Any] = json.loads(text)
    return named


def apart(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The ratios of `speed` once more, each variant in a process of its own."""
    from apart import measure_apart

    return measure_apart(
        options.runs, options.deployed, options.threads, options.rounds, options.seconds, console
    )


def untrained(options: argparse.Namespace, console: Console) -> None:
    """Networks and bundles for `speed` and `many` alone, in minutes, where none are trained."""
    from students import make_timed

    make_timed(options.deeppcb, options.runs, options.student, console, QUICK)


PARTS = {"train": train, "speed": speed, "apart": apart, "many": many}


def main() -> None:
    """Run a part, and write the results of all parts that there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "untrained", "table"])
    parser.add_argument("--deeppcb", type=Path, help="manifest.csv of DeepPCB-LT")
    parser.add_argument("--runs", type=Path, default=Path("runs/realtime"))
    parser.add_argument("--student", type=Path, default=HERE / "student.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--light-python", type=Path, help="of an environment without torch")
    parser.add_argument("--bundles", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--deployed", choices=NAMES, default=DEPLOYED)
    parser.add_argument("--images", type=int, default=100_000, help="files of `many`")
    parser.add_argument("--quick", action="store_true", help="only show that all steps work")
    parser.add_argument("--out", type=Path, help="[results/ beside this file; quick: in --runs]")
    options = parser.parse_args()
    console = Console()
    out = options.out or (options.runs / "quick-results" if options.quick else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"schema": 1}
    if options.part != "table":
        if options.deeppcb is None:
            parser.error(f"{options.part} needs --deeppcb MANIFEST.csv")
        options.deeppcb, options.runs = options.deeppcb.resolve(), options.runs.resolve()
        options.runs.mkdir(parents=True, exist_ok=True)
        if options.part == "untrained":
            untrained(options, console)
            return
        results[options.part] = PARTS[options.part](options, console)
        results.setdefault("made", {})[options.part] = {
            "command": "python benchmarks/realtime/run.py " + " ".join(sys.argv[1:]),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(path, _without_places(results, options))
        write_json(out / "environment.json", {**environment(), "machine": describe_machine()})
    text = table(results, options.deployed)
    write_text(out / "table.md", text)
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
