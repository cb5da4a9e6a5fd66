"""What a model says of one image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recame.contracts import FloatArray
from recame.data.decode import Loss
from recame.peers import attribute_error


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, and what is done with it.

    Attributes:
        image: the path as given; `#<position>` for bytes and arrays.
        label: the most probable class; None where there is no answer: the image cannot be read,
            or the model's answer names no class.
        confidence: its probability; NaN without a label.
        action: `release` (of the normal class, surely enough), `automatic` (the label stands),
            `review` and `unknown` (a person looks), `unreadable`. Without decisions that
            `recame tune` has fitted every label stands.
        reason: for it, of `recame.decisions.actions.REASONS`.
        probabilities: (C,) float32, in the label space's order.
        error: why there is no label.
        note: that, or what the image has lost, in words; mostly empty.
        candidates: where a person looks, the classes to look for, the likeliest first, joined by
            `|`; else empty.
        expert_probabilities: (E, C) float32, where the model gives them.
        sha256: of the file's bytes, hexadecimal, where `stream` was asked for it.
        lost: what the image has lost on its way to the model, by kind and in words: `clipped`
            values above its white, `near black` from fewer bits, `colour`, further `pages`.
        unknown_score: how strange the image is to the model; NaN where nothing says so.
        features: (E, D) what its classifiers saw, where `stream` was asked for them.
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
        """Whether the label stands without a person's look."""
        return self.action in ("release", "automatic")

    def __str__(self) -> str:
        """In a line: the image, its label, how sure, and what is done with it."""
        if self.label is None:
            return f"{self.image}: {self.action} ({self.error})"
        why = "" if self.reason == self.action else f", {self.reason}"
        return f"{self.image}: {self.label} {self.confidence:.2f} ({self.action}{why})"

    def __getitem__(self, name: str) -> Any:
        """A field by its name, as of a dictionary: `prediction["label"]`."""
        if name not in self.__dataclass_fields__:
            raise attribute_error(self, name)
        return getattr(self, name)

    if not TYPE_CHECKING:  # to a type checker a misspelt name is none

        def __getattr__(self, name: str) -> Any:
            """Say what other libraries' fields are called here."""
            raise attribute_error(self, name)
