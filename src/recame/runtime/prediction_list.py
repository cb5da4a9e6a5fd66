"""Predictions for several images: a list that also gives arrays, a table and a figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np

from recame.contracts import Array, FloatArray, PreprocessSpec
from recame.data.decode import Image, Reader
from recame.errors import DataError
from recame.names import by_number, counted, quoted
from recame.peers import attribute_error
from recame.runs.prediction_columns import probability_columns
from recame.runtime.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Pictures in a row, and by default in a figure.
_COLUMNS, _MOST_DRAWN = 4, 16


class PredictionList(list[Prediction]):
    """Predictions in the order of their images; a slice is a `PredictionList` too.

    Args:
        predictions: one per image.
        classes: names of the C classes.
        images: the images, for `plot`.
        reader: reads them as the model sees them.
        spec: how it decodes them.
    """

    def __init__(
        self,
        predictions: Iterable[Prediction],
        classes: Sequence[str],
        images: Sequence[Image],
        reader: Reader,
        spec: PreprocessSpec,
    ) -> None:
        super().__init__(predictions)
        self.classes, self._images = tuple(classes), images
        self._reader, self._spec = reader, spec

    @overload
    def __getitem__(self, place: SupportsIndex) -> Prediction: ...

    @overload
    def __getitem__(self, place: slice) -> PredictionList: ...

    def __getitem__(self, place: SupportsIndex | slice) -> Prediction | PredictionList:
        """Return one prediction, or a slice of the list."""
        if isinstance(place, slice):
            return PredictionList(
                super().__getitem__(place),
                self.classes,
                self._images[place],
                self._reader,
                self._spec,
            )
        return super().__getitem__(place)

    @property
    def labels(self) -> Array:
        """(N,) the most probable classes; None without a label."""
        return np.array([found.label for found in self], object)

    @property
    def probabilities(self) -> FloatArray:
        """(N, C) float32; NaN if an image cannot be read."""
        rows = [found.probabilities for found in self]
        return np.stack(rows) if rows else np.empty((0, len(self.classes)), np.float32)

    def __str__(self) -> str:
        """Return how many images there are of each class, and how many need a person."""
        counts = Counter(found.label for found in self if found.label is not None)
        told = ", ".join(f"{quoted(name)} {n:,}" for name, n in counts.most_common())
        lines = [f"{counted(len(self))}{': ' if told else ''}{told}"]
        if people := sum(found.action in ("review", "unknown") for found in self):
            lines.append(f"{people:,} of them {by_number(people, 'goes', 'go')} to a person")
        if unread := [found for found in self if found.unreadable]:
            more = ", ..." if len(unread) > 1 else ""
            lines.append(f"{counted(len(unread))} cannot be read: {unread[0].image}{more}")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per image, with the columns of the table that `recame predict` writes.

        They are `image, prediction, confidence, p_<class>..., action, reason, note, candidates,
        unknown_score`.
        """
        import pandas as pd

        first = [(found.image, found.label, found.confidence) for found in self]
        last = [
            (found.action, found.reason, found.note, found.candidates, found.unknown_score)
            for found in self
        ]
        decided = ["action", "reason", "note", "candidates", "unknown_score"]
        parts = [
            pd.DataFrame(first, columns=["image", "prediction", "confidence"]),
            pd.DataFrame(self.probabilities, columns=probability_columns(self.classes)),
            pd.DataFrame(last, columns=decided),
        ]
        return pd.concat(parts, axis=1)

    def plot(self, most: int = _MOST_DRAWN) -> Figure:
        """Draw images as the model sees them, with their predictions.

        Args:
            most: largest number of images, from the first on.

        Returns:
            A new figure; matplotlib's global state is not changed.

        Raises:
            DataError: there is nothing to draw.
        """
        from matplotlib.figure import Figure

        shown = self[:most]
        if not shown:
            raise DataError("There is no prediction to draw: predict some images.")
        columns = min(_COLUMNS, len(shown))
        rows = math.ceil(len(shown) / columns)
        figure = Figure(figsize=(2.2 * columns, 2.5 * rows), layout="constrained")
        cells = figure.subplots(rows, columns, squeeze=False).ravel()
        for cell in cells:
            cell.axis("off")
        for cell, found, image in zip(cells, shown, self._images, strict=False):
            pixels = self._picture(image)
            if pixels is not None:
                cell.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0)
            title = "unreadable" if found.label is None else f"{found.label} {found.confidence:.2f}"
            doubt = "" if found.stands or found.unreadable else f"\n{found.action}"
            cell.set_title(f"{title}{doubt}".replace("$", r"\$"), fontsize=9)
        return figure

    def _picture(self, image: Image) -> FloatArray | None:
        """The whole image as the model sees it, in [0, 1]; None if it cannot be read."""
        pixels = self._reader.read(image).pixels
        if isinstance(pixels, str):
            return None
        height, _ = self._spec.piece_size  # below it lie its tiles
        seen = pixels[:height] / self._spec.scale
        return np.asarray(seen[..., 0] if seen.shape[-1] == 1 else seen).clip(0, 1)

    if not TYPE_CHECKING:  # to a type checker a misspelt name is none

        def __getattr__(self, name: str) -> Any:
            """Say how what other libraries' results do is done here."""
            raise attribute_error(self, name)
