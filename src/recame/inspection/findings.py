"""What an inspection found, in sentences: ranked by what it costs to ignore, with what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from recame.data.audit import FEWEST_GROUPS, ManifestAudit
from recame.inspection.examine import Inspection
from recame.metrics.statistics import TOO_WIDE, wilson_interval

Level = Literal["bad", "warn", "note", "good"]

_RANK = {"bad": 0, "warn": 1, "note": 2, "good": 3}
#: Images whose pixels deviate less (of [0, 1]) show nothing.
FLAT = 0.01
_BROKEN_SHARE = 0.05


@dataclass(frozen=True)
class Finding:
    """One thing that is so.

    Attributes:
        key: short name; also the anchor of its pictures.
        level: `bad` makes figures wrong, `warn` costs quality, `note` is good to know, `good`.
        title: what, in a few words.
        text: what exactly.
        action: what to do; empty where nothing is.
        count: how many images, classes or groups.
    """

    key: str
    level: Level
    title: str
    text: str
    action: str = ""
    count: int = 0


def make_findings(inspection: Inspection) -> list[Finding]:
    """All findings, worst first."""
    found = [
        *_files(inspection),
        *_duplicates(inspection),
        *_labels(inspection),
        *_groups(inspection.audit),
        *_classes(inspection),
        *_products(inspection),
        *_structure(inspection),
    ]
    return sorted(found, key=lambda finding: _RANK[finding.level])


def evaluation_sizes(audit: ManifestAudit) -> pd.DataFrame:
    """What the images of each class in the test split (else val, else all) can show at best.

    Returns:
        `class`, `images` and the Wilson interval of a recall when all (`low`, `high`) or half
        (`half_low`, `half_high`) are right; `small` where the latter is wider than 0.3.
    """
    split = next((name for name in ("test", "val") if name in audit.splits), None)
    counts = audit.classes[split or "images"].to_numpy()
    low, high = wilson_interval(counts, counts)
    half_low, half_high = wilson_interval(counts / 2, counts)
    return pd.DataFrame(
        {
            "class": audit.classes["class"],
            "images": counts,
            "low": low,
            "high": high,
            "half_low": half_low,
            "half_high": half_high,
            "small": half_high - half_low > TOO_WIDE,
        }
    )


def images_text(count: int, what: str = "image") -> str:
    """A count with its noun.

    Examples:
        >>> images_text(1), images_text(1200, "pair")
        ('1 image', '1,200 pairs')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(names: list[str], most: int = 6) -> str:
    """Names in a row, the rest counted."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def _files(inspection: Inspection) -> list[Finding]:
    found = []
    broken = inspection.hygiene.broken
    if broken:
        share = len(broken) / inspection.audit.num_images
        found.append(
            Finding(
                "broken",
                "bad" if share > _BROKEN_SHARE else "warn",
                f"{images_text(len(broken), 'file')} cannot be read",
                f"{share:.1%} of the rows; the first: {broken[0].path} ({broken[0].reason}).",
                "Repair or remove them (broken.csv). Training stops above "
                f"{_BROKEN_SHARE:.0%}, unless data.max_broken_fraction says otherwise.",
                len(broken),
            )
        )
    repeated = inspection.audit.repeated
    if len(repeated):
        labels = repeated.groupby("path")["label"].nunique()
        conflicts = int((labels > 1).sum())
        found.append(
            Finding(
                "repeated",
                "bad" if conflicts else "warn",
                f"{images_text(len(repeated), 'row')} name a file more than once",
                f"{images_text(repeated['path'].nunique(), 'file')}, {conflicts:,} of them with "
                "different labels.",
                "Keep one row a file.",
                len(repeated),
            )
        )
    if len(inspection.pixels):
        flat = int((inspection.pixels["contrast"] < FLAT).sum())
        if flat:
            found.append(
                Finding(
                    "flat",
                    "warn",
                    f"{images_text(flat)} show next to nothing",
                    f"Their pixels deviate by less than {FLAT:.0%} of the range.",
                    "Check the camera's exposure there, or the bit depth (data.bit_depth).",
                    flat,
                )
            )
    if len(inspection.headers):
        kinds = inspection.headers.groupby(["height", "width"]).size()
        depths = sorted(set(inspection.headers["bits"]))
        if len(kinds) > 1 or len(depths) > 1:
            found.append(
                Finding(
                    "sizes",
                    "note",
                    "Images differ in size or bit depth",
                    f"{images_text(len(kinds), 'size')} and {' and '.join(map(str, depths))} bit "
                    f"among {len(inspection.headers):,} headers.",
                    "All are brought to one size (data.size, data.resize): look whether small "
                    "defects survive that.",
                    len(kinds),
                )
            )
    return found


def _duplicates(inspection: Inspection) -> list[Finding]:
    found = []
    equal, near = inspection.hygiene.duplicates, inspection.hygiene.near
    conflicts = equal[equal["labels"] > 1]
    if len(conflicts):
        found.append(
            Finding(
                "conflicts",
                "bad",
                f"{images_text(conflicts['group'].nunique(), 'set')} of equal images with "
                "different labels",
                f"{images_text(len(conflicts))} whose pixels are equal but whose labels are not: "
                "no model can be right on both.",
                "Decide on one label each (duplicates.csv, column labels).",
                len(conflicts),
            )
        )
    crossing = equal[equal["splits"] > 1]
    across = near[near["split"] != near["other_split"]]
    if len(crossing) or len(across):
        parts = []
        if len(crossing):
            parts.append(f"{images_text(crossing['group'].nunique(), 'set')} of equal images")
        if len(across):
            parts.append(f"{images_text(len(across), 'pair')} of near-duplicates")
        found.append(
            Finding(
                "leaks",
                "bad",
                "The same scenes stand in two splits",
                f"{' and '.join(parts)} straddle splits: what is measured on the held-out splits "
                f"will look better than it is.{_by_chance(inspection, crossing, across)}",
                "Move each set to one split, or take the held-out ones out (leaks.csv).",
                int(crossing["group"].nunique()) + len(across),
            )
        )
    inside = int(equal["group"].nunique() - crossing["group"].nunique())
    pairs = len(near) - len(across)
    if inside or pairs:
        hint = "They count as one observation: drop the copies (duplicates.csv)"
        if not inspection.audit.splits:
            hint += ", or give them a common column and set data.group_by, before splits are made"
        found.append(
            Finding(
                "duplicates",
                "note" if inspection.audit.splits else "warn",
                "Some scenes are there twice",
                f"{images_text(inside, 'set')} of equal images and {images_text(pairs, 'pair')} of "
                "near-duplicates (same place, small shift, other light or noise) within a split.",
                hint + ".",
                inside + pairs,
            )
        )
    if inspection.structure is not None and not len(equal) and not len(near):
        text = "No two images have equal pixels, and no two show the same scene."
        found.append(Finding("duplicates", "good", "No duplicates", text))
    return found


def _by_chance(inspection: Inspection, crossing: pd.DataFrame, across: pd.DataFrame) -> str:
    """How many of the leaks lie on different products, where simple patterns repeat by chance."""
    column, table = inspection.audit.product_column, inspection.table
    if inspection.audit.products is None:
        return ""
    product = table[column].astype(str).to_numpy()
    has_one = table[column].notna().to_numpy()
    rows = crossing["table_row"].to_numpy(int)
    known = crossing.assign(product=product[rows])[has_one[rows]]
    pairs = known[["group", "product"]].drop_duplicates()
    apart = int((pairs["group"].value_counts() > 1).sum())
    first, second = across["first"].to_numpy(int), across["second"].to_numpy(int)
    both = has_one[first] & has_one[second]
    apart += int((both & (product[first] != product[second])).sum())
    if not apart:
        return ""
    return f" {apart:,} of them lie on different products: simple patterns can repeat by chance."


def _labels(inspection: Inspection) -> list[Finding]:
    suspects, judged = inspection.hygiene.suspects, inspection.hygiene.judged
    if not len(suspects):
        if judged:
            text = f"None of {images_text(judged, 'label')} is strongly contradicted by the others."
            return [Finding("labels", "good", "No label stands out as wrong", text)]
        return []
    pairs = (suspects["label"] + " -> " + suspects["suggested"]).value_counts()
    top = ", ".join(f"{pair} ({count})" for pair, count in pairs.head(3).items())
    return [
        Finding(
            "labels",
            "warn",
            f"{images_text(len(suspects), 'label')} may be wrong",
            f"{len(suspects) / judged:.1%} of {judged:,} tested. Most often: {top}. A list to look "
            "at, not to apply: hard images are among them, and the first are the likeliest.",
            "Review suspects.csv from the top; stop when they turn out right.",
            len(suspects),
        )
    ]


def _groups(audit: ManifestAudit) -> list[Finding]:
    found = []
    # What the splits were drawn by: other columns may count anew within each of its values.
    whole = [g for g in audit.groups if not len(g.straddling) and g.num_groups >= FEWEST_GROUPS]
    drawn_by = whole[0].column if whole else None
    for group in audit.groups:
        if not len(group.straddling):
            found.append(
                Finding(
                    f"group-{group.column}",
                    "good",
                    f"No {group.column} is in two splits",
                    f"All {group.num_groups:,} values of {group.column!r} stay within one split.",
                )
            )
            continue
        share = len(group.straddling) / group.num_groups
        text = (
            f"{len(group.straddling):,} of {group.num_groups:,} values ({share:.0%}), "
            f"{images_text(group.num_images)}; first: {group.straddling['group'].iloc[0]} in "
            f"{group.straddling['splits'].iloc[0]}."
        )
        no_leak = group.by_nature or (drawn_by is not None and not group.named)
        if group.by_nature:
            text += " So few values are shared by all splits by nature; no matter of leaking."
        elif no_leak:
            text += f" No {drawn_by} is, so its values seem to be counted anew in each {drawn_by}."
        found.append(
            Finding(
                f"group-{group.column}",
                "note" if no_leak else "bad",
                f"{group.column} is shared between splits",
                text,
                ""
                if no_leak
                else f"Split again with --set data.group_by={group.column} and no split column: "
                "images taken together look alike, and flatter the figures.",
                len(group.straddling),
            )
        )
    return found


def _classes(inspection: Inspection) -> list[Finding]:
    audit = inspection.audit
    classes, found = audit.classes, []
    if len(classes) == 1:
        text = f"All {images_text(audit.num_images)} are {classes['class'].iloc[0]!r}."
        hint = "Add images of another class before training."
        found.append(Finding("one-class", "bad", "There is only one class", text, hint, 1))
    if not audit.splits:
        text = "The source has no splits; `recame train` would draw them, stratified by class."
        hint = "Name a column whose values belong together (data.group_by), so that none straddles."
        found.append(Finding("no-splits", "note", "No splits are given", text, hint))
    else:
        found += _missing_in_splits(audit)
    sizes = evaluation_sizes(audit)
    small = sizes[sizes["small"] & (sizes["images"] > 0)].sort_values("images")
    if len(small) and len(classes) > 1:
        split = next((name for name in ("test", "val") if name in audit.splits), "")
        row = small.iloc[0]
        n = int(row["images"])
        found.append(
            Finding(
                "small",
                "warn" if split else "note",
                f"{images_text(len(small), 'class').replace('classs', 'classes')} too small to "
                "evaluate",
                f"{row['class']}: {images_text(n, (split + ' image').strip())}; even {n} of {n} "
                f"right only shows a recall of {row['low']:.2f}-1.00, and half right "
                f"{row['half_low']:.2f}-{row['half_high']:.2f}.",
                "Collect more held-out images of "
                f"{listed(small['class'].tolist())}; about 40 give an interval of 0.3.",
                len(small),
            )
        )
    return found


def _missing_in_splits(audit: ManifestAudit) -> list[Finding]:
    classes, found = audit.classes, []
    if "train" not in audit.splits:
        text = f"The splits are {listed(list(audit.splits))}."
        hint = "Name the training rows 'train', or check data.split_column."
        found.append(Finding("no-train", "bad", "No image is in the split 'train'", text, hint))
        return found
    unseen = classes.loc[classes["train"] == 0, "class"].tolist()
    if unseen:
        found.append(
            Finding(
                "unseen",
                "bad",
                f"Training never sees {listed(unseen)}",
                "No training image of these classes, only in other splits: no model could name "
                "them, and `recame train` refuses.",
                "Add training images, or remove the rows.",
                len(unseen),
            )
        )
    for split in ("val", "test"):
        if split not in audit.splits:
            text = {
                "val": "Training takes its share of the training rows for it (data.val_fraction).",
                "test": "Nothing is left to report on.",
            }[split]
            level: Level = "note" if split == "val" else "warn"
            found.append(Finding(f"no-{split}", level, f"There is no {split} split", text))
            continue
        absent = classes.loc[classes[split] == 0, "class"].tolist()
        if absent:
            found.append(
                Finding(
                    f"absent-{split}",
                    "warn",
                    f"{split} has no image of {listed(absent)}",
                    "Nothing can be said about these classes there.",
                    f"Move or collect some for {split}.",
                    len(absent),
                )
            )
    return found


def _products(inspection: Inspection) -> list[Finding]:
    audit = inspection.audit
    if audit.products is None:
        is_there = audit.product_column in audit.columns["column"].tolist()
        what = f"Column {audit.product_column!r} is empty"
        what = what if is_there else f"There is no column {audit.product_column!r}"
        text = f"{what}, so looks cannot be told by product."
        hint = "If a column says it, name it: --set data.product_column=NAME."
        return [Finding("no-products", "note", "No product column", text, hint)]
    empty, cells = audit.num_empty_cells, audit.products.size
    if not empty:
        return []
    worst = (audit.products > 0).sum(axis=1).sort_values(kind="stable")
    return [
        Finding(
            "cells",
            "note",
            f"{empty:,} of {cells:,} class-product pairs have no image",
            f"{worst.index[0]} is known from {worst.iloc[0]} of {audit.products.shape[1]} products "
            "only.",
            "Expect misses there: products that a class was never seen on are new looks to it.",
            empty,
        )
    ]


def _structure(inspection: Inspection) -> list[Finding]:
    structure = inspection.structure
    if structure is None:
        return []
    found = []
    if len(structure.rows) < int((inspection.table["row"] >= 0).sum()) - _copies(inspection):
        found.append(
            Finding(
                "sampled",
                "note",
                f"Clusters, near-duplicates and labels: {len(structure.rows):,} images looked at",
                f"Of {inspection.audit.num_images:,}; rare classes whole, frequent ones sampled.",
            )
        )
    classes = structure.classes
    scattered = classes[classes["kind"] == "few in many"]["class"].tolist()
    dense = classes[classes["kind"] == "many in few"]["class"].tolist()
    if scattered:
        text = f"{listed(scattered)}: hardly two images of a class look alike."
        if dense:
            text += f" Against them, {listed(dense)} have many images in few dense clusters."
        found.append(
            Finding(
                "few-in-many",
                "note",
                f"{len(scattered)} classes are few in many",
                text,
                "Collect these on more boards and products first; more images of the dense "
                "clusters add little.",
                len(scattered),
            )
        )
    return found


def _copies(inspection: Inspection) -> int:
    return int(inspection.hygiene.duplicates.duplicated("group").sum())
