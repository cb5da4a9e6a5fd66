"""Connect to a Ray cluster within a time limit, or say what to do."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recame.errors import ConfigError, MissingDependencyError

#: How long a cluster may take to answer.
ANSWER_S = 30.0
#: Checks in a separate process, which can be killed, whether a cluster's head node responds.
_ASK = """
import logging, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
"""


@contextmanager
def connected(address: str, purpose: str) -> Iterator[Any]:
    """Connect and give the ray package; an existing connection is used and kept.

    Args:
        address: `HOST:6379`, `ray://HOST:10001`, `auto` on a machine of the cluster, or `local`,
            which starts nodes of this machine's cores for this call.
        purpose: what it is needed for; ends the sentence "... is needed".

    Raises:
        MissingDependencyError: ray is not installed.
        ConfigError: no cluster responds within `ANSWER_S` seconds.
    """
    # No usage statistics are sent unless the user enables them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError("ray", "cluster", purpose) from error
    if ray.is_initialized():
        yield ray
        return
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(
            f"No Ray cluster answers at {address!r} ({told}): start one with `ray start --head` "
            "and `ray start --address HOST:6379` on the other nodes, or leave out --ray. A cluster "
            "that asks for a token is reached with RAY_AUTH_MODE=token in the environment."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Check whether HOST:PORT responds; Ray itself would try for minutes.

    Raises:
        OSError: nothing listens there.
        RuntimeError: what listens there is no head of a Ray cluster, or has another version.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    words = [sys.executable, "-c", _ASK, address]
    try:
        asked = subprocess.run(words, capture_output=True, timeout=ANSWER_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the program there does not answer in {ANSWER_S:.0f} s") from None
    if asked.returncode:
        told = asked.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"the program there is no cluster that this process can use: {told}")
