"""Finds images that were taken together, such as those of one board, but are in two splits."""

from __future__ import annotations

from typing import Any

from recame.data.audit import FEWEST_GROUPS, GroupAudit
from recame.inspection.check import Block, Check, Section, SetFinding
from recame.names import counted


class Groups(Check):
    """Whether a column's values stay within one split each."""

    place = 8

    def say(self) -> list[SetFinding]:
        """One finding for each column that groups images."""
        groups = self.inspection.audit.groups
        # The splits were drawn by this column; other columns may restart their numbers within it.
        whole = [g for g in groups if not len(g.straddling) and g.num_groups >= FEWEST_GROUPS]
        drawn_by = whole[0].column if whole else None
        return [
            _straddles(group, drawn_by)
            if len(group.straddling)
            else SetFinding(
                f"group-{group.column}",
                "good",
                f"No {group.column} is in two splits",
                f"All {group.num_groups:,} values of {group.column!r} stay within one split. If "
                "its images belong together, name it in training, so that limits count it too: "
                f"--set data.group_by={group.column}",
            )
            for group in groups
        ]

    def show(self) -> list[Section]:
        """The manifest's columns."""
        columns = [("column", "left"), ("values", "right"), ("missing", "right")]
        rows = [
            (row["column"], f"{row['values']:,}", f"{row['missing']:,}", row["example"])
            for row in self.inspection.audit.columns.to_dict("records")
        ]
        table = Block("table", ([*columns, ("example", "left")], rows))
        return [Section("columns", "Columns of the manifest", [table], "Columns")]

    def facts(self) -> dict[str, Any]:
        """The columns, and how many values straddle splits."""
        groups = [
            {
                "column": group.column,
                "values": group.num_groups,
                "straddling": len(group.straddling),
                "images": group.num_images,
                "first": group.straddling.head(20),
            }
            for group in self.inspection.audit.groups
        ]
        return {"columns": self.inspection.audit.columns, "groups": groups}


def _straddles(group: GroupAudit, drawn_by: str | None) -> SetFinding:
    share = len(group.straddling) / group.num_groups
    text = (
        f"{len(group.straddling):,} of {group.num_groups:,} values ({share:.0%}), "
        f"{counted(group.num_images)}; first: {group.straddling['group'].iloc[0]} in "
        f"{group.straddling['splits'].iloc[0]}."
    )
    no_leak = group.by_nature or (drawn_by is not None and not group.named)
    if group.by_nature:
        text += " So few values are expected in every split; this is not a leak."
    elif no_leak:
        text += (
            f" But no {drawn_by} is in two splits, so the values of {group.column} seem to start "
            f"again in each {drawn_by}."
        )
    return SetFinding(
        f"group-{group.column}",
        "note" if no_leak else "bad",
        f"{group.column} is shared between splits",
        text,
        ""
        if no_leak
        else f"Split again with --set data.group_by={group.column} and no split column: images "
        "taken together look alike, so figures on the held-out splits look better than they are.",
        len(group.straddling),
    )
