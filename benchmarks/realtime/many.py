"""A folder of 100,000 files, killed half-way and started again: each image exactly once."""

from __future__ import annotations

import csv
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

_MAIN = "from recame.cli import main; main()"


def score_and_kill(
    python: Path, bundle: Path, folder: Path, files: int, work: Path, console: Console
) -> dict[str, Any]:
    """Score the folder; the first start ends in SIGKILL at half of the rows, the second goes on.

    Args:
        python: interpreter that has recame.
        bundle: what scores.
        folder: of images.
        files: how many there are.
        work: where tables go.
        console: for progress.
    """
    out = _fresh(work / f"{files}.csv")
    command = [str(python), "-c", _MAIN, "predict", str(bundle), str(folder), "--out", str(out)]
    rows = work / f"{out.name}.partial" / "rows.sqlite"
    began = time.perf_counter()
    console.print(f"scoring {files:,} files, to be killed at half of them", highlight=False)
    killed = _watch(command, rows, kill_at=files // 2)
    console.print(f"killed at {killed['rows']:,} rows; starting again", highlight=False)
    finished = _watch(command, rows, kill_at=None)
    seconds = time.perf_counter() - began
    with out.open(newline="", encoding="utf-8") as stream:
        named = [row["image"] for row in csv.DictReader(stream)]
    expected = sorted(str(path) for path in folder.rglob("*.png"))
    return {
        "files": len(expected),
        "rows": len(named),
        "each_once": sorted(named) == expected,
        "in_order": named == expected,
        "killed_at_rows": killed["rows"],
        "peak_mib": max(killed["peak_mib"], finished["peak_mib"]),
        "seconds": seconds,
        "images_per_s": len(named) / seconds,
    }


def score(python: Path, bundle: Path, folder: Path, files: int, work: Path) -> dict[str, Any]:
    """Score a folder without interruption, for its memory and speed."""
    out = _fresh(work / f"{files}-whole.csv")
    command = [str(python), "-c", _MAIN, "predict", str(bundle), str(folder), "--out", str(out)]
    began = time.perf_counter()
    found = _watch(command, work / f"{out.name}.partial" / "rows.sqlite", kill_at=None)
    seconds = time.perf_counter() - began
    return {**found, "seconds": seconds, "images_per_s": files / seconds}


def _fresh(out: Path) -> Path:
    """The table's place, without what an earlier benchmark left there."""
    out.unlink(missing_ok=True)
    shutil.rmtree(out.with_name(f"{out.name}.partial"), ignore_errors=True)
    return out


def _watch(command: list[str], rows: Path, kill_at: int | None) -> dict[str, Any]:
    """Run to the end, or kill at so many rows; the largest memory that was seen, in MiB."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        peak_mib, seen = 0.0, 0
        while process.poll() is None:
            peak_mib = max(peak_mib, _peak_mib(process.pid))
            if kill_at is not None:
                seen = _count_rows(rows)
                if seen >= kill_at:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    break
            time.sleep(0.05)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    if kill_at is None and process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    if kill_at is not None and process.returncode != -signal.SIGKILL:
        raise SystemExit("The first start ended before it could be killed: take more files.")
    return {"peak_mib": peak_mib, "rows": seen}


def _peak_mib(process: int) -> float:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next(
        (int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0.0
    )


def _count_rows(path: Path) -> int:
    """Rows of a database that another process holds, those of its log apart."""
    try:
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM rows").fetchone()[0])
    except sqlite3.Error:
        return 0
