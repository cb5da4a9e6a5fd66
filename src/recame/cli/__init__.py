"""The command line: one verb a function, each of which parses, calls one function and prints."""

from __future__ import annotations

import sys

from recame.errors import RecameError


def main() -> None:
    """Entry point of `recame`: user errors on one line and exit code 2, no traceback."""
    from recame.cli.app import app

    try:
        app(standalone_mode=True)
    except RecameError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
