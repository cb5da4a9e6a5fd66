"""A file that one process at a time may hold; the system lets go of it when the process ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def _lock(stream: IO[bytes]) -> None:
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(stream: IO[bytes]) -> None:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def hold(path: Path) -> IO[bytes] | None:
    """Hold a lock file until the stream is closed.

    Without `filelock`: the runtime on a line's PC has few packages.

    Args:
        path: of the file, made where it is missing.

    Returns:
        The open file; None if another holds it. Where the file system knows no locks, the file is
        given all the same.
    """
    stream = path.open("ab")
    try:
        _lock(stream)
    except (BlockingIOError, PermissionError):
        stream.close()
        return None
    except OSError:
        return stream
    return stream
