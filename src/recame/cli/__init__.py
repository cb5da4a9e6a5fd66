"""The command line: one verb a function, each of which parses, calls one function and prints."""

from __future__ import annotations

import errno
import sys

from recame.errors import RecameError, as_missing_dependency

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


def main() -> None:
    """Entry point of `recame`: user errors on one line and exit code 2, no traceback."""
    from recame.cli.app import app

    try:
        app(standalone_mode=True)
    except RecameError as error:
        _refuse(error)
    except ModuleNotFoundError as error:
        known = as_missing_dependency(error)
        if known is error:
            raise
        _refuse(known)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        where = error.filename or "A file"
        advice = "free space there, or give another folder (--out, RECAME_CACHE, TMPDIR)."
        print(f"error: {where} cannot be written ({error.strerror}): {advice}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def _refuse(error: BaseException) -> None:
    # What a library says in several lines, as of bad YAML, becomes one.
    line = " ".join(part.strip() for part in str(error).splitlines())
    print(f"error: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(2)
