"""Read a table of predictions with pandas: python examples/read_predictions.py TABLE.

TABLE is a .csv or .parquet file that `recame predict` or `recame evaluate` has written.
"""

from __future__ import annotations

import sys

import pandas as pd

import recame


def main(table: str) -> dict[str, pd.DataFrame]:
    """Read a table and show the most important views."""
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
        "the most confident mistakes": wrong.nlargest(5, "confidence")[
            ["image", "label", "prediction", "confidence"]
        ],
        "the least confident images": found.nsmallest(5, "confidence")[
            ["image", "prediction", "confidence"]
        ],
    }
    if "product" in found:
        right = (labelled["label"] == labelled["prediction"]).groupby(labelled["product"])
        views["accuracy by product"] = right.agg(["mean", "size"])
    return views


if __name__ == "__main__":
    for title, view in main(sys.argv[1]).items():
        print(f"\n{title}\n{view.to_string()}")
