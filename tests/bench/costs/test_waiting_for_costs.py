"""Two benches in one folder: one measures the costs, the other says that it waits."""

from __future__ import annotations

import io
import os
from pathlib import Path

from rich.console import Console

from recame.bench.command import _measuring
from recame.bench.plan.plan import Bench, Plan
from recame.files import Hold, hold


class Told(io.StringIO):
    """Lets go of a lock as soon as somebody says that he waits for it."""

    def __init__(self, lock: Hold) -> None:
        super().__init__()
        self.lock = lock

    def write(self, text: str) -> int:
        if "waiting for it" in text:
            self.lock.close()
        return super().write(text)


def test_it_is_said_for_whom_one_waits(tmp_path: Path) -> None:
    plan = Plan.model_validate({"name": "p", "title": "t", "data": {"d": {}}, "methods": ["focal"]})
    bench = Bench(tmp_path, plan, {}, {})
    lock = hold(tmp_path / ".costs.lock")
    assert lock is not None
    told = Told(lock)
    with _measuring(bench, Console(file=told, width=300)):
        assert hold(tmp_path / ".costs.lock") is None
    assert f"The methods' costs are measured by process {os.getpid()} on " in told.getvalue()
    with _measuring(bench, Console(file=told, width=300)):
        assert told.getvalue().count("waiting for it") == 1
