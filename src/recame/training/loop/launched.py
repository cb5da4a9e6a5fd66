"""The number of processes that train, from `torchrun` or from the settings."""

from __future__ import annotations

import os

from recame.config import Config
from recame.errors import ConfigError
from recame.training.loop.processes import RANK_VARIABLES


def launched() -> tuple[int, int] | None:
    """Processes per node, and nodes, that `torchrun` started; None: it started none.

    Raises:
        ConfigError: the nodes have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    world, local, nodes = (int(os.environ.get(name, "1")) for name in names)
    if local * nodes != world:
        raise ConfigError(
            f"torchrun started {world} processes on {nodes} nodes, {local} of them on this one: "
            "they could not be numbered. Give each node the same --nproc-per-node."
        )
    return local, nodes


def as_launched(config: Config, *, resumed: bool = False) -> Config:
    """The settings with `run.devices` and `run.num_nodes` from the processes of `torchrun`.

    Args:
        config: the values 1 and `auto` are replaced by the started numbers.
        resumed: whether these are the settings of a run that is resumed, which fix the numbers.

    Raises:
        ConfigError: the settings contradict the started processes, or these were not started.
    """
    run, found = config.run, launched()
    if found is None:
        known = (*RANK_VARIABLES, "MASTER_ADDR")
        if run.num_nodes > 1 and not any(name in os.environ for name in known):
            raise ConfigError(
                f"run.num_nodes={run.num_nodes}, but this process was started on its own, and "
                "would wait for the others for ever. Start the same command on each node with: "
                f"{_torchrun(run.devices, run.num_nodes)} train."
            )
        return config
    local, nodes = found
    if resumed and run.devices != "auto":
        before = run.devices * run.num_nodes
        if before != local * nodes:
            how = "recame" if before == 1 else _torchrun(run.devices, run.num_nodes)
            raise ConfigError(
                f"This run began with run.devices={run.devices} and run.num_nodes={run.num_nodes}, "
                f"and torchrun started {local * nodes} in all: the rest of its steps would show "
                "other images, and the result would be another one. Resume it with as many: "
                f"{how} train --resume --out RUN."
            )
    elif run.devices not in ("auto", 1, local) or run.num_nodes not in (1, nodes):
        raise ConfigError(
            f"run.devices={run.devices} and run.num_nodes={run.num_nodes}, but torchrun started "
            f"{local} processes on each of {nodes} nodes. Leave both settings out: torchrun's "
            "words (--nproc-per-node, --nnodes) decide."
        )
    return config.updated({"run.devices": local, "run.num_nodes": nodes})


def refuse_several(verb: str) -> None:
    """Refuse a command that only one process may run, because others would overwrite its files.

    Raises:
        ConfigError: `torchrun` started more than one process.
    """
    if (found := launched()) is not None and found != (1, 1):
        raise ConfigError(
            f"{verb} is the work of one process, and torchrun started {found[0] * found[1]}, which "
            "would overwrite each other's files: start it without torchrun."
        )


def _torchrun(devices: object, num_nodes: int) -> str:
    several = "" if num_nodes == 1 else f" --nnodes {num_nodes}"
    return f"torchrun{several} --nproc-per-node {devices} -m recame"
