"""What a long prediction has found, in numbers."""

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
    """What `predict_files` did.

    Attributes:
        out: the table; a text where it is at a URL.
        num_images: images predicted, those of an interrupted start included.
        num_resumed: files that an interrupted start had done.
        counts: images of each predicted class, most frequent first.
        decided: of each action and reason, how many of the files, most frequent first.
        num_unreadable: files without a prediction.
        unreadable: the first twenty of them, each with its reason.
        lost: what images have lost on their way to the model (`Prediction.lost`): how many of
            them, and the first.
        seconds: of this start.
        over_budget: production lots of which more images need a person than people can see.
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
        """How many images of each class, what needs a look, and where the table lies."""
        counts = ", ".join(f"{quoted(name)} {count:,}" for name, count in self.counts.items())
        lines = [f"{counted(self.num_images)}{': ' if counts else ''}{counts}"]
        if self.num_review:
            verb = by_number(self.num_review, "goes", "go")
            lines.append(f"{self.num_review:,} of them {verb} to a person")
        if self.num_unreadable:
            lines.append(f"{counted(self.num_unreadable)} cannot be read")
        return "\n".join([*lines, f"in {self.out}"])

    def to_frame(self) -> pd.DataFrame:
        """The table that was written, a row an image."""
        from recame.runs.predictions import load_predictions_table

        return load_predictions_table(self.out)[0]

    @property
    def num_review(self) -> int:
        """Images that need a person, those that are beyond a budget among them."""
        return sum(n for (action, _), n in self.decided.items() if action in ("review", "unknown"))

    @property
    def num_unanswered(self) -> int:
        """Images for which the model gives no usable numbers."""
        return sum(n for (_, reason), n in self.decided.items() if reason == "not_finite")
