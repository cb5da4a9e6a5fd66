"""Prints an inspection on a terminal: headline, classes, findings with what to do."""

from __future__ import annotations

import math

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from recame.inspection.check import Inspection, two_digits
from recame.inspection.checks.structure import Structure
from recame.names import counted, one_line
from recame.terminal_table import Cell, Column, fitted_table

_MOST_CLASSES = 30
_BAR = 16
_KINDS = {
    "many in few": "many images in few appearances",
    "few in many": "few images scattered over many appearances",
}
_SIGNS = {
    "bad": ("!! ", "bold red"),
    "warn": ("!  ", "yellow"),
    "note": ("i  ", "blue"),
    "good": ("ok ", "green"),
}


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print the summary, at most 100 columns wide.

    Args:
        inspection: what to print.
        console: where; its encoding decides whether bars are drawn in ASCII.
    """
    width = min(console.width, 100)
    audit = inspection.audit
    facts = [counted(audit.num_images), counted(len(audit.classes), "class")]
    if len(audit.classes) > 1:
        where = " in train" if "train" in audit.splits else ""
        facts.append(f"imbalance {audit.imbalance_ratio:,.0f} : 1{where}")
    if audit.products is not None:
        facts.append(counted(audit.products.shape[1], "product"))
    if audit.splits:
        facts.append(", ".join(f"{name} {count:,}" for name, count in audit.splits.items()))
    console.print(Text(f"\n{one_line(str(inspection.source))}", "bold"), width=width)
    console.print(Text(f"{' · '.join(facts)}\n", "dim"), width=width)
    console.print(_class_table(inspection, console, width), width=width)
    if inspection.embedded is not None:
        structure = inspection[Structure]
        told = (
            f"Clusters (effective number) are counted on {inspection.embedded.basis}; "
            f"{structure.dense_share:.0%} of the images lie in {structure.num_looks} dense "
            "appearance clusters."
        )
        if agreement := ", ".join(f"{name} {ami}" for name, ami in structure.told_agreement()[:4]):
            told += f" Agreement of clusters (AMI) with {agreement}."
        for kind, meaning in _KINDS.items():
            if (structure.classes["kind"] == kind).any():
                told += f" {kind.capitalize()}: {meaning}."
        console.print(Text(f"{told}\n", "dim"), width=width)
    console.print(Text("Findings", "bold"), width=width)
    for finding in inspection.findings():
        sign, style = _SIGNS[finding.level]
        line = Text.assemble((sign, style), (finding.title, "bold"))
        console.print(line, width=width, highlight=False)
        if finding.level != "good":
            action = f" {finding.action}" if finding.action else ""
            text = Text.assemble(finding.text, (action, "dim"))
            console.print(Padding(text, (0, 0, 0, 3), expand=False), width=width, highlight=False)


def _class_table(inspection: Inspection, console: Console, width: int) -> RenderableType:
    audit, decoded = inspection.audit, inspection.embedded is not None
    plain = not (console.encoding or "utf-8").lower().startswith("utf")
    splits = [name for name in audit.splits if name == "train" or not decoded][:3]
    columns = [
        Column("class", figures=False, least=12, most=24),
        Column("images"),
        *(Column(name, expendable=0 if decoded else 2) for name in splits),
    ]
    if decoded:
        columns += [Column("clusters"), Column("each")]
        columns += [Column("diversity", expendable=3), Column("similarity", expendable=4)]
        columns.append(Column("kind", figures=False, least=11, style="dim", expendable=1))
    else:
        columns.append(Column("log scale", figures=False, least=_BAR, expendable=3))
    most, rows = audit.classes["images"].max(), []
    for position, row in enumerate(audit.classes.head(_MOST_CLASSES).to_dict("records")):
        cells: list[Cell] = [one_line(str(row["class"]))]
        cells += [f"{row[name]:,}" for name in ("images", *splits)]
        if decoded:
            own = inspection[Structure].classes.iloc[position]
            numbers = own[["effective", "images_per_cluster"]]
            cells += [f"{value:,.1f}" if own["images"] else "-" for value in numbers]
            cells += [two_digits(own["diversity"]), two_digits(own["similarity"]), str(own["kind"])]
        else:
            length = max(1, round(_BAR * math.log1p(row["images"]) / math.log1p(most)))
            cells.append(Text(("#" if plain else "█") * length, style="blue"))
        rows.append(cells)
    caption = ""
    if len(audit.classes) > _MOST_CLASSES:
        rest = audit.classes["images"].iloc[_MOST_CLASSES:]
        more = counted(len(rest), "more class")
        caption = f"and {more} of {rest.min():,} to {rest.max():,} images"
    return fitted_table(columns, rows, width, caption=caption)
