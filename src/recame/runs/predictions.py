"""The predictions table: one row an image, stable column names, CSV or Parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from recame.contracts import Predictions
from recame.errors import ConfigError, DataError
from recame.files import write_whole
from recame.label_space import LabelSpace
from recame.names import cells_of, escaped, quoted, text_of, texts_changed, unescaped

PREDICTIONS_SCHEMA = 1

#: Where Parquet's metadata keeps the schema version.
SCHEMA_KEY = b"recame.schema"

_SUFFIXES = (".csv", ".parquet")
_INTERNAL = ("path", "target", "row")
_FIRST = ("image", "prediction", "confidence")
_MANIFEST_FIRST = ("label", "split")


def predictions_table(predictions: Predictions, label_space: LabelSpace) -> pd.DataFrame:
    """Lay predictions out as a table for people and other tools.

    Columns: `image, prediction, confidence, p_<class>...` of the ensemble, then `label, split`
    and every other manifest column that is known, then `expert<k>_p_<class>...` of each expert,
    k from 0. A manifest column that bears one of these names becomes `manifest_<name>`.

    Args:
        predictions: N images.
        label_space: names the C classes.

    Returns:
        N rows.
    """
    names = label_space.names
    chosen = predictions.probabilities.argmax(1)
    called = np.array(names, dtype=object)[chosen]
    # The largest of no numbers is the first class, which nobody has called.
    called[~np.isfinite(predictions.probabilities).all(1)] = None
    own = {
        "prediction": called,
        "confidence": np.take_along_axis(predictions.probabilities, chosen[:, None], 1)[:, 0],
    }
    ensemble = pd.DataFrame(predictions.probabilities, columns=[f"p_{name}" for name in names])
    num_experts = predictions.expert_probabilities.shape[1]
    experts = pd.DataFrame(
        predictions.expert_probabilities.reshape(len(predictions), num_experts * len(names)),
        columns=[f"expert{k}_p_{name}" for k in range(num_experts) for name in names],
    )
    manifest = predictions.table.reset_index(drop=True).rename(columns=str)
    manifest = manifest.drop(columns=[name for name in _INTERNAL if name in manifest])
    taken = {"prediction", "confidence", *ensemble.columns, *experts.columns}
    manifest = manifest.rename(columns={n: f"manifest_{n}" for n in manifest if n in taken})
    order = [name for name in _MANIFEST_FIRST if name in manifest]
    order += [str(name) for name in manifest if name not in {"image", *order}]
    return pd.concat(
        [manifest[["image"]], pd.DataFrame(own), ensemble, manifest[order], experts], axis=1
    )


def check_suffix(path: Path) -> None:
    """Refuse a file name of another kind, before hours of work rather than after.

    Raises:
        ConfigError: the name ends neither in .csv nor in .parquet.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"Predictions cannot be written as {path.name!r}: "
            f"the name must end in {' or '.join(_SUFFIXES)}."
        )


