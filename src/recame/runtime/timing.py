"""Time calls one after the other, and summarise their durations."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: Fewest samples for a 99th percentile.
LEAST_FOR_P99 = 100

_WARM_UP_S = 0.2


@dataclass(frozen=True)
class Timing:
    """Durations of one call, measured many times, in ms.

    Attributes:
        samples: number of calls.
        mean_ms: mean.
        p50_ms: median.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile; None for fewer than `LEAST_FOR_P99` samples.
        max_ms: the slowest call.
    """

    samples: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float | None
    max_ms: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Timing:
        """Summarise the durations of N >= 1 calls."""
        ms = np.asarray(nanoseconds, np.float64) / 1e6
        # "higher" takes the next larger sample, so that a quantile is never too optimistic.
        p50, p95, p99 = np.quantile(ms, [0.5, 0.95, 0.99], method="higher")
        last = float(p99) if len(ms) >= LEAST_FOR_P99 else None
        return cls(len(ms), float(ms.mean()), float(p50), float(p95), last, float(ms.max()))

    @property
    def bound_ms(self) -> float:
        """Time within which 99 of 100 calls end: p99, or the slowest if samples are too few."""
        return self.max_ms if self.p99_ms is None else self.p99_ms


def time_calls(
    call: Callable[[], object], seconds: float, least: int = 3, most_s: float = math.inf
) -> list[int]:
    """Measure the durations of calls one after the other, in nanoseconds.

    Python's garbage collection stays on, as in production. Earlier garbage is collected before, so
    that only that of the calls is counted.

    Args:
        call: the function to time.
        seconds: how long to measure.
        least: fewest calls, even if they take longer than `seconds`.
        most_s: stop after this time, even with fewer than `least` calls.
    """
    gc.collect()
    durations: list[int] = []
    began, passed_s = time.perf_counter_ns(), 0.0
    while passed_s < most_s and (passed_s < seconds or len(durations) < least):
        before = time.perf_counter_ns()
        call()
        after = time.perf_counter_ns()
        durations.append(after - before)
        passed_s = (after - began) / 1e9
    return durations


def warm_up(call: Callable[[], object]) -> None:
    """Let caches, memory pools and thread pools settle."""
    time_calls(call, _WARM_UP_S)
