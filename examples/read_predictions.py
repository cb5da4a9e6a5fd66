"""What to look at in a table of predictions, in pandas: python examples/read_predictions.py TABLE.

TABLE is what `recame predict` or `recame evaluate` has written, .csv or .parquet.
"""

from __future__ import annotations

import sys

import pandas as pd

import recame


def main(table: str) -> dict[str, pd.DataFrame]:
    """Read a table and answer what one asks first."""
    saved = recame.load_predictions(table)
    found = saved.predictions.table.assign(
        prediction=[saved.classes[place] for place in saved.predictions.probabilities.argmax(1)],
        confidence=saved.predictions.probabilities.max(1),
    )
    labelled = found[found["label"].fillna("") != ""]
    wrong = labelled[labelled["label"] != labelled["prediction"]]
    views = {
        "images of each class": found["prediction"].value_counts().to_frame("images"),
        "what is done with them": found.groupby(["action", "reason"]).size().to_frame("images"),
        "the surest mistakes": wrong.nlargest(5, "confidence")[
            ["image", "label", "prediction", "confidence"]
        ],
        "the least sure": found.nsmallest(5, "confidence")[["image", "prediction", "confidence"]],
    }
    if "product" in found:
        right = (labelled["label"] == labelled["prediction"]).groupby(labelled["product"])
        views["right, by product"] = right.agg(["mean", "size"])
    return views


if __name__ == "__main__":
    for title, view in main(sys.argv[1]).items():
        print(f"\n{title}\n{view.to_string()}")
