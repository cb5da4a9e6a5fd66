"""The tables of what should be put right: equal images, one scene twice, suspect labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recame.contracts import IntArray
from recame.data.cache import BrokenImage
from recame.data.contents import content_digests, equal_groups


@dataclass(frozen=True)
class Hygiene:
    """What should be put right before training; every table names images by `image`.

    Attributes:
        duplicates: images whose pixels are equal: `group`, `image`, `label`, `split`, `bytes_equal`
            and, within the group, `labels` and `splits` (how many).
        near: pairs of one scene: `first`, `second` (table rows) with images, labels and splits.
        suspects: likely label errors, most likely first.
        judged: images whose label was tested.
        broken: files that cannot be read.
    """

    duplicates: pd.DataFrame
    near: pd.DataFrame
    suspects: pd.DataFrame
    judged: int
    broken: tuple[BrokenImage, ...]


def equal_images(table: pd.DataFrame, digests: list[str]) -> pd.DataFrame:
    """Rows whose decoded pixels are equal, whether one file or several."""
    readable = table[table["row"] >= 0]
    group = equal_groups([digests[row] for row in readable["row"]])
    found = readable[group >= 0]
    if found.empty:
        return no_duplicates()
    number = group[group >= 0]
    content = pd.Series(content_digests(found["path"].tolist()))
    labels = found["label"].groupby(number).transform("nunique").to_numpy()
    if "split" in found:
        splits = found["split"].groupby(number).transform("nunique").to_numpy()
    else:
        splits = np.zeros(len(found), np.int64)
    table_rows = pd.DataFrame(
        {
            "group": number,
            "table_row": found.index.to_numpy(),
            "image": found["image"].to_numpy(),
            "label": found["label"].to_numpy(),
            "split": found["split"].to_numpy() if "split" in found else "",
            "bytes_equal": (content.groupby(number).transform("nunique") == 1).to_numpy(),
            "labels": labels,
            "splits": splits,
        }
    )
    order = ["labels", "splits", "group", "table_row"]
    ranked = table_rows.sort_values(order, ascending=[False, False, True, True], kind="stable")
    ranked["group"] = pd.factorize(ranked["group"])[0] + 1
    return ranked.reset_index(drop=True)


def no_duplicates() -> pd.DataFrame:
    """The table of equal images without a row."""
    columns = ["group", "table_row", "image", "label", "split", "bytes_equal", "labels", "splits"]
    return pd.DataFrame(columns=columns)


def no_pairs() -> pd.DataFrame:
    """The table of near-duplicates without a row."""
    columns = ["first", "second", "image", "other_image", "label", "other_label", "split"]
    return pd.DataFrame(columns=[*columns, "other_split", "residual", "phase", "correlation"])


def no_suspects() -> pd.DataFrame:
    """The table of suspect labels without a row."""
    columns = ["table_row", "image", "label", "suggested", "margin", "label_probability"]
    return pd.DataFrame(columns=[*columns, "suggested_probability", "split"])


def named_pairs(table: pd.DataFrame, rows: IntArray, pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of embedded images, with the table's rows, names, labels and splits."""
    if pairs.empty:
        return no_pairs()
    first, second = rows[pairs["first"].to_numpy()], rows[pairs["second"].to_numpy()]
    one, two = table.iloc[first], table.iloc[second]
    named = {
        "first": first,
        "second": second,
        "image": one["image"].to_numpy(),
        "other_image": two["image"].to_numpy(),
        "label": one["label"].to_numpy(),
        "other_label": two["label"].to_numpy(),
        "split": one["split"].to_numpy() if "split" in table else "",
        "other_split": two["split"].to_numpy() if "split" in table else "",
    }
    kept = pairs[["residual", "phase", "correlation"]].reset_index(drop=True)
    return pd.concat([pd.DataFrame(named), kept], axis=1)


def named_suspects(
    table: pd.DataFrame, rows: IntArray, found: pd.DataFrame, names: list[str]
) -> pd.DataFrame:
    """The suspects of `label_suspects`, most likely first, with the table's names."""
    ranked = found[found["suspect"]].sort_values("margin", ascending=False, kind="stable")
    if ranked.empty:
        return no_suspects()
    at = rows[ranked.index.to_numpy()]
    part = table.iloc[at]
    return pd.DataFrame(
        {
            "table_row": at,
            "image": part["image"].to_numpy(),
            "label": part["label"].to_numpy(),
            "suggested": [names[c] for c in ranked["other"]],
            "margin": ranked["margin"].to_numpy(),
            "label_probability": ranked["own"].to_numpy(),
            "suggested_probability": ranked["other_probability"].to_numpy(),
            "split": part["split"].to_numpy() if "split" in part else "",
        }
    )
