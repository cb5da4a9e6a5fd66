"""Each class's recall with its interval, as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_INK, _DOUBT = "#3182bd", "#f28e4c"


def recall_figure(per_class: pd.DataFrame) -> Figure:
    """Draw each class's recall with its interval.

    Args:
        per_class: rows of `Evaluation.per_class`. Classes without images are left out; classes
            with too few images to tell are drawn in orange.

    Returns:
        A new figure; matplotlib's global state is not changed.
    """
    from matplotlib.figure import Figure

    rows = per_class[per_class["images"] > 0]
    rows = rows.sort_values("train_images", ascending=False, kind="stable")
    places = np.arange(len(rows))[::-1]
    recall = rows["recall"].to_numpy(float)
    low, high = (rows[f"recall_{end}"].to_numpy(float) for end in ("low", "high"))
    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    colours = np.where(rows["note"].fillna("").astype(str) == "", _INK, _DOUBT)
    axes.hlines(places, low, high, colors=list(colours), linewidth=2)
    axes.scatter(recall, places, c=list(colours), s=24, zorder=3)
    names = [
        f"{name} ({count:,})" for name, count in zip(rows["class"], rows["images"], strict=True)
    ]
    axes.set_yticks(places, labels=[name.replace("$", r"\$") for name in names])
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("recall, with its interval; images of the class in brackets")
    axes.grid(axis="x", alpha=0.3)
    return figure
