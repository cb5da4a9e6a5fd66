"""Summary of a long prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recame.decisions.review_budget import LotReview
from recame.names import by_number, counted, quoted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PredictionSummary:
    """The result of `predict_files`.

    Attributes:
        out: the table; a string if it is at a URL.
        num_images: predicted images, including those of an interrupted call.
        num_resumed: files that an interrupted call had finished.
        counts: images of each predicted class, most frequent first.
        decided: number of files for each action and reason, most frequent first.
        num_unreadable: files without a prediction.
        unreadable: the first twenty of them, each with its reason.
        lost: kinds of loss in preprocessing (`Prediction.lost`): number of images, and the first.
        seconds: duration of this call.
        over_budget: production lots in which more images need a person than people can see.
    """

    out: Path | str
    num_images: int
    num_resumed: int
    counts: dict[str, int]
    decided: dict[tuple[str, str], int]
    num_unreadable: int
    unreadable: tuple[tuple[str, str], ...]
    lost: dict[str, tuple[int, str]]
    seconds: float
    over_budget: tuple[LotReview, ...] = ()

    def __str__(self) -> str:
        """Return images of each class, how many need a person, and the table's path."""
        counts = ", ".join(f"{quoted(name)} {count:,}" for name, count in self.counts.items())
        lines = [f"{counted(self.num_images)}{': ' if counts else ''}{counts}"]
        if self.num_review:
            verb = by_number(self.num_review, "goes", "go")
            lines.append(f"{self.num_review:,} of them {verb} to a person")
        if self.num_unreadable:
            lines.append(f"{counted(self.num_unreadable)} cannot be read")
        return "\n".join([*lines, f"in {self.out}"])

    def to_frame(self) -> pd.DataFrame:
        """Return the written table, one row per image."""
        from recame.runs.predictions import load_predictions_table

        return load_predictions_table(self.out)[0]

    @property
    def num_review(self) -> int:
        """Images that need a person, including those beyond a budget."""
        return sum(n for (action, _), n in self.decided.items() if action in ("review", "unknown"))

    @property
    def num_unanswered(self) -> int:
        """Images for which the model's output names no class."""
        return sum(n for (_, reason), n in self.decided.items() if reason == "not_finite")
