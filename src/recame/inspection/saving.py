"""An inspection's files: JSON, the page, and tables of what one wants to act upon."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from recame.files import records, write_together
from recame.inspection.examine import INSPECTION_SCHEMA, Inspection
from recame.inspection.findings import evaluation_sizes, make_findings
from recame.inspection.inspection_page import inspection_page

_MOST_CELLS = 20_000
_TABLES = ("suspects", "duplicates", "near_duplicates", "leaks", "broken", "clusters")


def inspection_dict(inspection: Inspection) -> dict[str, Any]:
    """A JSON-ready dictionary with its schema version; tables are lists of records."""
    audit, structure, hygiene = inspection.audit, inspection.structure, inspection.hygiene
    products = audit.products
    if products is not None and products.size > _MOST_CELLS:
        products = products.iloc[:200, :100]  # `all_names`, `all_classes` say of how many
    document: dict[str, Any] = {
        "schema": INSPECTION_SCHEMA,
        "recame": version("recame"),
        "source": inspection.source,
        "images": audit.num_images,
        "imbalance_ratio": audit.imbalance_ratio,
        "splits": audit.splits,
        "classes": records(audit.classes),
        "products": None
        if products is None
        else {
            "column": audit.product_column,
            "names": [str(name) for name in products.columns],
            "classes": [str(name) for name in products.index],
            "counts": products.to_numpy().tolist(),
            "empty_cells": audit.num_empty_cells,
            "all_names": audit.products.shape[1] if audit.products is not None else 0,
            "all_classes": audit.products.shape[0] if audit.products is not None else 0,
        },
        "columns": records(audit.columns),
        "groups": [
            {
                "column": group.column,
                "values": group.num_groups,
                "straddling": len(group.straddling),
                "images": group.num_images,
                "first": records(group.straddling.head(20)),
            }
            for group in audit.groups
        ],
        "evaluation": records(evaluation_sizes(audit)),
        "findings": [vars(finding) for finding in make_findings(inspection)],
        "hygiene": {
            "duplicate_sets": int(hygiene.duplicates["group"].nunique()),
            "duplicate_images": len(hygiene.duplicates),
            "near_duplicate_pairs": len(hygiene.near),
            "leaking_pairs": int((hygiene.near["split"] != hygiene.near["other_split"]).sum()),
            "suspect_labels": len(hygiene.suspects),
            "labels_tested": hygiene.judged,
            "broken": [vars(item) for item in hygiene.broken[:1000]],
            "num_broken": len(hygiene.broken),
        },
        "structure": None,
        "seconds": inspection.seconds,
    }
    if structure is not None:
        assert inspection.spec is not None
        document["preprocess"] = inspection.spec.to_dict()
        levels = [0.0, 0.05, 0.5, 0.95, 1.0]
        document["pixels"] = {
            name: {
                f"q{level:g}": float(inspection.pixels[name].quantile(level)) for level in levels
            }
            for name in ("brightness", "contrast")
        }
        document["structure"] = {
            "embedded_images": len(structure.rows),
            "embedded_by": structure.source,
            "dense_looks": structure.num_looks,
            "dense_share": structure.dense_share,
            "counted_on": structure.basis,
            "classes": records(structure.classes),
            "agreement": records(structure.agreement),
        }
    return document


def save_inspection(inspection: Inspection, out: Path) -> Path:
    """Write `inspection.json`, `inspection.html` and the tables, all of them or none.

    `suspects.csv`, `duplicates.csv`, `near_duplicates.csv`, `leaks.csv`, `broken.csv` (only those
    that have rows) and `clusters.csv` (every embedded image with its cluster). An earlier
    inspection's files there are replaced.

    Args:
        inspection: what to write.
        out: folder, made when missing.

    Returns:
        The page.

    Raises:
        DataError: the folder cannot be written.
    """
    advice = "Free some space, or choose another folder with --out."
    with write_together(out, advice=advice) as partial:
        page = inspection_page(inspection)
        (partial / "inspection.html").write_text(page, encoding="utf-8")
        text = json.dumps(inspection_dict(inspection), indent=1, ensure_ascii=False, default=str)
        (partial / "inspection.json").write_text(text + "\n", encoding="utf-8")
        for name, table in _tables(inspection).items():
            table.to_csv(partial / f"{name}.csv", index=False)
        for name in _TABLES:
            if not (partial / f"{name}.csv").exists():
                (out / f"{name}.csv").unlink(missing_ok=True)
    return out / "inspection.html"


def _tables(inspection: Inspection) -> dict[str, pd.DataFrame]:
    hygiene, structure = inspection.hygiene, inspection.structure
    equal, near = hygiene.duplicates, hygiene.near
    across = near[near["split"] != near["other_split"]]
    crossing = equal[equal["splits"] > 1]
    leaks = pd.concat(
        [
            crossing.assign(kind="equal", set=crossing["group"])[["kind", "set", "image", "split"]],
            *(
                pd.DataFrame(
                    {
                        "kind": "near",
                        "set": range(1, len(across) + 1),
                        "image": across[image],
                        "split": across[split],
                    }
                )
                for image, split in (("image", "split"), ("other_image", "other_split"))
            ),
        ]
    ).sort_values(["kind", "set"], kind="stable")
    tables = {
        "suspects": hygiene.suspects.drop(columns="table_row"),
        "duplicates": equal.drop(columns="table_row"),
        "near_duplicates": near.drop(columns=["first", "second"]),
        "leaks": leaks,
        "broken": pd.DataFrame([vars(item) for item in hygiene.broken]),
    }
    if structure is not None:
        part = inspection.table.iloc[structure.rows]
        kept = [
            c for c in ("image", "label", "split", inspection.audit.product_column) if c in part
        ]
        tables["clusters"] = part[kept].assign(cluster=structure.cluster + 1)
    return {name: table for name, table in tables.items() if len(table)}
