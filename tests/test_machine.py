from __future__ import annotations

import subprocess
import sys
import time

import pytest

from recame import machine
from recame.machine import process_began

_ASK = (
    "import time; time.sleep(0.3); from recame.machine import process_began; "
    "print(time.monotonic() - process_began())"
)


class TestProcessBegan:
    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
    def test_what_went_before_the_question_counts(self) -> None:
        before = time.monotonic()
        done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, check=True)
        lived_s, most_s = float(done.stdout), time.monotonic() - before
        assert 0.3 <= lived_s <= most_s + 0.02  # the system counts in hundredths

    def test_a_process_that_did_other_work_begins_now(self) -> None:
        import torch  # noqa: F401

        before = time.monotonic()
        assert before <= process_began() <= time.monotonic()

    @pytest.mark.parametrize("told", ["", "12 (a name) S 1 2 3"])
    def test_now_where_the_system_does_not_say(
        self, told: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, "torch")
        monkeypatch.setattr(machine, "_text", lambda _: told)
        before = time.monotonic()
        assert before <= process_began() <= time.monotonic()


class TestUsableCores:
    @pytest.mark.parametrize(
        ("texts", "expected"),
        [
            ({"/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
            ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
            (
                {
                    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                    "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                },
                2,
            ),
            (
                {
                    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                    "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                },
                16,
            ),
            ({}, 16),
        ],
        ids=["quota", "no quota", "first version", "first version, no quota", "no container"],
    )
    def test_a_container_s_quota_counts(
        self, texts: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "_text", lambda path: texts.get(path, ""))
        monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(16), raising=False)
        assert machine.usable_cores() == expected
