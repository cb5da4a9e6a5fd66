"""What a manifest and its files say by themselves: counts, groups, headers, equal images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recame.data.splits import check_group_column, in_order

#: Words in a column's name that say "these images were taken together".
GROUP_WORDS = frozenset(
    {
        "batch",
        "board",
        "camera",
        "carrier",
        "cassette",
        "charge",
        "coil",
        "die",
        "heat",
        "lot",
        "machine",
        "magazine",
        "module",
        "panel",
        "pcb",
        "piece",
        "reel",
        "roll",
        "sample",
        "serial",
        "session",
        "sheet",
        "slab",
        "sn",
        "station",
        "strip",
        "substrate",
        "tool",
        "tray",
        "unit",
        "wafer",
    }
)
#: Words that say that a number was measured or counted, whatever else the name holds.
_MEASURED_WORDS = frozenset(
    {
        "angle",
        "area",
        "col",
        "column",
        "count",
        "height",
        "humidity",
        "pos",
        "position",
        "pressure",
        "row",
        "size",
        "slot",
        "speed",
        "temp",
        "temperature",
        "time",
        "voltage",
        "width",
        "x",
        "y",
        "z",
    }
)
#: A column with fewer values is shared by all splits by nature, as a tool or a station is.
FEWEST_GROUPS = 20
#: Columns that are never a group or a grouping to compare clusters with.
_OWN = frozenset({"image", "path", "label", "split", "target", "row"})


@dataclass(frozen=True)
class GroupAudit:
    """Whether one column's values stay within a split each.

    Attributes:
        column: the column.
        num_groups: distinct values.
        straddling: values found in two splits or more, most images first, with their splits.
        num_images: images that belong to these values.
        named: whether the settings named the column, rather than its name telling it.
    """

    column: str
    num_groups: int
    straddling: pd.DataFrame
    num_images: int
    named: bool

    @property
    def by_nature(self) -> bool:
        """Whether so few values are expected in every split."""
        return not self.named and self.num_groups < FEWEST_GROUPS


@dataclass(frozen=True)
class ManifestAudit:
    """What a manifest says without opening an image.

    Attributes:
        num_images: rows.
        classes: one row a class, most frequent first: `class`, `images`, and one column a split.
        splits: images of each split; empty where the manifest has no splits.
        products: images by class (rows, in the order of `classes`) and product (columns, most
            frequent first); None where there is no such column.
        product_column: what the products' column is called.
        columns: one row a column: `column`, `values` (distinct), `missing`, `example`.
        groups: the columns examined for values in two splits.
        repeated: rows that name a file that an earlier or later row names as well.
    """

    num_images: int
    classes: pd.DataFrame
    splits: dict[str, int]
    products: pd.DataFrame | None
    product_column: str
    columns: pd.DataFrame
    groups: tuple[GroupAudit, ...]
    repeated: pd.DataFrame

    @property
    def imbalance_ratio(self) -> float:
        """Images of the most over the least frequent class, in train where there is one.

        Classes without an image there are left out.
        """
        counts = self.classes["train" if "train" in self.splits else "images"]
        present = counts[counts > 0]
        return float(present.max() / present.min())

    @property
    def num_empty_cells(self) -> int:
        """Class-product pairs without an image."""
        return 0 if self.products is None else int((self.products.to_numpy() == 0).sum())


def audit_manifest(
    table: pd.DataFrame, *, product_column: str = "product", group_by: str | None = None
) -> ManifestAudit:
    """Count everything that a manifest can tell by itself; a million rows take seconds.

    Args:
        table: what `read_manifest` returned.
        product_column: may be absent from the table.
        group_by: a column whose values must not straddle two splits; may be None.

    Raises:
        DataError: `group_by` is no column of the table.
    """
    check_group_column(table, group_by)
    order = table["label"].value_counts().rename_axis("label").reset_index(name="images")
    order = order.sort_values(["images", "label"], ascending=[False, True], kind="stable")
    names = pd.Index(order["label"])
    classes = pd.DataFrame({"class": names, "images": order["images"].to_numpy()})
    splits: dict[str, int] = {}
    if "split" in table:
        found = table["split"].value_counts()
        splits = {name: int(found[name]) for name in in_order(found.index)}
        counted = cross_counts(table["label"], table["split"], names, pd.Index(list(splits)))
        classes = pd.concat([classes, counted.reset_index(drop=True)], axis=1)
    products = None
    if product_column in table and table[product_column].notna().any():
        columns = pd.Index(table[product_column].astype(str).value_counts().index)
        products = cross_counts(table["label"], table[product_column].astype(str), names, columns)
    return ManifestAudit(
        num_images=len(table),
        classes=classes,
        splits=splits,
        products=products,
        product_column=product_column,
        columns=_column_overview(table),
        groups=tuple(
            _audit_group(table, column, named=column == group_by)
            for column in group_columns(table, group_by)
            if "split" in table
        ),
        repeated=table[table["path"].duplicated(keep=False)],
    )


def cross_counts(rows: pd.Series, columns: pd.Series, names: pd.Index, heads: pd.Index) -> Any:
    """A table of counts with the given order; values that are not named are left out.

    Args:
        rows: N values.
        columns: N values.
        names: R row names, unique.
        heads: K column names, unique.

    Returns:
        A data frame (R, K).
    """
    row, column = names.get_indexer(pd.Index(rows)), heads.get_indexer(pd.Index(columns))
    known = (row >= 0) & (column >= 0)
    flat = row[known].astype(np.int64) * len(heads) + column[known]
    counts = np.bincount(flat, minlength=len(names) * len(heads))
    return pd.DataFrame(counts.reshape(len(names), len(heads)), index=names, columns=heads)


def group_columns(table: pd.DataFrame, group_by: str | None = None) -> list[str]:
    """Columns that say which images were taken together: the one named, then those by name.

    A column with one value, or with another value on every row, groups nothing; nor does a
    measured one, by its name (`die_x`, `tool_temperature`) or because it holds fractions.
    """
    found = [] if group_by is None else [group_by]
    for column in table.columns:
        words = set(re.split(r"[^a-z]+", str(column).lower()))
        if column in _OWN or column in found or not words & GROUP_WORDS or words & _MEASURED_WORDS:
            continue
        if pd.api.types.is_float_dtype(table[column]) and (table[column].dropna() % 1 != 0).any():
            continue
        if 1 < table[column].nunique() < len(table):
            found.append(column)
    return found


def category_columns(table: pd.DataFrame, most: int = 200) -> list[str]:
    """Columns with 2 to `most` values that repeat: what clusters can be compared with."""
    return [
        str(column)
        for column in table.columns
        if column not in _OWN
        and not pd.api.types.is_float_dtype(table[column])
        and 2 <= table[column].nunique() <= min(most, len(table) // 2)
    ]


def _audit_group(table: pd.DataFrame, column: str, *, named: bool) -> GroupAudit:
    part = table[[column, "split"]].dropna()
    if pd.api.types.is_bool_dtype(part[column]) or part[column].dtype == object:
        part[column] = part[column].astype(str)  # pandas takes an index of truth values for a mask
    pairs = part.drop_duplicates()
    spread = pairs[column].value_counts()
    shared = spread[spread > 1]
    sizes = part[column].value_counts().reindex(shared.index).to_numpy()
    splits = shared.astype(str).to_numpy()
    straddling = pd.DataFrame({"group": shared.index, "splits": splits, "images": sizes})
    straddling = straddling.sort_values("images", ascending=False, kind="stable", ignore_index=True)
    listed = pairs[pairs[column].isin(straddling["group"][:1000])].groupby(column)["split"]
    names = straddling["group"].map({group: ", ".join(sorted(of)) for group, of in listed})
    straddling["splits"] = names.fillna(straddling["splits"])
    return GroupAudit(column, len(spread), straddling, int(sizes.sum()), named)


def _column_overview(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for column in table.columns:
        if column in {"path", "row", "target"}:
            continue
        values = table[column]
        missing = values.isna()
        if values.dtype == object or isinstance(values.dtype, pd.StringDtype):
            missing |= values.astype(str).str.strip() == ""
        rows.append(
            {
                "column": str(column),
                "values": int(values.nunique()),
                "missing": int(missing.sum()),
                "example": "" if missing.all() else str(values[~missing].iloc[0]),
            }
        )
    return pd.DataFrame(rows)
