"""`inspect_set`: examine, print, write; with progress on a terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console

from recame.config import DataConfig
from recame.inspection.examine import Inspection, examine_set
from recame.inspection.printing import print_inspection
from recame.inspection.saving import save_inspection
from recame.models import LoadedModel
from recame.progress import progress_bars


def inspect_set(
    source: Path | pd.DataFrame,
    *,
    data: DataConfig | None = None,
    model: LoadedModel | None = None,
    decode: bool = True,
    seed: int = 0,
    out: Path | None = None,
    console: Console | None = None,
) -> Inspection:
    """Examine a set, print the summary and write the page, the JSON and the tables.

    Args:
        source: a folder or a table, see `read_manifest`; or what that returned.
        data: names of the columns, size of the images; None: the defaults.
        model: embeds instead of the packaged network.
        decode: false: only what the manifest says.
        seed: of every sample.
        out: folder for the files; None: nothing is written.
        console: for progress and summary; None: nothing is printed.

    Returns:
        What was found.

    Raises:
        DataError: the source cannot be read, not one of its images can, or `out` cannot be
            written.
    """
    if console is None:
        inspection = examine_set(source, data=data, model=model, decode=decode, seed=seed)
    else:
        with progress_bars(console) as report:
            inspection = examine_set(
                source, data=data, model=model, decode=decode, seed=seed, report=report
            )
        print_inspection(inspection, console)
    if out is not None:
        save_inspection(inspection, out)
    return inspection
