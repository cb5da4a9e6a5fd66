"""Which images look alike by origin: the clusters that a manifest or a generated set tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from recame.errors import DataError

#: The manifest's column that tells an image's cluster, and the file that a generated set has.
CLUSTER = "cluster"
TRUTH = "truth.csv"


def clusters_of(recorded: pd.DataFrame, source: Path) -> pd.Series[Any] | None:
    """The cluster of each image, as the manifest or the generator tells it.

    Args:
        recorded: a row an image, with `image` and, if known, `cluster`.
        source: the manifest that it was read from; `truth.csv` may lie beside it.

    Returns:
        A text a row, NaN where it is not told; None where none is.

    Raises:
        DataError: `truth.csv` is damaged.
    """
    if CLUSTER in recorded:
        told = recorded[CLUSTER]
        return told.astype(str).where(told.notna())
    truth = source.parent / TRUTH
    if not truth.exists():
        return None
    try:
        table = pd.read_csv(truth, usecols=["image", CLUSTER], dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{truth} does not tell the images' clusters ({error}), so how the tail is recalled on "
            "unseen ones cannot be told: it was edited or damaged. Delete the folder, and the set "
            "is generated again."
        ) from error
    return recorded["image"].map(table.drop_duplicates("image").set_index("image")[CLUSTER])
