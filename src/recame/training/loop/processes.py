"""A run of several processes: the first leads and writes, the others join its fine-tuning."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recame.config import RunConfig
from recame.durations import spoken_duration
from recame.errors import CheckpointError, RecameError
from recame.files import write_text
from recame.runs.folder import RunFolder

#: Tells processes that Lightning starts with the leader's own command line where its run lies.
RUN_VARIABLE = "RECAME_RUN_FOLDER"

#: Lightning, torchrun and SLURM number processes and nodes in these.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")

_POLL_S = 0.5

#: How often the leader says that it lives, and for how long the others believe it.
_SIGN_S, PATIENCE_S = 10.0, 600.0
_SIGN_FILE = "leader.txt"


def is_follower(settings: RunConfig) -> bool:
    """Whether another process leads this run."""
    if settings.devices == 1 and settings.num_nodes == 1:
        return False
    return any(os.environ.get(name, "0") not in {"", "0"} for name in _RANK_VARIABLES)


@contextmanager
def leading(out: Path, settings: RunConfig) -> Iterator[None]:
    """Say again and again in the run's folder that this process lives, where others wait for it."""
    if settings.devices == 1 and settings.num_nodes == 1:
        yield
        return
    sign, over = out / _SIGN_FILE, threading.Event()

    def live() -> None:
        number = 0
        while not over.is_set():
            number += 1
            with suppress(RecameError):  # a disk that is full for a while
                write_text(sign, f"{number} process {os.getpid()} on {platform.node()}\n")
            over.wait(_SIGN_S)

    thread = threading.Thread(target=live, name="recame-leader", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sign.unlink(missing_ok=True)


def call_followers(folder: RunFolder) -> None:
    """Let the others join: the probe is saved and the epochs are planned."""
    os.environ[RUN_VARIABLE] = str(folder.path.absolute())
    folder.mark("fine-tuning")


def leaders_run(out: Path, patience_s: float = PATIENCE_S) -> RunFolder:
    """The leader's run, once its fine-tuning begins.

    Args:
        out: the run folder that was asked for, seen by all nodes.
        patience_s: seconds without a sign of the leader after which it is given up.

    Raises:
        SystemExit: the run is finished: there is nothing to help with.
        CheckpointError: the leader gives no sign any more.
    """
    path = Path(os.environ.get(RUN_VARIABLE, out))
    sign, since = "", time.monotonic()
    while True:
        state = RunFolder.open(path).state if (path / "run.json").exists() else "to come"
        if state == "fine-tuning":
            return RunFolder.open(path)
        if state == "finished":
            raise SystemExit(0)
        newest = _sign(path)
        if newest != sign:  # by content: the clocks of two nodes need not agree
            sign, since = newest, time.monotonic()
        if time.monotonic() - since > patience_s:
            who = sign.partition(" ")[2].strip() or "the process of rank 0"
            raise CheckpointError(
                f"The process that leads the run {path} ({who}) has given no sign for "
                f"{spoken_duration(patience_s)}, so this one would wait for ever: see what it "
                "printed last, and that all nodes see that folder; then start all again, with "
                "--resume where the run had begun."
            )
        time.sleep(_POLL_S)


def _sign(path: Path) -> str:
    """What the leader wrote last; empty where there is nothing."""
    try:
        return (path / _SIGN_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""
