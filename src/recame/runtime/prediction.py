"""The prediction for one image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recame.contracts import FloatArray
from recame.data.decode import Loss
from recame.peers import attribute_error


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, and what is done with it.

    Attributes:
        image: the path as given; `#<position>` for bytes and arrays.
        label: the most probable class; None if the image cannot be read, or the model's output
            names no class.
        confidence: its probability; NaN without a label.
        action: `release` (the part passes unseen), `automatic` (booked as the label), `review` and
            `unknown` (a person looks), `unreadable`. Without decisions from `recame tune`, every
            image is `automatic`.
        reason: of the action, one of `recame.decisions.actions.REASONS`.
        probabilities: (C,) float32, in the label space's order.
        error: why there is no label.
        note: the error, or what the image lost in preprocessing, in words; usually empty.
        candidates: the classes that a person should look for, most probable first, joined by `|`;
            empty if no person looks.
        expert_probabilities: (E, C) float32, if the model has this output.
        sha256: of the file's bytes, hexadecimal, if requested from `stream`.
        lost: what the image lost in preprocessing, by kind and in words: `clipped` values above
            white, `near black` because of fewer bits, `colour`, further `pages`.
        unknown_score: how strange the image is to the model; NaN without a scorer.
        features: (E, D) features before the classifiers, if requested from `stream`.
    """

    image: str
    label: str | None
    confidence: float
    action: str
    reason: str
    probabilities: FloatArray
    error: str | None = None
    note: str = ""
    candidates: str = ""
    expert_probabilities: FloatArray | None = field(default=None, repr=False)
    sha256: str | None = field(default=None, repr=False)
    lost: dict[Loss, str] = field(default_factory=dict)
    unknown_score: float = math.nan
    features: FloatArray | None = field(default=None, repr=False)

    @property
    def unreadable(self) -> bool:
        """Whether the image could not be read, so that the model has not seen it."""
        return self.action == "unreadable"

    @property
    def stands(self) -> bool:
        """Whether the image is decided without a person."""
        return self.action in ("release", "automatic")

    def __str__(self) -> str:
        """Return one line: the image, its label and confidence, and what is done with it."""
        if self.label is None:
            return f"{self.image}: {self.action} ({self.error})"
        why = "" if self.reason == self.action else f", {self.reason}"
        return f"{self.image}: {self.label} {self.confidence:.2f} ({self.action}{why})"

    def __getitem__(self, name: str) -> Any:
        """Return a field by its name, as in a dictionary: `prediction["label"]`."""
        if name not in self.__dataclass_fields__:
            raise attribute_error(self, name)
        return getattr(self, name)

    if not TYPE_CHECKING:  # to a type checker a misspelt name is none

        def __getattr__(self, name: str) -> Any:
            """Say what other libraries' fields are called here."""
            raise attribute_error(self, name)
