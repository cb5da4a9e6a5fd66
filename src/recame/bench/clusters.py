"""The appearance clusters that a manifest or a generated set records for its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from recame.errors import DataError

#: The manifest's column with an image's cluster, and the file with clusters of a generated set.
CLUSTER = "cluster"
TRUTH = "truth.csv"


def clusters_of(recorded: pd.DataFrame, source: Path) -> pd.Series[Any] | None:
    """The cluster of each image, from the manifest or from the generator's `truth.csv`.

    Args:
        recorded: one row for each image, with `image` and, if known, `cluster`.
        source: the manifest that it was read from; `truth.csv` may lie beside it.

    Returns:
        A text for each row, NaN where it is unknown; None if no cluster is known.

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
            f"{truth} does not hold the images' clusters ({error}), so the tail recall on unseen "
            "clusters cannot be computed: the file was edited or damaged. Delete its folder, and "
            "the set is generated again."
        ) from error
    return recorded["image"].map(table.drop_duplicates("image").set_index("image")[CLUSTER])
