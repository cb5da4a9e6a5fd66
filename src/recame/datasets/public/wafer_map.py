"""WM-811K: wafer maps of real production with eight failure patterns and none (`LSWMD.pkl`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recame.contracts import Array
from recame.data.splits import make_splits
from recame.datasets.public.inert_pickle import PickledArray, as_text, pickled_columns, read_inert
from recame.datasets.public.prepared_folder import (
    fingerprint,
    prepare_folder,
    save_manifest,
    write_images,
)
from recame.errors import ConfigError, DataError
from recame.progress import Progress, silent

CLASSES = (
    "none",
    "Edge-Ring",
    "Edge-Loc",
    "Center",
    "Loc",
    "Scratch",
    "Random",
    "Donut",
    "Near-full",
)
#: A map's values (no die, good die, failed die) -> grey.
GREY = np.array([0, 127, 255], np.uint8)
#: The published file has this typing slip; some copies have corrected it.
_SPLIT_COLUMNS = ("trianTestLabel", "trainTestLabel")
_SPLITS = {"training": "train", "test": "test"}
_IMAGES_A_FOLDER = 1000


def prepare(
    raw: Path,
    out: Path,
    *,
    val_fraction: float = 0.0,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Path:
    """Make the labelled part of WM-811K: 172,950 of 811,457 maps, 54,355 of them for training.

    The pickle is read without running anything it names (`inert_pickle`); the whole of it (2 GB)
    is held in memory meanwhile. Maps keep their size and become grey PNG files: 0 where the wafer
    has no die, 127 a good die, 255 a failed one.

    Args:
        raw: `LSWMD.pkl`, or the folder that holds it.
        out: a new or empty folder, or one that holds this set already.
        val_fraction: share of the training maps that becomes `val`, whole lots together; 0 leaves
            the published split as it is, which has none.
        seed: of the choice of lots.
        on_progress: told of the progress while images are written.

    Returns:
        The manifest: `image, label, split, product, lot, wafer, source_row`. Wafers with equally
        many dies are taken for one product ("533 dies"). `none` is the normal class.

    Raises:
        DataError: the file is missing, damaged or another one, or `out` holds something else.
        ConfigError: `val_fraction` is out of range.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(
            f"val_fraction = {val_fraction} is no share of the training maps: choose 0 or more, "
            "below 1."
        )
    path = raw / "LSWMD.pkl" if raw.is_dir() else raw
    recipe = {
        "set": "WM-811K",
        "val_fraction": float(val_fraction),
        "seed": seed,
        "raw": fingerprint([path]),
    }

    def build(partial: Path) -> None:
        columns = pickled_columns(read_inert(path))
        table = _labelled(columns, path)
        if val_fraction > 0:
            train = table[table["split"] == "train"]
            table.loc[train.index, "split"] = make_splits(
                train["label"],
                val_fraction=val_fraction,
                test_fraction=0.0,
                groups=train["lot"],
                seed=seed,
            )
        maps = columns["waferMap"][table["source_row"].to_numpy()]
        write_images(partial, table["image"].tolist(), lambda n: _grey(maps[n], path), on_progress)
        save_manifest(partial, table)

    return prepare_folder(out, recipe, build)


def _labelled(columns: dict[str, Array], path: Path) -> pd.DataFrame:
    """One row for each wafer that has both a label and a split."""
    split_column = next((name for name in _SPLIT_COLUMNS if name in columns), _SPLIT_COLUMNS[0])
    wanted = ("waferMap", "dieSize", "lotName", "waferIndex", "failureType", split_column)
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(columns)} and lacks {', '.join(missing)}: it is "
            "not the published LSWMD.pkl. Use the published file."
        )
    label, split = (
        pd.Series([_first_text(cell) for cell in columns[name]], dtype=object)
        for name in ("failureType", split_column)
    )
    kept = (label != "") & (split != "")
    rows = np.flatnonzero(kept.to_numpy())
    named = label[kept].str.lower().map({name.lower(): name for name in CLASSES})
    role = split[kept].str.lower().map(_SPLITS)
    for values, given, what in ((named, label, "failureType"), (role, split, split_column)):
        unknown = values.index[values.isna()]
        if len(unknown):
            raise DataError(
                f"{path}: row {unknown[0]} has {what} {given[unknown[0]]!r}, which the published "
                "LSWMD.pkl does not have. Use the published file."
            )
    if not len(rows):
        raise DataError(
            f"{path} has no labelled wafer: it is not the published LSWMD.pkl. Use the published "
            "file."
        )
    images = [f"images/{row // _IMAGES_A_FOLDER:03d}/{row:06d}.png" for row in rows]
    dies = pd.Series(columns["dieSize"][rows].astype(np.float64))
    return pd.DataFrame(
        {
            "image": images,
            "label": named.to_numpy(),
            "split": role.to_numpy(),
            "product": dies.map("{:.0f} dies".format),
            "lot": [_first_text(cell) for cell in columns["lotName"][rows]],
            "wafer": columns["waferIndex"][rows].astype(np.float64).astype(np.int64),
            "source_row": rows,
        }
    )


def _first_text(cell: Any) -> str:
    """The text in a cell such as [['none']]; empty if there is none ([])."""
    while isinstance(cell, (PickledArray, list, tuple, np.ndarray)):
        cell = getattr(cell, "array", cell)
        flat = cell.ravel() if isinstance(cell, np.ndarray) else cell
        cell = flat[0] if len(flat) else ""
    return as_text(cell).strip()


def _grey(cell: Any, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    values = cell.array if isinstance(cell, PickledArray) else np.asarray(cell)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iu":
        raise DataError(
            f"{path}: a wafer map is not a table of whole numbers. Get the published file again."
        )
    if values.min() < 0 or values.max() >= len(GREY):
        raise DataError(
            f"{path}: a wafer map holds {int(values.max())}, but published maps hold 0, 1 and 2. "
            "Get the published file again."
        )
    return GREY[values]
