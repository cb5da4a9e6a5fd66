"""What starting a process costs a job of the bench: fresh, and forked where all is loaded."""

from __future__ import annotations

import multiprocessing
import time

RUNS = 4


def load() -> None:
    """What a job's process needs before it trains."""
    import recame.bench.queue.job  # noqa: F401


def started(method: str) -> list[float]:
    """Seconds of each start; the first with `forkserver` also starts the server."""
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["recame.bench.queue.job"])
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        process = context.Process(target=load)  # type: ignore[attr-defined]
        process.start()
        process.join()
        taken.append(time.perf_counter() - began)
    return taken


if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        print(method, *(f"{seconds:.2f} s" for seconds in started(method)))
