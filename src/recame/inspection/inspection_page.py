"""An inspection as one HTML page: figures, contact sheets, pictures of every finding."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recame.contracts import IntArray
from recame.inspection.examine import Inspection, Structure
from recame.inspection.findings import Finding, evaluation_sizes, images_text, listed, make_findings
from recame.inspection.inspection_figures import (
    MOST_ROWS,
    clusters_figure,
    counts_figure,
    map_figure,
    mixing_figure,
    spread_figure,
)
from recame.pages.render import Picture, figure_picture, image_picture, render_page

_MOST_COLUMNS = 24
_MOST_SHEETS, _A_SHEET = 20, 12
_MOST_PAIRS, _MOST_SUSPECTS, _MOST_LOOKALIKES = 8, 24, 12
_THUMB = 80


def inspection_page(inspection: Inspection) -> str:
    """The whole page as an HTML text."""
    findings = make_findings(inspection)
    structure = inspection.structure
    contents = [("findings", "Findings"), ("classes", "Classes")]
    if inspection.audit.products is not None:
        contents.append(("products", "Products"))
    if structure is not None:
        contents += [("clusters", "Clusters"), ("map", "Map"), ("sheets", "Contact sheets")]
        contents += [("lookalikes", "Look-alikes"), ("hygiene", "Hygiene")]
        contents += [("images", "Images")]
    contents.append(("columns", "Columns"))
    return render_page(
        "recame.inspection",
        "inspection.html.j2",
        version=version("recame"),
        title=_name(inspection.source),
        eyebrow="Inspection of a data set, before training",
        subtitle=inspection.source,
        footer=_footer(inspection),
        contents=contents,
        lead=lead_sentences(inspection, findings),
        tiles=_tiles(inspection, findings),
        findings=findings,
        counts=figure_picture(
            counts_figure(inspection.audit.classes), "Images of each class on a log scale"
        ),
        hidden_classes=max(0, len(inspection.audit.classes) - MOST_ROWS),
        sizes=_size_rows(inspection),
        split_columns=list(inspection.audit.splits),
        products=_product_cells(inspection),
        structure=None if structure is None else _structure_content(inspection, structure),
        hygiene=None if structure is None else _hygiene_content(inspection),
        files=None if structure is None else _files_content(inspection),
        columns=inspection.audit.columns.to_dict("records"),
    )


def lead_sentences(inspection: Inspection, findings: list[Finding]) -> str:
    """The judgement: what this set is, and what stands in the way of training on it."""
    audit = inspection.audit
    text = f"{images_text(audit.num_images)} of {images_text(len(audit.classes), 'class')}"
    text = text.replace("classs", "classes")
    if len(audit.classes) > 1:
        first, last = audit.classes.iloc[0], audit.classes.iloc[-1]
        text += (
            f", from {first['images']:,} ({first['class']}) to {last['images']:,} ({last['class']})"
        )
    bad = [finding for finding in findings if finding.level == "bad"]
    warn = [finding for finding in findings if finding.level == "warn"]
    if bad:
        titles = "; ".join(_lower(finding.title) for finding in bad[:3])
        text += f". Before any figure from it is believed: {titles}."
    elif warn:
        text += f". Ready to train on; worth a look first: {_lower(warn[0].title)}."
    else:
        text += ". Nothing found that stands in the way of training."
    structure = inspection.structure
    if structure is not None:
        kinds = structure.classes
        scattered = kinds[kinds["kind"] == "few in many"]["class"].tolist()
        if scattered:
            text += f" Few in many, and so the hardest to learn: {listed(scattered, 5)}."
    return text


def _lower(title: str) -> str:
    first = title.split(" ", 1)[0]
    return title[0].lower() + title[1:] if first.istitle() and first != "I" else title


def _name(source: str) -> str:
    path = Path(source)
    stem = path.stem if path.suffix.lower() in {".csv", ".parquet", ".pq"} else path.name
    name = path.parent.name if stem.lower() in {"manifest", "data", "index"} else stem
    return name or source


def _footer(inspection: Inspection) -> str:
    spent = ", ".join(f"{k} {v:.1f} s" for k, v in inspection.seconds.items() if v >= 0.1)
    return f"recame {version('recame')}. Time: {spent or 'under a second'}."


def _tiles(inspection: Inspection, findings: list[Finding]) -> list[dict[str, str]]:
    audit, structure = inspection.audit, inspection.structure
    tiles = [
        {"name": "Images", "value": f"{audit.num_images:,}", "meaning": _split_text(audit.splits)},
        {
            "name": "Imbalance",
            "value": f"{audit.imbalance_ratio:,.0f} : 1",
            "meaning": f"most over least frequent of {len(audit.classes):,} classes",
        },
    ]
    if "train" in audit.splits:
        present = int((audit.classes["train"] > 0).sum())
        tiles[1]["meaning"] = f"in train, over {present:,} classes with images"
    if audit.products is not None:
        empty = audit.num_empty_cells / audit.products.size
        tiles.append(
            {
                "name": "Products",
                "value": f"{audit.products.shape[1]:,}",
                "meaning": f"{empty:.0%} of class-product pairs have no image"
                if empty
                else "every class is known from every product",
            }
        )
    if structure is not None:
        kinds = structure.classes["kind"].value_counts()
        tiles.append(
            {
                "name": "Few in many",
                "value": f"{kinds.get('few in many', 0)}",
                "meaning": f"classes; {kinds.get('many in few', 0)} are many in few",
            }
        )
        suspects = len(inspection.hygiene.suspects)
        tiles.append(
            {
                "name": "Suspect labels",
                "value": f"{suspects:,}",
                "meaning": f"of {inspection.hygiene.judged:,} tested",
                "tone": "warn" if suspects else "good",
            }
        )
        leaks = next((f for f in findings if f.key == "leaks"), None)
        if audit.splits:
            tiles.append(
                {
                    "name": "Leaks",
                    "value": f"{leaks.count if leaks else 0:,}",
                    "meaning": "scenes that stand in two splits",
                    "tone": "bad" if leaks else "good",
                }
            )
    return tiles


def _split_text(splits: dict[str, int]) -> str:
    return ", ".join(f"{n} {c:,}" for n, c in list(splits.items())[:4]) or "no splits given"


def _size_rows(inspection: Inspection) -> list[dict[str, Any]]:
    table = inspection.audit.classes.merge(
        evaluation_sizes(inspection.audit).rename(columns={"images": "held_out"}), on="class"
    )
    return table.head(MOST_ROWS).to_dict("records")  # type: ignore[return-value]


def _product_cells(inspection: Inspection) -> dict[str, Any] | None:
    products = inspection.audit.products
    if products is None:
        return None
    shown = products.iloc[:MOST_ROWS, :_MOST_COLUMNS]
    top = np.log1p(max(int(shown.to_numpy().max()), 1))
    rows = [
        {
            "name": name,
            "cells": [
                {"count": int(count), "tone": round(float(np.log1p(count) / top), 2)}
                for count in counts
            ],
        }
        for name, counts in zip(shown.index, shown.to_numpy(), strict=True)
    ]
    return {
        "heads": [str(head) for head in shown.columns],
        "rows": rows,
        "empty": inspection.audit.num_empty_cells,
        "pairs": products.size,
        "hidden_rows": len(products) - len(shown),
        "hidden_columns": products.shape[1] - shown.shape[1],
    }


def _structure_content(inspection: Inspection, structure: Structure) -> dict[str, Any]:
    names = inspection.audit.classes["class"].tolist()
    agreement = [
        (row["column"], f"{row['ami']:.2f}")
        for row in structure.agreement.to_dict("records")
        if row["ami"] is not None and not pd.isna(row["ami"])
    ]
    columns = ["label", inspection.audit.product_column, "split"]
    part = inspection.table.iloc[structure.rows[structure.map_rows]]
    shown = [c for c in columns if c in part and len(part[c].unique()) > 1] or ["label"]
    title = {"label": "class"}
    maps = [
        (
            title.get(column, column),
            figure_picture(
                map_figure(structure, part[column]),
                f"Map of the images coloured by {title.get(column, column)}",
                vector=False,
                dpi=130,
            ),
        )
        for column in shown
    ]
    return {
        "classes": [_class_row(r) for r in structure.classes.head(MOST_ROWS).to_dict("records")],
        "figure": figure_picture(
            clusters_figure(structure.classes), "The clusters of each class, as shares"
        ),
        "mixing": figure_picture(
            mixing_figure(names, structure.mixing), "Classes of the nearest neighbours"
        )
        if len(names) > 1
        else None,
        "agreement": agreement,
        "maps": maps,
        "mapped": len(structure.map_rows),
        "sheets": _sheets(inspection, structure),
        "lookalikes": _lookalikes(inspection, structure),
        "source": structure.source,
        "num_looks": structure.num_looks,
        "dense_share": structure.dense_share,
        "basis": structure.basis,
    }


def _class_row(row: dict[Any, Any]) -> list[str]:
    def two(value: float | None) -> str:
        return "-" if value is None or pd.isna(value) else f"{value:.2f}"

    known = row["images"] > 0
    return [
        str(row["class"]),
        f"{row['images']:,}",
        f"{row['clusters']:,}" if known else "-",
        f"{row['effective']:.1f}" if known else "-",
        f"{row['images_per_cluster']:,.1f}" if known else "-",
        two(row["singletons"]),
        two(row["diversity"]),
        two(row["similarity"]),
        str(row["kind"]),
    ]


def thumbnail(inspection: Inspection, table_row: int, caption: str = "") -> Picture:
    """An image of the set, at most 80 pixels wide."""
    import cv2

    pixels = inspection.image(table_row)
    assert inspection.spec is not None
    height, width = pixels.shape[:2]
    if max(height, width) > _THUMB:
        ratio = _THUMB / max(height, width)
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    name = str(inspection.table["image"].iloc[table_row])
    return image_picture(np.asarray(pixels), name, caption, scale=inspection.spec.scale)


def _sheets(inspection: Inspection, structure: Structure) -> list[dict[str, Any]]:
    """For each class one image of each of its largest clusters: the one nearest to the centre."""
    names = inspection.audit.classes["class"].tolist()
    sheets = []
    for c in range(min(len(names), _MOST_SHEETS)):
        own = np.flatnonzero(structure.target == c)
        if not len(own):
            continue
        clusters, sizes = np.unique(structure.cluster[own], return_counts=True)
        pictures = []
        for cluster, size in list(zip(clusters, sizes, strict=True))[:_A_SHEET]:
            member = own[structure.cluster[own] == cluster]
            row = int(structure.rows[member[_central(structure, member)]])
            pictures.append(thumbnail(inspection, row, images_text(int(size))))
        remark = f"{len(clusters):,} clusters" if len(clusters) != 1 else "1 cluster"
        if len(clusters) > _A_SHEET:
            remark += f", the largest {_A_SHEET} shown"
        sheets.append({"name": names[c], "remark": remark, "pictures": pictures})
    return sheets


def _central(structure: Structure, member: IntArray) -> int:
    """Position within the members of the one that is most often a neighbour of the others."""
    near = structure.neighbours[member].ravel()
    votes = np.bincount(near, minlength=len(structure.rows))[member]
    return int(votes.argmax())


def _lookalikes(inspection: Inspection, structure: Structure) -> list[dict[str, Any]]:
    """Rare classes first: an image of each whose nearest neighbour is of another class."""
    names = inspection.audit.classes["class"].tolist()
    if not structure.neighbours.shape[1] or len(names) < 2:
        return []
    nearest = structure.neighbours[:, 0]
    differs = np.flatnonzero(structure.target != structure.target[nearest])
    cards: list[dict[str, Any]] = []
    for c in range(len(names) - 1, -1, -1):
        own = differs[structure.target[differs] == c]
        if not len(own) or len(cards) >= _MOST_LOOKALIKES:
            continue
        others = structure.target[nearest[own]]
        usual = int(np.bincount(others).argmax())
        first = int(own[others == usual][0])
        rows = structure.rows[[first, int(nearest[first])]]
        total = int((structure.target == c).sum())
        cards.append(
            {
                "text": f"{images_text(len(own))} of {total:,} {names[c]} are most like one of "
                f"another class, {int((others == usual).sum()):,} like {names[usual]}.",
                "pictures": [
                    thumbnail(inspection, int(rows[0]), names[c]),
                    thumbnail(inspection, int(rows[1]), names[usual]),
                ],
            }
        )
    return cards


def _hygiene_content(inspection: Inspection) -> dict[str, Any]:
    equal, near = inspection.hygiene.duplicates, inspection.hygiene.near
    suspects = inspection.hygiene.suspects.head(_MOST_SUSPECTS)
    groups = []
    for _, part in list(equal.groupby("group", sort=False))[:_MOST_PAIRS]:
        pictures = [
            thumbnail(inspection, int(row), _place(label, split))
            for row, label, split in part[["table_row", "label", "split"]]
            .head(4)
            .itertuples(index=False)
        ]
        remark = "same file content" if bool(part["bytes_equal"].iloc[0]) else "equal pixels"
        if part["labels"].iloc[0] > 1:
            remark += ", different labels"
        if part["splits"].iloc[0] > 1:
            remark += ", two splits"
        groups.append({"text": f"{images_text(len(part))}: {remark}", "pictures": pictures})
    crossing = near["split"] != near["other_split"]
    ordered = pd.concat([near[crossing], near[~crossing]]).head(_MOST_PAIRS)
    pairs = [
        {
            "text": f"differ by {row['residual']:.1f} times their noise",
            "pictures": [
                thumbnail(inspection, row["first"], _place(row["label"], row["split"])),
                thumbnail(
                    inspection, row["second"], _place(row["other_label"], row["other_split"])
                ),
            ],
        }
        for row in ordered.to_dict("records")
    ]
    wrong = [
        thumbnail(
            inspection,
            row["table_row"],
            f"labelled {row['label']}, rather {row['suggested']} "
            f"({row['suggested_probability']:.2f})",
        )
        for row in suspects.to_dict("records")
    ]
    return {
        "groups": groups,
        "num_groups": int(equal["group"].nunique()),
        "pairs": pairs,
        "num_pairs": len(near),
        "suspects": wrong,
        "num_suspects": len(inspection.hygiene.suspects),
        "broken": [(b.path, b.reason) for b in inspection.hygiene.broken[:20]],
        "num_broken": len(inspection.hygiene.broken),
    }


def _place(label: object, split: object) -> str:
    return f"{label} · {split}" if split else str(label)


def _files_content(inspection: Inspection) -> dict[str, Any]:
    headers, spec = inspection.headers, inspection.spec
    assert spec is not None
    columns = ["width", "height", "channels", "bits", "format"]
    kinds = headers.groupby(columns).size().sort_values(ascending=False).head(12)
    rows = [
        [
            f"{kind['width']} x {kind['height']}",
            "grey" if kind["channels"] == 1 else "colour",
            f"{kind['bits']} bit",
            str(kind["format"]),
            f"{kind['files']:,}",
        ]
        for kind in kinds.rename("files").reset_index().to_dict("records")
    ]
    return {
        "kinds": rows,
        "sampled": len(headers),
        "looked_at": f"{spec.width} x {spec.height}",
        "spread": figure_picture(
            spread_figure(inspection.pixels), "Histograms of brightness and contrast"
        ),
    }
