"""Labels that people have corrected since an earlier inspection."""

from __future__ import annotations

from typing import Any

import pandas as pd

from recame.data.corrections import CHANGES
from recame.inspection.check import Check, SetFinding
from recame.names import counted, quoted


class Corrections(Check):
    """The changes by `data.corrections`; the inspection describes the corrected data."""

    place = 0

    @property
    def changes(self) -> pd.DataFrame:
        """One row for each change; no rows if no corrections were given."""
        found = self.inspection.corrections
        return pd.DataFrame(columns=list(CHANGES)) if found is None else found

    def say(self) -> list[SetFinding]:
        """How many labels were corrected, and to which classes."""
        if self.inspection.corrections is None:
            return []
        changes = self.changes
        if changes.empty:
            text = "All labels of the table of corrections are in the data already."
            return [SetFinding("corrections", "note", "The corrections change nothing", text)]
        pairs = (changes["was"].map(quoted) + " -> " + changes["is"].map(quoted)).value_counts()
        top = ", ".join(f"{pair} ({count})" for pair, count in pairs.head(3).items())
        title = f"{counted(len(changes), 'correction')} applied"
        text = f"Most often: {top}. All other findings describe the corrected data."
        return [SetFinding("corrections", "note", title, text, count=len(changes))]

    def facts(self) -> dict[str, Any]:
        """How many there are."""
        return {"hygiene": {"corrections": len(self.changes)}}

    def tables(self) -> dict[str, pd.DataFrame]:
        """All of them."""
        return {"corrections": self.changes}
