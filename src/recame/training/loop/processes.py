"""A run of several processes: the first leads and writes, the others join its fine-tuning."""

from __future__ import annotations

import os
import time
from pathlib import Path

from recame.config import RunConfig
from recame.runs.folder import RunFolder

#: Tells processes that Lightning starts with the leader's own command line where its run lies.
RUN_VARIABLE = "RECAME_RUN_FOLDER"

#: Lightning, torchrun and SLURM number processes and nodes in these.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")

_POLL_S = 0.5


def is_follower(settings: RunConfig) -> bool:
    """Whether another process leads this run."""
    if settings.devices == 1 and settings.num_nodes == 1:
        return False
    return any(os.environ.get(name, "0") not in {"", "0"} for name in _RANK_VARIABLES)


def call_followers(folder: RunFolder) -> None:
    """Let the others join: the probe is saved and the epochs are planned."""
    os.environ[RUN_VARIABLE] = str(folder.path.absolute())
    folder.mark("fine-tuning")


def leaders_run(out: Path) -> RunFolder:
    """The leader's run, once its fine-tuning begins.

    Args:
        out: the run folder that was asked for, seen by all nodes.

    Raises:
        SystemExit: the run is finished: there is nothing to help with.
    """
    path = Path(os.environ.get(RUN_VARIABLE, out))
    while True:
        state = RunFolder.open(path).state if (path / "run.json").exists() else "to come"
        if state == "fine-tuning":
            return RunFolder.open(path)
        if state == "finished":
            raise SystemExit(0)
        time.sleep(_POLL_S)
