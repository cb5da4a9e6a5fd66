"""Scenes that are there twice: equal images and near-duplicates, within and across splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from recame.contracts import IntArray
from recame.data.cache import PickedRows
from recame.data.contents import content_digests, equal_groups
from recame.inspection.check import Block, Check, Section, SetFinding, images_text
from recame.inspection.scenes import near_duplicates, scene_groups

_MOST_CARDS = 8


class Duplicates(Check):
    """The same scene twice.

    Attributes:
        equal: images whose pixels are equal, see `equal_images`.
        near: pairs of one scene: `first`, `second` (table rows) with images, labels and splits.
        crossing: the equal images that stand in two splits.
        across: the pairs that do.
        scenes: (N,) a number for each embedded image, shared by those of one scene.
    """

    place = 4
    of_images = True
    equal: pd.DataFrame
    near: pd.DataFrame
    crossing: pd.DataFrame
    across: pd.DataFrame
    scenes: IntArray

    def find(self) -> None:
        """Equal pixels are known; the embedding proposes the pairs."""
        inspection = self.inspection
        embedded = inspection.embedded
        self.equal, self.near = no_duplicates(), no_pairs()
        if embedded is not None:
            assert inspection.cache is not None
            assert inspection.spec is not None
            self.equal = inspection.equal
            rows = inspection.table["row"].to_numpy()[embedded.rows]
            images = PickedRows(inspection.cache.images, rows)
            with inspection.clock("looking for near-duplicates"):
                pairs = near_duplicates(images, inspection.spec.scale, embedded.components)
            ends = pairs[["first", "second"]].to_numpy(np.int64)
            self.scenes = scene_groups(len(rows), ends)
            self.near = named_pairs(inspection.table, embedded.rows, pairs)
        self.crossing = self.equal[self.equal["splits"] > 1]
        self.across = self.near[self.near["split"] != self.near["other_split"]]

    def say(self) -> list[SetFinding]:
        """Conflicting labels, leaks, repetitions."""
        equal, near, splits = self.equal, self.near, self.inspection.audit.splits
        found = []
        conflicts = equal[equal["labels"] > 1]
        if len(conflicts):
            found.append(
                SetFinding(
                    "conflicts",
                    "bad",
                    f"{images_text(conflicts['group'].nunique(), 'set')} of equal images with "
                    "different labels",
                    f"{images_text(len(conflicts))} whose pixels are equal but whose labels are "
                    "not: no model can be right on both.",
                    "Decide on one label each (duplicates.csv, column labels).",
                    len(conflicts),
                )
            )
        num_crossing, num_across = self.crossing["group"].nunique(), len(self.across)
        if num_crossing or num_across:
            parts = [f"{images_text(num_crossing, 'set')} of equal images"] * bool(num_crossing)
            parts += [f"{images_text(num_across, 'pair')} of near-duplicates"] * bool(num_across)
            found.append(
                SetFinding(
                    "leaks",
                    "bad",
                    "The same scenes stand in two splits",
                    f"{' and '.join(parts)} straddle splits: what is measured on the held-out "
                    f"splits will look better than it is.{self._by_chance()}",
                    "Move each set to one split, or take the held-out ones out (leaks.csv).",
                    int(num_crossing) + num_across,
                )
            )
        inside = equal["group"].nunique() - num_crossing
        pairs = len(near) - num_across
        if inside or pairs:
            hint = "They count as one observation: drop the copies (duplicates.csv)"
            if not splits:
                hint += (
                    ", or give them a common column and set data.group_by, before splits are made"
                )
            found.append(
                SetFinding(
                    "duplicates",
                    "note" if splits else "warn",
                    "Some scenes are there twice",
                    f"{images_text(inside, 'set')} of equal images and "
                    f"{images_text(pairs, 'pair')} of near-duplicates (same place, small shift, "
                    "other light or noise) within a split.",
                    hint + ".",
                    int(inside) + pairs,
                )
            )
        if self.inspection.embedded is not None and not len(equal) and not len(near):
            text = "No two images have equal pixels, and no two show the same scene."
            found.append(SetFinding("duplicates", "good", "No duplicates", text))
        return found

    def _by_chance(self) -> str:
        """How many leaks lie on different products, where simple patterns repeat by chance."""
        audit, table = self.inspection.audit, self.inspection.table
        if audit.products is None:
            return ""
        product = table[audit.product_column].astype(str).to_numpy()
        has_one = table[audit.product_column].notna().to_numpy()
        rows = self.crossing["table_row"].to_numpy(int)
        known = self.crossing.assign(product=product[rows])[has_one[rows]]
        pairs = known[["group", "product"]].drop_duplicates()
        apart = int((pairs["group"].value_counts() > 1).sum())
        first, second = (self.across[end].to_numpy(int) for end in ("first", "second"))
        both = has_one[first] & has_one[second]
        apart += int((both & (product[first] != product[second])).sum())
        if not apart:
            return ""
        return (
            f" {apart:,} of them lie on different products: simple patterns can repeat by chance."
        )

    def tiles(self) -> list[dict[str, str]]:
        """How many scenes leak."""
        if not self.inspection.audit.splits:
            return []
        count = self.crossing["group"].nunique() + len(self.across)
        tone, meaning = "bad" if count else "good", "scenes that stand in two splits"
        return [{"name": "Leaks", "value": f"{count:,}", "meaning": meaning, "tone": tone}]

    def show(self) -> list[Section]:
        """Sets of equal images, and pairs."""
        thumbnail, equal, near = self.inspection.thumbnail, self.equal, self.near
        groups = []
        for _, part in list(equal.groupby("group", sort=False))[:_MOST_CARDS]:
            pictures = [
                thumbnail(int(row), _place(label, split))
                for row, label, split in part[["table_row", "label", "split"]]
                .head(4)
                .itertuples(index=False)
            ]
            remark = "same file content" if bool(part["bytes_equal"].iloc[0]) else "equal pixels"
            remark += ", different labels" * int(part["labels"].iloc[0] > 1)
            remark += ", two splits" * int(part["splits"].iloc[0] > 1)
            groups.append({"text": f"{images_text(len(part))}: {remark}", "pictures": pictures})
        ordered = pd.concat([self.across, near.drop(self.across.index)]).head(_MOST_CARDS)
        pairs = [
            {
                "text": f"differ by {row['residual']:.1f} times their noise",
                "pictures": [
                    thumbnail(row["first"], _place(row["label"], row["split"])),
                    thumbnail(row["second"], _place(row["other_label"], row["other_split"])),
                ],
            }
            for row in ordered.to_dict("records")
        ]
        sets = f"{equal['group'].nunique():,} sets; different labels first, then two splits."
        twice = f"{len(near):,} pairs that show one scene twice; those in two splits first."
        blocks = [
            Block("heading", "Equal images"),
            *_cards(f"{sets} All in duplicates.csv.", groups),
            Block("heading", "Near-duplicates"),
            *_cards(f"{twice} All in near_duplicates.csv.", pairs),
        ]
        return [Section("hygiene", "Hygiene", blocks)]

    def facts(self) -> dict[str, Any]:
        """How many there are."""
        return {
            "hygiene": {
                "duplicate_sets": int(self.equal["group"].nunique()),
                "duplicate_images": len(self.equal),
                "near_duplicate_pairs": len(self.near),
                "leaking_pairs": len(self.across),
            }
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Equal images, pairs, and what of them stands in two splits."""
        kept = ["kind", "set", "image", "split"]
        crossing = self.crossing.assign(kind="equal", set=self.crossing["group"])
        across = self.across.assign(kind="near", set=range(1, len(self.across) + 1))
        others = across.assign(image=across["other_image"], split=across["other_split"])
        leaks = pd.concat([part[kept] for part in (crossing, across, others)])
        return {
            "duplicates": self.equal.drop(columns="table_row"),
            "near_duplicates": self.near.drop(columns=["first", "second"]),
            "leaks": leaks.sort_values(["kind", "set"], kind="stable"),
        }


def _cards(note: str, cards: list[dict[str, Any]]) -> list[Block]:
    return [Block("note", note), Block("cards", cards)] if cards else [Block("text", "None.")]


def _place(label: object, split: object) -> str:
    return f"{label} · {split}" if split else str(label)


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
