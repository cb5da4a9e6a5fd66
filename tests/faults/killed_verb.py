"""A verb in a process that starts at once, and that is killed at a random moment.

The processes are forked from a server that has loaded all libraries and started no thread, so that
nearly all of a process's life is the verb's work: that is where the kills shall fall.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

_LOADED = [
    "recame.training.train",
    "recame.training.student.distill",
    "recame.reports.evaluate",
    "recame.export.export",
    "recame.runtime",
    "recame.cli.app",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "rich.progress",
    "lightning.pytorch",
]


def _run(words: tuple[str, ...], environment: Mapping[str, str], log: Path) -> None:
    os.setsid()  # so that it can be killed with all that it started
    os.environ.update(environment)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    from recame.cli import main

    sys.argv = ["recame", *words]
    main()


class Killer:
    """Runs verbs, and kills them.

    Args:
        seed: of the moments.
        environment: of the processes.
        log: what the verbs print.
    """

    def __init__(self, seed: int, environment: Mapping[str, str], log: Path) -> None:
        self._rng = np.random.default_rng(seed)
        self._environment, self._log = dict(environment), log
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_LOADED)
        self.kills = 0

    def run(self, *words: object) -> float:
        """Run a verb to its end, which must be a good one; the seconds that it took."""
        began = time.monotonic()
        process = self._start(words)
        process.join(300)
        assert process.exitcode == 0, (
            f"{words}: {process.exitcode}\n{self._log.read_text()[-3000:]}"
        )
        return time.monotonic() - began

    def end(self, *words: object, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Run a verb to whatever end, doing something `meanwhile`; its exit code."""
        process = self._start(words)
        meanwhile()
        process.join(300)
        assert process.exitcode is not None, f"{words} hangs"
        return process.exitcode

    def kill(self, within_s: float, *words: object) -> bool:
        """Run a verb and kill it at a random moment; whether it was killed before its end."""
        process = self._start(words)
        process.join(self._rng.uniform(0.02, max(within_s, 0.05)))
        if process.exitcode is not None:
            told = self._log.read_text()[-3000:]
            assert process.exitcode == 0, f"{words}: {process.exitcode}\n{told}"
            return False
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join(60)
        self.kills += process.exitcode == -signal.SIGKILL
        return process.exitcode == -signal.SIGKILL

    def begin(self, within_s: float, run: Path, *words: object) -> None:
        """Leave a run that training had begun when it was killed."""
        while not (self.kill(within_s, *words) and (run / "run.json").exists()):
            shutil.rmtree(run, ignore_errors=True)

    def until_done(
        self, within_s: float, words: Callable[[], tuple[object, ...]], lives: int = 4
    ) -> None:
        """Kill a verb some times, then let it end; `words` are asked for anew each time."""
        for _ in range(lives):
            if not self.kill(within_s, *words()):
                return
        self.run(*words())

    def _start(self, words: tuple[object, ...]) -> multiprocessing.process.BaseProcess:
        texts = tuple(map(str, words))
        process = self._context.Process(target=_run, args=(texts, self._environment, self._log))
        process.start()
        while True:  # its group exists once it has begun
            try:
                if os.getpgid(process.pid) == process.pid or process.exitcode is not None:  # type: ignore[arg-type]
                    return process
            except ProcessLookupError:
                return process
            time.sleep(0.001)
