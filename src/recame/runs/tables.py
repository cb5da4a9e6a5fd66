"""A run's tables on disk: CSV files that are refused if they changed since the run wrote them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recame.errors import CheckpointError

if TYPE_CHECKING:  # which a line's machine has not
    import pandas as pd


def table_digest(content: bytes) -> str:
    """SHA-256 of a table's file; a missing or changed row changes it."""
    return hashlib.sha256(content).hexdigest()


def digests_to_note(path: Path, content: bytes, known: Sequence[str]) -> list[str]:
    """What `run.json` must know before a table's file is replaced.

    Args:
        path: of the table.
        content: what it is to hold.
        known: what `run.json` knows of it until now.

    Returns:
        The new digest, and that of the file which is right until the new one has its place.
    """
    now = table_digest(content)
    then = table_digest(path.read_bytes()) if path.exists() else None
    return [now, *(digest for digest in known if digest == then != now)]


def read_table(
    path: Path, known: Sequence[str] | None, columns: Sequence[str], way_out: str
) -> pd.DataFrame:
    """Read a table of a run, as text.

    Args:
        path: the CSV file.
        known: what `table_digest` may be; None: of a run of a version that kept none.
        columns: that must be there.
        way_out: what to do with a damaged file, a sentence.

    Raises:
        CheckpointError: it is missing, empty, cut off, or not as the run wrote it.
    """
    import pandas as pd

    try:
        content = path.read_bytes()
        if known is not None and table_digest(content) not in known:
            raise ValueError("it has changed since the run wrote it: run.json has another hash")
        if not content.endswith(b"\n"):  # every row that a run writes ends so
            raise ValueError("it is empty or cut off")
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
        if missing := [name for name in columns if name not in table]:
            raise ValueError(f"it has no column {', '.join(missing)}")
    except (OSError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} cannot be used ({error}): it was edited or damaged. {way_out}"
        ) from error
    return table


def read_history(path: Path, known: Sequence[str] | None) -> pd.DataFrame:
    """Read `history.csv`, as text, so that what is written again stays as it was.

    Raises:
        CheckpointError: it is damaged, or holds something else than numbers.
    """
    import pandas as pd

    way_out = "Restore it from a copy of the run, or remove it: only figures of epochs are lost."
    table = read_table(path, known, ("epoch", "seconds"), way_out)
    try:
        table.apply(pd.to_numeric)
    except ValueError as error:
        raise CheckpointError(
            f"{path} holds values that are not numbers ({error}): it was edited or damaged. "
            f"{way_out}"
        ) from error
    return table
