"""The predictions table: one row an image, stable column names, CSV or Parquet."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from recame.contracts import AnyPath, IntArray, Predictions
from recame.errors import ConfigError, DataError
from recame.files import write_whole
from recame.names import cells_of, escaped, in_words, quoted, text_of, texts_changed, unescaped
from recame.runs.prediction_columns import (
    CALLED,
    LABELLED,
    MODEL_KEY,
    NUMBERS,
    PREDICTIONS_SCHEMA,
    SCHEMA_KEY,
    class_names,
    expert_columns,
    kept_columns,
    prediction_columns,
    probability_columns,
    table_metadata,
    told_classes,
)

_SUFFIXES = (".csv", ".parquet")
_INTERNAL = ("image", "path", "target", "row")


class SavedPredictions(NamedTuple):
    """What a table of predictions holds.

    Attributes:
        classes: names of the C classes.
        predictions: without features; target -1 where there is no label. Probabilities are NaN
            where a file could not be read. The table keeps every other column; those of a CSV
            come back as text.
        model: fingerprint of what predicted; empty where the table does not tell.
    """

    classes: tuple[str, ...]
    predictions: Predictions
    model: str


def predictions_table(
    predictions: Predictions, classes: Sequence[str], decided: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Lay predictions out as a table for people and other tools; see `prediction_columns`.

    Args:
        predictions: N images.
        classes: names of the C classes.
        decided: N rows of `action, reason, note, candidates, unknown_score, sha256`, or of some of
            them; None, or where one is missing: every image is `automatic`, and nothing is known.

    Returns:
        N rows. A manifest column that bears one of the table's names becomes `manifest_<name>`.
    """
    number = len(predictions)
    chosen = predictions.probabilities.argmax(1)
    called = np.array(classes, dtype=object)[chosen]
    sure = np.take_along_axis(predictions.probabilities, chosen[:, None], 1)[:, 0]
    # The largest of no numbers is the first class, which nobody has called.
    nothing = ~np.isfinite(predictions.probabilities).all(1)
    if decided is not None and "reason" in decided:
        nothing |= (decided["reason"] == "not_finite").to_numpy(np.bool_)
    called[nothing] = None
    sure = np.where(nothing, np.nan, sure).astype(np.float32)
    num_experts = predictions.expert_probabilities.shape[1]
    experts = predictions.expert_probabilities.reshape(number, num_experts * len(classes))
    source = predictions.table.reset_index(drop=True).rename(columns=str)
    own = (*_INTERNAL, *LABELLED)
    further = [str(name) for name in source if name not in own]
    kept = kept_columns(further, classes)
    facts: dict[str, Any] = {
        "image": source["image"],
        "path": source.get("path", source["image"]),
        **dict(zip(CALLED, (called, sure), strict=True)),
        "action": "automatic",
        "reason": "automatic",
        "note": "",
        "candidates": "",
        "unknown_score": np.float32(np.nan),
        "sha256": "",
        **({} if decided is None else {str(name): decided[name].to_numpy() for name in decided}),
        **{name: source.get(name) for name in LABELLED},
        **{ours: source[name] for name, ours in kept.items()},
    }
    table = pd.concat(
        [
            pd.DataFrame(facts, index=range(number)),
            pd.DataFrame(predictions.probabilities, columns=probability_columns(classes)),
            pd.DataFrame(experts, columns=expert_columns(classes, num_experts)),
        ],
        axis=1,
    )
    return table[prediction_columns(classes, list(kept.values()), num_experts)]


def check_suffix(path: Path) -> None:
    """Refuse a file name with another ending, before hours of work rather than after.

    Raises:
        ConfigError: the name ends neither in .csv nor in .parquet.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"Predictions cannot be written as {path.name!r}: "
            f"the name must end in {' or '.join(_SUFFIXES)}."
        )


def save_predictions(
    table: pd.DataFrame, path: Path, classes: Sequence[str], model: str = ""
) -> None:
    """Write the table, whole or not at all; missing folders are made.

    Args:
        table: from `predictions_table`.
        path: ends in .csv or .parquet. Parquet keeps the types, and notes schema, classes, model
            and version of recame.
        classes: names of the C classes.
        model: fingerprint of what predicted.

    Raises:
        ConfigError: another suffix.
        DataError: the disk is full, or the place cannot be written.
    """
    check_suffix(path)
    with write_whole(path, advice="Free space, or choose another place.") as partial:
        if path.suffix.lower() == ".csv":
            _write_csv(table, partial)
        else:
            _write_parquet(table, partial, table_metadata(classes, model))


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    cells = cells_of(table)
    quoting: Literal[0, 2] = csv.QUOTE_MINIMAL
    for name in cells.select_dtypes(exclude="number"):
        if cells[name].astype(str).str.contains("\r", regex=False).any():
            # It splits rows, and a CSV writer quotes only what ends its own lines.
            quoting = csv.QUOTE_NONNUMERIC
    cells.to_csv(path, index=False, quoting=quoting)


def _write_parquet(table: pd.DataFrame, path: Path, told: dict[bytes, bytes]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = pa.Table.from_pandas(texts_changed(table, escaped), preserve_index=False)
    metadata = {**(columns.schema.metadata or {}), **told}
    parquet.write_table(columns.replace_schema_metadata(metadata), path, write_page_checksum=True)


def load_predictions_table(path: AnyPath) -> tuple[pd.DataFrame, dict[bytes, bytes]]:
    """Read a table of predictions with its metadata, see `table_metadata`.

    Args:
        path: ends in .csv or .parquet.

    Raises:
        ConfigError: another suffix.
        DataError: the file is missing, unreadable, or of a newer schema.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataError(
            f"Predictions are read from a path or a DataFrame, not from {path!r} "
            f"({type(path).__name__}). Give the table that `recame evaluate` or `recame predict` "
            "wrote."
        )
    path = Path(path)
    check_suffix(path)
    try:
        return _read_parquet(path) if path.suffix.lower() != ".csv" else (_read_csv(path), {})
    except FileNotFoundError:
        raise DataError(f"No predictions at {path}: check the path.") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as predictions ({error}): it was cut off, edited or damaged. "
            "Write it again with the command that made it, `recame evaluate` or `recame predict`."
        ) from error


