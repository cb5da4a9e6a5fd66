"""Writes the files of an inspection: JSON, the page, and tables to act on."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from recame.data.corrections import read_corrections
from recame.errors import CheckpointError, DataError
from recame.files import csv_text, read_json, records, text_bytes, write_together
from recame.inspection.check import Inspection
from recame.inspection.inspection_page import inspection_page
from recame.names import cells_of, counted

INSPECTION_SCHEMA = 1


def inspection_dict(inspection: Inspection) -> dict[str, Any]:
    """A JSON-ready dictionary with its schema version; tables are lists of records."""
    document: dict[str, Any] = {
        "schema": INSPECTION_SCHEMA,
        "recame": version("recame"),
        "source": inspection.source,
        "findings": [vars(finding) for finding in inspection.findings()],
        "seconds": inspection.seconds,
    }
    for check in inspection.checks:
        for key, facts in check.facts().items():
            document[key] = {**document[key], **facts} if key in document else facts
    return {key: _plain(part) for key, part in document.items()}


def inspection_dir(source: Path, parent: Path = Path("inspection")) -> Path:
    """The default folder of a source's inspection, which no other source shares.

    It has the name of the source with its ending, so that `lot.1` and `lot.2`, or a table and a
    folder, do not replace each other. If it holds the inspection of another source with that name,
    a number is added.

    Args:
        source: a folder or a table.
        parent: the folder in which it lies.
    """
    source = source.absolute()
    name = Path(os.path.normpath(source)).name
    for number in count(1):
        out = parent / (name if number == 1 else f"{name}-{number}")
        inspected = source
        if (out / "inspection.json").exists():
            with suppress(CheckpointError):
                inspected = Path(str(read_json(out / "inspection.json").get("source")))
        if inspected.resolve() == source.resolve():
            break
    return out


def check_nothing_filled_in(out: Path) -> None:
    """Refuse to overwrite corrections that people have written into an earlier `suspects.csv`.

    Raises:
        DataError: `suspects.csv` there holds corrections.
    """
    path = out / "suspects.csv"
    filled: dict[str, object] = {}
    if path.exists():
        with suppress(DataError):  # not a table of recame, or of a version without the column
            filled = {**read_corrections(path)}
    if filled:
        raise DataError(
            f"{path} holds {counted(len(filled), 'correction')}, which this inspection would "
            "overwrite: move the file beside the data, for example as corrections.csv, and give it "
            "with --corrections, or choose another --out."
        )


def save_inspection(inspection: Inspection, out: Path) -> Path:
    """Write `inspection.json`, `inspection.html` and the checks' tables, all of them or none.

    The tables are those with rows, for example `suspects.csv` and `clusters.csv` (every embedded
    image with its cluster). They replace the files of an earlier inspection.

    Args:
        inspection: what to write.
        out: folder, made when missing.

    Returns:
        The page.

    Raises:
        DataError: the folder cannot be written.
    """
    advice = "Free some space, or choose another folder with --out."
    with write_together(out, advice=advice) as partial:
        (partial / "inspection.html").write_bytes(text_bytes(inspection_page(inspection)))
        text = json.dumps(inspection_dict(inspection), indent=1, ensure_ascii=False, default=str)
        (partial / "inspection.json").write_bytes(text_bytes(text + "\n"))
        for check in inspection.checks:
            for name, table in check.tables().items():
                if len(table):
                    text = csv_text(cells_of(table), index=False)
                    (partial / f"{name}.csv").write_bytes(text.encode())
                else:
                    (out / f"{name}.csv").unlink(missing_ok=True)
    return out / "inspection.html"


def _plain(value: Any) -> Any:
    """Turn tables at any depth to lists of records of plain Python values, None for a gap."""
    if isinstance(value, pd.DataFrame):
        return records(value)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
