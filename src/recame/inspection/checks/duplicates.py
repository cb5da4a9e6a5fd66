"""Finds exact duplicates and near-duplicates, within splits and across them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from recame.contracts import IntArray
from recame.data.cache import PickedRows
from recame.data.contents import content_digests, equal_groups
from recame.data.file_part import split_part
from recame.inspection.check import Block, Check, Section, SetFinding
from recame.inspection.scenes import near_duplicates, scene_groups
from recame.names import by_number, counted

_MOST_CARDS = 8


class Duplicates(Check):
    """Images that show the same scene.

    Attributes:
        equal: exact duplicates (images with equal pixels), see `equal_images`.
        near: pairs of one scene: `first`, `second` (table rows) with images, labels and splits.
        crossing: the exact duplicates that are in two splits.
        across: the pairs that are in two splits.
        scenes: (N,) a number for each embedded image, shared by those of one scene.
    """

    place = 4
    of_images = True
    equal = pd.DataFrame(
        columns=["group", "table_row", "image", "label", "split", "bytes_equal", "labels", "splits"]
    )
    near = pd.DataFrame(
        columns=[
            *("first", "second", "image", "other_image", "label", "other_label"),
            *("split", "other_split", "residual", "phase", "correlation"),
        ]
    )
    crossing: pd.DataFrame
    across: pd.DataFrame
    scenes: IntArray

    def find(self) -> None:
        """Take the exact duplicates, and find pairs by the embedding."""
        inspection, embedded = self.inspection, self.inspection.embedded
        if embedded is not None:
            assert inspection.cache is not None
            assert inspection.spec is not None
            self.equal = inspection.equal
            rows = inspection.table["row"].to_numpy()[embedded.rows]
            images = PickedRows(inspection.cache.images, rows)
            with inspection.clock("looking for near-duplicates"):
                pairs = near_duplicates(images, inspection.spec.scale, embedded.components)
            self.scenes = scene_groups(len(rows), pairs[["first", "second"]].to_numpy(np.int64))
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
                    f"{counted(conflicts['group'].nunique(), 'set')} of exact duplicates with "
                    "different labels",
                    f"{counted(len(conflicts))} have equal pixels but different labels, so no "
                    "model can be right on both.",
                    "Give each set one label (duplicates.csv, column labels).",
                    len(conflicts),
                )
            )
        num_crossing, num_across = self.crossing["group"].nunique(), len(self.across)
        if num_crossing or num_across:
            parts = [f"{counted(num_crossing, 'set')} of exact duplicates"] * bool(num_crossing)
            parts += [f"{counted(num_across, 'pair')} of near-duplicates"] * bool(num_across)
            found.append(
                SetFinding(
                    "leaks",
                    "bad",
                    "The same scenes are in two splits",
                    f"{' and '.join(parts)} are in more than one split, so figures on the "
                    f"held-out splits will look better than they are.{self._by_chance()}",
                    "Move each set to one split, or remove the held-out copies (leaks.csv).",
                    int(num_crossing) + num_across,
                )
            )
        inside, pairs = equal["group"].nunique() - num_crossing, len(near) - num_across
        if inside or pairs:
            unless = ", or mark them in a column and set data.group_by, before splits are made"
            if splits or self._of_one_file():  # whose parts are kept together anyway
                unless = ""
            found.append(
                SetFinding(
                    "duplicates",
                    "note" if splits else "warn",
                    "Some scenes appear twice",
                    f"{counted(inside, 'set')} of exact duplicates and "
                    f"{counted(pairs, 'pair')} of near-duplicates (same place, small shift, "
                    "other light or noise) within a split.",
                    f"They count as one observation: remove the copies (duplicates.csv){unless}.",
                    int(inside) + pairs,
                )
            )
        if self.inspection.embedded is not None and not len(equal) and not len(near):
            text = "No two images have equal pixels, and no two show the same scene."
            found.append(SetFinding("duplicates", "good", "No duplicates", text))
        return found

    def _of_one_file(self) -> bool:
        """Whether all repetitions are pages or boxes of one file each."""
        file = self.inspection.table["image"].map(lambda image: split_part(image)[0]).to_numpy()
        rows = self.equal["table_row"].to_numpy(np.int64)
        shared = pd.Series(file[rows]).groupby(self.equal["group"].to_numpy()).nunique()
        first, second = (file[self.near[end].to_numpy(np.int64)] for end in ("first", "second"))
        return bool((shared == 1).all() and (first == second).all())

    def _by_chance(self) -> str:
        """How many leaks lie on different products, where simple patterns repeat by chance."""
        audit = self.inspection.audit
        if audit.products is None:
            return ""
        product = self.inspection.table[audit.product_column]
        known = product.where(product.isna(), product.astype(str)).to_numpy()
        on = pd.Series(known[self.crossing["table_row"].to_numpy(int)])
        apart = int(on.groupby(self.crossing["group"].to_numpy()).nunique().gt(1).sum())
        first, second = (known[self.across[end].to_numpy(int)] for end in ("first", "second"))
        apart += int((pd.notna(first) & pd.notna(second) & (first != second)).sum())
        told = (
            f" {apart:,} of them {by_number(apart, 'is', 'are')} of different products: simple "
            "patterns can repeat by chance."
        )
        return told if apart else ""

    def tiles(self) -> list[dict[str, str]]:
        """How many scenes leak."""
        count = self.crossing["group"].nunique() + len(self.across)
        tone, meaning = "bad" if count else "good", "scenes in two splits"
        tile = {"name": "Leaks", "value": f"{count:,}", "meaning": meaning, "tone": tone}
        return [tile] if self.inspection.audit.splits else []

    def show(self) -> list[Section]:
        """Sets of exact duplicates, and pairs."""
        thumbnail, equal, near = self.inspection.thumbnail, self.equal, self.near
        groups = []
        for _, part in list(equal.groupby("group", sort=False))[:_MOST_CARDS]:
            rows = part.to_dict("records")
            pictures = [
                thumbnail(row["table_row"], _place(row["label"], row["split"])) for row in rows[:4]
            ]
            remark = "same file content" if rows[0]["bytes_equal"] else "equal pixels"
            remark += ", different labels" * (rows[0]["labels"] > 1)
            remark += ", two splits" * (rows[0]["splits"] > 1)
            groups.append({"text": f"{counted(len(part))}: {remark}", "pictures": pictures})
        ordered = pd.concat([self.across, near.drop(self.across.index)]).head(_MOST_CARDS)
        pairs = [
            {
                "text": f"difference: {row['residual']:.1f} times their noise",
                "pictures": [
                    thumbnail(row["first"], _place(row["label"], row["split"])),
                    thumbnail(row["second"], _place(row["other_label"], row["other_split"])),
                ],
            }
            for row in ordered.to_dict("records")
        ]
        sets = (
            f"{counted(equal['group'].nunique(), 'set')}; different labels first, then two splits."
        )
        twice = f"{counted(len(near), 'pair')} of images of one scene; those in two splits first."
        blocks = [
            Block("heading", "Exact duplicates"),
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
        """Exact duplicates, pairs, and those of them that are in two splits."""
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
    """Rows whose decoded pixels are equal, of one file or of several."""
    readable = table[table["row"] >= 0]
    group = equal_groups([digests[row] for row in readable["row"]])
    found = readable[group >= 0]
    if found.empty:
        return Duplicates.equal
    rows = found.assign(
        group=group[group >= 0],
        table_row=found.index,
        split=found.get("split", ""),
        content=content_digests(found["path"].tolist()),
    )
    kinds = rows.groupby("group")[["content", "label", "split"]].transform("nunique")
    rows["bytes_equal"], rows["labels"] = kinds["content"] == 1, kinds["label"]
    rows["splits"] = kinds["split"] if "split" in found else 0
    order = ["labels", "splits", "group", "table_row"]
    ranked = rows.sort_values(order, ascending=[False, False, True, True], kind="stable")
    ranked["group"] = pd.factorize(ranked["group"])[0] + 1
    return ranked[[*Duplicates.equal.columns]].reset_index(drop=True)


def named_pairs(table: pd.DataFrame, rows: IntArray, pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of embedded images, with the table's rows, names, labels and splits."""
    named = pairs.assign(
        **{end: rows[pairs[end].to_numpy(np.int64)] for end in ("first", "second")}
    )
    for end, prefix in (("first", ""), ("second", "other_")):
        members = table.iloc[named[end]]
        for column in ("image", "label", "split"):
            named[prefix + column] = members[column].to_numpy() if column in table else ""
    return named[[*Duplicates.near.columns]]