def save_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write the table, whole or not at all; missing folders are made.

    Args:
        table: from `predictions_table`.
        path: ends in .csv or .parquet. Parquet keeps the types and the schema version.

    Raises:
        ConfigError: another suffix.
        DataError: the disk is full, or the place cannot be written.
    """
    check_suffix(path)
    with write_whole(path, advice="Free space, or choose another place.") as partial:
        if path.suffix.lower() == ".csv":
            _write_csv(table, partial)
        else:
            _write_parquet(table, partial)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    cells = cells_of(table)
    quoting: Literal[0, 2] = csv.QUOTE_MINIMAL
    for name in cells.select_dtypes(exclude="number"):
        if cells[name].astype(str).str.contains("\r", regex=False).any():
            # It splits rows, and a CSV writer quotes only what ends its own lines.
            quoting = csv.QUOTE_NONNUMERIC
    cells.to_csv(path, index=False, quoting=quoting)


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = pa.Table.from_pandas(texts_changed(table, escaped), preserve_index=False)
    metadata = {**(columns.schema.metadata or {}), SCHEMA_KEY: str(PREDICTIONS_SCHEMA).encode()}
    parquet.write_table(columns.replace_schema_metadata(metadata), path, write_page_checksum=True)


def load_predictions(path: Path, label_space: LabelSpace) -> Predictions:
    """Read what `save_predictions` wrote, to judge it again without a model.

    Args:
        path: ends in .csv or .parquet.
        label_space: names the classes, in the order of the arrays.

    Returns:
        Predictions without features; target -1 where there is no label. Manifest columns of a CSV
        come back as text.

    Raises:
        ConfigError: another suffix.
        DataError: the file is missing, unreadable, of a newer schema, or of other classes.
    """
    check_suffix(path)
    try:
        table = (
            _read_csv(path, label_space.names)
            if path.suffix.lower() == ".csv"
            else _read_parquet(path)
        )
    except FileNotFoundError:
        raise DataError(f"No predictions at {path}: check the path.") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as predictions ({error}): it was cut off, edited or damaged. "
            "Write it again with the command that made it, `recame evaluate` or `recame predict`."
        ) from error
    names = label_space.names
    ensemble = [f"p_{name}" for name in names]
    heads = [c.split("_p_", 1)[0] for c in map(str, table) if c.endswith(f"_p_{names[0]}")]
    prefixes = sorted(
        (h for h in heads if h.startswith("expert") and h[6:].isdigit()), key=lambda h: int(h[6:])
    )
    experts = [f"{prefix}_p_{name}" for prefix in prefixes for name in names]
    missing = [name for name in ("image", *ensemble, *experts) if name not in table]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r}, so it holds no predictions of the classes "
            f"{', '.join(map(quoted, names[:12]))}. Give the predictions of the run "
            "whose label space is used."
        )
    drop = ["prediction", "confidence", *ensemble, *experts]
    shape = (len(table), len(prefixes), len(names))
    return Predictions(
        table=table.drop(columns=[name for name in drop if name in table]),
        probabilities=table[ensemble].to_numpy(np.float32),
        expert_probabilities=table[experts].to_numpy(np.float32).reshape(shape),
        target=_target(table, label_space),
    )


def _read_csv(path: Path, classes: Sequence[str]) -> pd.DataFrame:
    header = pd.read_csv(path, nrows=0).columns
    ours = {"confidence", *(f"p_{name}" for name in classes)}
    # A manifest's own column may be called p_lot.
    numbers = {n: np.float32 for n in header if re.sub(r"^expert\d+_", "", text_of(n)) in ours}
    # Class "NA" and lot "007" are names: only an empty cell means "none".
    text = {name: str for name in header if name not in numbers}
    # An answer without numbers has "nan" for them.
    empty = {name: ["", "nan"] if name in numbers else [""] for name in header}
    table = pd.read_csv(path, dtype={**numbers, **text}, keep_default_na=False, na_values=empty)
    return texts_changed(table, text_of).rename(columns=text_of)


def _read_parquet(path: Path) -> pd.DataFrame:
    from pyarrow import parquet

    columns = parquet.read_table(path, page_checksum_verification=True)
    schema = int((columns.schema.metadata or {}).get(SCHEMA_KEY, b"0"))
    if schema > PREDICTIONS_SCHEMA:
        raise DataError(
            f"{path} has schema {schema}; this version reads up to {PREDICTIONS_SCHEMA}. "
            "Update recame: pip install -U recame"
        )
    return texts_changed(columns.to_pandas(), unescaped)


def _target(
    table: pd.DataFrame, label_space: LabelSpace
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if "label" not in table:
        return np.full(len(table), -1, np.int64)
    labels = table["label"]
    codes = labels.map({name: i for i, name in enumerate(label_space.names)})
    unknown = labels[codes.isna() & labels.notna()]
    if len(unknown):
        label_space.index(str(unknown.iloc[0]))  # raises, with the way out
    return np.asarray(codes.fillna(-1), dtype=np.int64)
