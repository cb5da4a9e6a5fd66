"""Keep freed memory in the process while it trains, so that steps do not allocate it again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Constants of glibc's `malloc.h`.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1
#: Largest value that older versions of glibc accept.
_OLD_LARGEST = 32 * 2**20
_TOP_PAD = 64 * 2**20


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Let glibc reuse memory that a step frees; return it to the system at the end.

    By default glibc maps each large tensor of a step from the system and unmaps it again, and the
    system clears every page each time. The gain varies: two series of seven and six pairs of fresh
    processes on two cores gave 0.94 to 1.50 times the images per second, medians 1.06 and 1.10
    (`benchmarks/training/allocation.py`). Other allocators are not changed.

    Yields:
        Whether the allocator accepted the setting.
    """
    libc = _glibc()
    if libc is None:
        yield False
        return
    took = bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)) or bool(
        libc.mallopt(_M_MMAP_THRESHOLD, _OLD_LARGEST)
    )
    libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    libc.mallopt(_M_TOP_PAD, _TOP_PAD)
    try:
        yield took
    finally:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
