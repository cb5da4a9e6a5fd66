from __future__ import annotations

import ctypes
import platform
import resource

import pytest
import torch

from recame.training.loop import allocation
from recame.training.loop.allocation import freed_memory_kept


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own allocator only")
def test_a_step_finds_the_memory_of_the_one_before() -> None:
    def step() -> int:
        before = page_faults()
        for _ in range(10):
            torch.empty(40 * 2**20, dtype=torch.uint8).fill_(1)
        return page_faults() - before

    with freed_memory_kept() as took:
        assert took
        step()
        kept = step()
    assert kept < 10 * 40 * 2**20 / 4096 / 20  # mapped anew, each page of each tensor would fault


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(allocation.ctypes, "CDLL", missing)
    with freed_memory_kept() as took:
        assert not took