def load_predictions(
    table: AnyPath | pd.DataFrame, classes: Sequence[str] | None = None
) -> SavedPredictions:
    """Read a table that `recame evaluate` or `recame predict` wrote, of this schema or the first.

    Args:
        table: its path, which ends in .csv or .parquet, or what was read of it.
        classes: the classes that it must have, in the order of the arrays; None: its own classes.

    Raises:
        ConfigError: another suffix.
        DataError: the file is missing, unreadable, of a newer schema, or of other classes.
    """
    told: dict[bytes, bytes] = {}
    source = in_words(table)
    if isinstance(table, pd.DataFrame):
        table = table.reset_index(drop=True).rename(columns=str)
    else:
        table, told = load_predictions_table(table)
    columns = list(map(str, table))
    names = told_classes(told) or class_names(columns)
    if not names or (classes is not None and sorted(classes) != sorted(names)):
        found = f"those of {', '.join(map(quoted, names[:12]))}" if names else "none"
        wanted = "" if classes is None else f" of {', '.join(map(quoted, classes[:12]))}"
        raise DataError(
            f"{source} does not hold predictions{wanted}, but {found}: give a table that recame "
            "evaluate or recame predict wrote with the same model."
        )
    names = tuple(classes or names)
    return SavedPredictions(
        names, _predictions(table, names, source), told.get(MODEL_KEY, b"").decode()
    )


def _predictions(table: pd.DataFrame, names: tuple[str, ...], source: str) -> Predictions:
    ensemble, columns = probability_columns(names), set(map(str, table))
    num_experts = 0
    while f"expert{num_experts}_p_{names[0]}" in columns:
        num_experts += 1
    experts = expert_columns(names, num_experts)
    missing = [name for name in ("image", *ensemble, *experts) if name not in columns]
    if missing:
        raise DataError(
            f"{source} has no column {missing[0]!r}: a column was removed or renamed. Write it "
            "again with the command that made it."
        )
    drop = {*CALLED, *ensemble, *experts}
    return Predictions(
        table=table.drop(columns=[name for name in table if name in drop]),
        probabilities=table[ensemble].to_numpy(np.float32),
        expert_probabilities=table[experts]
        .to_numpy(np.float32)
        .reshape(len(table), num_experts, len(names)),
        target=_target(table, names, source),
    )


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a table as recame wrote it, or as a spreadsheet has saved it since."""
    with path.open(encoding="utf-8-sig") as stream:
        first = stream.readline()
    if first.count(";") <= first.count(","):
        return _read_separated(path, sep=",", decimal=".")
    try:
        return _read_separated(path, sep=";", decimal=",")
    except ValueError:
        return _read_separated(path, sep=";", decimal=".")


def _read_separated(path: Path, *, sep: str, decimal: str) -> pd.DataFrame:
    how: dict[str, Any] = {"sep": sep, "decimal": decimal, "encoding": "utf-8-sig"}
    header = list(pd.read_csv(path, nrows=0, **how).columns)
    classes = set(class_names([text_of(name) for name in header]))
    ours = set(probability_columns(list(classes)))
    # A manifest's own column may be called p_lot.
    numbers = {
        name: np.float32
        for name in header
        if name in NUMBERS or re.sub(r"^expert\d+_(?=p_)", "", text_of(name)) in ours
    }
    # Class "NA" and lot "007" are names: only an empty cell means "none".
    text = {name: str for name in header if name not in numbers}
    # An answer without numbers has "nan" for them.
    empty = {name: ["", "nan"] if name in numbers else [""] for name in header}
    table = pd.read_csv(
        path, dtype={**numbers, **text}, keep_default_na=False, na_values=empty, **how
    )
    return texts_changed(table, text_of).rename(columns=text_of)


def _read_parquet(path: Path) -> tuple[pd.DataFrame, dict[bytes, bytes]]:
    from pyarrow import parquet

    columns = parquet.read_table(path, page_checksum_verification=True)
    told = dict(columns.schema.metadata or {})
    schema = int(told.get(SCHEMA_KEY, b"0"))
    if schema > PREDICTIONS_SCHEMA:
        raise DataError(
            f"{path} has schema {schema}; this version reads up to {PREDICTIONS_SCHEMA}. "
            "Update recame: pip install -U recame"
        )
    return texts_changed(columns.to_pandas(), unescaped), told


def _target(table: pd.DataFrame, names: tuple[str, ...], source: str) -> IntArray:
    if "label" not in table:
        return np.full(len(table), -1, np.int64)
    labels = table["label"].where(table["label"] != "")
    codes = labels.map({name: i for i, name in enumerate(names)})
    unknown = sorted(set(labels[codes.isna() & labels.notna()].astype(str)))
    if unknown:
        raise DataError(
            f"{source} has the labels {', '.join(map(quoted, unknown[:8]))}, which are not among "
            f"the model's classes ({', '.join(map(quoted, names[:12]))}): correct them, or leave "
            "the cells empty."
        )
    return np.asarray(codes.fillna(-1), dtype=np.int64)
