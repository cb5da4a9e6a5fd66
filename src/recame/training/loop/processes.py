"""A run on several processes: the first one leads and writes, the others join its fine-tuning."""

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

#: Environment variable: path of the leader's run, for processes that Lightning starts.
RUN_VARIABLE = "RECAME_RUN_FOLDER"

#: Environment variables in which Lightning, torchrun and SLURM number processes and nodes.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")

_POLL_S = 0.5

#: Seconds between two signs of life of the leader, and seconds that the others wait for one. A
#: process also waits so long for the gradients of another.
_SIGN_S, PATIENCE_S = 10.0, 600.0
#: Seconds to wait for the first sign (a node may not see the leader's folder), and seconds that a
#: sign may be missing (a shared folder may be slow). A leader that ends removes its sign.
_FIRST_S, _GONE_S = 180.0, 30.0
_SIGN_FILE = "leader.txt"

#: Pattern of torch's messages if another process of the group ended or does not answer.
_OF_ANOTHER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out", re.IGNORECASE)


def is_follower(settings: RunConfig) -> bool:
    """Whether another process leads this run."""
    if settings.devices == 1 and settings.num_nodes == 1:
        return False
    return any(os.environ.get(name, "0") not in {"", "0"} for name in RANK_VARIABLES)


@contextmanager
def leading(out: Path, settings: RunConfig) -> Iterator[None]:
    """Write signs of life into the run's folder while this process runs, for waiting processes."""
    if settings.devices == 1 and settings.num_nodes == 1:
        yield
        return
    sign, over = out / _SIGN_FILE, threading.Event()

    def live() -> None:
        number = 0
        while not over.is_set():
            number += 1
            with suppress(RecameError):  # the disk may be full for a while
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
    """Let the other processes join, after the probe is saved and the epochs are planned."""
    os.environ[RUN_VARIABLE] = str(folder.path.absolute())
    folder.mark("fine-tuning")


def leaders_run(out: Path, patience_s: float = PATIENCE_S, *, begun: bool = False) -> RunFolder:
    """Wait until the leader's fine-tuning begins, and return its run.

    Args:
        out: the requested run folder, which all nodes see.
        patience_s: seconds without a sign of the leader after which this process gives up.
        begun: wait only until the settings are decided.

    Raises:
        SystemExit: the run is finished already.
        ProcessError: the leader ended, or gives no more signs.
    """
    path = Path(os.environ.get(RUN_VARIABLE, out))
    first = ("training",) if begun else ()
    if _wait(path, (*first, "fine-tuning", "finished"), patience_s) == "finished":
        leave_with_leader(path)
    return RunFolder.open(path)


def leave_with_leader(path: Path, patience_s: float = PATIENCE_S) -> NoReturn:
    """End this process when the leader's run is finished, with the same exit code.

    Args:
        path: the run's folder.
        patience_s: seconds without a sign of the leader after which this process gives up.

    Raises:
        SystemExit: 0, or 1 if training stopped early.
        ProcessError: the leader ended without finishing, or gives no more signs.
    """
    _wait(path, ("finished",), patience_s, met=True)
    raise SystemExit(0 if RunFolder.open(path).stopped is None else 1)


@contextmanager
def naming_lost(path: Path, world_size: int) -> Iterator[None]:
    """Raise a clear error if another process of the run was lost, instead of torch's error.

    Args:
        path: the run's folder.
        world_size: number of processes that train.

    Raises:
        ProcessError: instead of torch's exception.
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
    """Wait until the leader's run reaches one of the wanted states, and return it.

    Args:
        path: the run's folder.
        wanted: the states.
        patience_s: seconds without a sign of the leader after which this process gives up.
        met: whether the leader gave a sign before; without a sign now, it has ended.

    Raises:
        ProcessError: the leader ended, or gives no more signs.
    """
    sign, since = "", time.monotonic()
    while True:
        newest = _sign(
            path
        )  # read before the state, because a finished leader removes its sign last
        state = RunFolder.open(path).state if (path / "run.json").exists() else "to come"
        if state in wanted:
            return state
        if newest not in {"", sign}:  # compare content, because the clocks of nodes may differ
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
    """The last sign of the leader; empty if there is none."""
    try:
        return (path / _SIGN_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""
