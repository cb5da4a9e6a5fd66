"""A run of several processes: the first leads and writes, the others join its fine-tuning."""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from recame.config import RunConfig
from recame.durations import spoken_duration
from recame.errors import ProcessError, RecameError
from recame.files import write_text
from recame.runs.folder import RunFolder

#: Tells processes that Lightning starts with the leader's own command line where its run lies.
RUN_VARIABLE = "RECAME_RUN_FOLDER"

#: Lightning, torchrun and SLURM number processes and nodes in these.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")

_POLL_S = 0.5

#: How often the leader says that it lives, and for how long the others believe it. As long a
#: process waits in training for another's gradients.
_SIGN_S, PATIENCE_S = 10.0, 600.0
#: How long there may be no first sign, as where a node does not see the leader's folder; and how
#: long a sign may be gone, as while a shared folder is slow: only a leader that ends removes it.
_FIRST_S, _GONE_S = 180.0, 30.0
_SIGN_FILE = "leader.txt"

#: By what torch says where another process of the group ended or is silent.
_OF_ANOTHER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out", re.IGNORECASE)


def is_follower(settings: RunConfig) -> bool:
    """Whether another process leads this run."""
    if settings.devices == 1 and settings.num_nodes == 1:
        return False
    return any(os.environ.get(name, "0") not in {"", "0"} for name in RANK_VARIABLES)


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


def leaders_run(out: Path, patience_s: float = PATIENCE_S, *, begun: bool = False) -> RunFolder:
    """The leader's run, once its fine-tuning begins.

    Args:
        out: the run folder that was asked for, seen by all nodes.
        patience_s: seconds without a sign of the leader after which it is given up.
        begun: do not wait for longer than until its settings are decided.

    Raises:
        SystemExit: the run is finished: there is nothing to help with.
        ProcessError: the leader ended, or gives no sign any more.
    """
    path = Path(os.environ.get(RUN_VARIABLE, out))
    first = ("training",) if begun else ()
    if _wait(path, (*first, "fine-tuning", "finished"), patience_s) == "finished":
        leave_with_leader(path)
    return RunFolder.open(path)


def leave_with_leader(path: Path, patience_s: float = PATIENCE_S) -> NoReturn:
    """End this process once the leader's run is finished, with the exit code that it has.

    Args:
        path: the run's folder.
        patience_s: seconds without a sign of the leader after which it is given up.

    Raises:
        SystemExit: 0, or 1 where training ended before its time.
        ProcessError: the leader ended without finishing, or gives no sign any more.
    """
    _wait(path, ("finished",), patience_s, met=True)
    raise SystemExit(0 if RunFolder.open(path).stopped is None else 1)


@contextmanager
def naming_lost(path: Path, world_size: int) -> Iterator[None]:
    """Say in words that another process of the run was lost, as torch does not.

    Args:
        path: the run's folder.
        world_size: processes that train.

    Raises:
        ProcessError: in place of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size == 1 or not _OF_ANOTHER.search(f"{type(error).__name__} {error}"):
            raise
        said = re.sub(r"^\[.*?\] ", "", str(error)).partition(". ")[0].partition("\n")[0]
        raise ProcessError(
            f"Another of the {world_size} processes that train {path} ended, or was silent for "
            f"{spoken_duration(PATIENCE_S)} ({said[:200]}), and none can go on without the "
            "others: see what it printed last; then start all of them again with --resume, which "
            "goes on after the last epoch that was saved."
        ) from error


def _wait(path: Path, wanted: tuple[str, ...], patience_s: float, *, met: bool = False) -> str:
    """Wait until the leader's run is in one of some states, and tell in which.

    Args:
        path: the run's folder.
        wanted: the states.
        patience_s: seconds without a sign of the leader after which it is given up.
        met: the leader was there before: where it has no sign now, it has gone.

    Raises:
        ProcessError: the leader ended, or gives no sign any more.
    """
    sign, since = "", time.monotonic()
    while True:
        newest = _sign(path)  # before the state: a leader that finished removes its sign last
        state = RunFolder.open(path).state if (path / "run.json").exists() else "to come"
        if state in wanted:
            return state
        if newest not in {"", sign}:  # by content: the clocks of two nodes need not agree
            sign, since = newest, time.monotonic()
        silent_s = time.monotonic() - since
        if not (sign or met) and silent_s > min(_FIRST_S, patience_s):
            raise ProcessError(
                f"{platform.node()} sees no process that leads the run {path}, after "
                f"{spoken_duration(min(_FIRST_S, patience_s))}: see what the process of rank 0 "
                "printed last, and give a run folder that all nodes share (--out); nodes without "
                "a common folder cannot train together."
            )
        who = f"{path} ({sign.partition(' ')[2].strip()})" if sign else str(path)
        again = "then start all again, with --resume where the run had begun."
        if (sign or met) and not newest and silent_s > min(_GONE_S, patience_s):
            raise ProcessError(
                f"The process that led the run {who} ended without finishing it: see "
                f"what it printed last; {again}"
            )
        if silent_s > patience_s:
            raise ProcessError(
                f"The process that leads the run {who} has given no sign for "
                f"{spoken_duration(patience_s)}, so this one would wait for ever: see what it "
                f"printed last, and that all nodes see that folder; {again}"
            )
        time.sleep(_POLL_S)


def _sign(path: Path) -> str:
    """What the leader wrote last; empty where there is nothing."""
    try:
        return (path / _SIGN_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""
