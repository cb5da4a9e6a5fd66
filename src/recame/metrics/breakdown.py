"""The parts of an evaluation: by class, by training-count group, by expert, by product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.label_space import LabelSpace
from recame.metrics.registry import METRICS
from recame.metrics.statistics import (
    TOO_WIDE,
    ClassCounts,
    ClassRates,
    Estimate,
    class_rates,
    wilson_interval,
)

if TYPE_CHECKING:
    import pandas as pd


def macro_statistics(
    counts: ClassCounts, groups: Mapping[str, BoolArray], normal: int | None = None
) -> dict[str, FloatArray]:
    """Compute the means over the classes that have images, for one confusion matrix or many.

    Args:
        counts: of shape (..., C).
        groups: name -> (C,) mask of its classes. Each group gives the mean recall of its classes
            that have images, and is left out if none has.
        normal: index of the class that means "no defect", if there is one.

    Returns:
        The metrics that are means over classes, and the groups' recalls, by name; shape (...) each.
    """
    present = counts.support > 0
    recall, precision, f1, defect = class_rates(counts, normal)
    rates = ClassRates(
        recall[..., present], precision[..., present], f1[..., present], defect[present]
    )
    members = {name: mask[present] for name, mask in groups.items()}
    return {
        **{metric.name: metric.mean(rates) for metric in METRICS if metric.mean},
        **{name: rates.recall[..., mask].mean(-1) for name, mask in members.items() if mask.any()},
    }


def per_class_table(counts: ClassCounts, space: LabelSpace, confidence: float) -> pd.DataFrame:
    """Return one row per class in index order, with Wilson intervals and a note in words.

    Args:
        counts: (C,) each.
        space: names, training counts, groups.
        confidence: of the intervals.
    """
    import pandas as pd

    hits, support, predicted = counts
    recall, precision, f1, _ = class_rates(counts)
    recall_low, recall_high = wilson_interval(hits, support, confidence)
    precision_low, precision_high = wilson_interval(hits, predicted, confidence)
    table = pd.DataFrame(
        {
            "class": space.names,
            "train_images": space.counts,
            "group": space.groups(),
            "images": support.astype(np.int64),
            "precision": precision,
            "precision_low": precision_low,
            "precision_high": precision_high,
            "recall": recall,
            "recall_low": recall_low,
            "recall_high": recall_high,
            "f1": f1,
            "note": list(map(_note, support.astype(np.int64), recall, recall_low, recall_high)),
        }
    )
    table.loc[predicted == 0, ["precision", "precision_low", "precision_high"]] = np.nan
    table.loc[support == 0, ["recall", "recall_low", "recall_high", "f1"]] = np.nan
    return table


def _note(images: int, recall: float, low: float, high: float) -> str:
    if images == 0:
        return "no image in this split"
    if high - low <= TOO_WIDE:
        return ""
    plural = "image" if images == 1 else "images"
    return f"{images} {plural}: recall {recall:.2f} ({low:.2f}-{high:.2f}), too few to tell"


def groups_table(
    macro: Mapping[str, Estimate],
    members: Mapping[str, BoolArray],
    support: FloatArray,
    space: LabelSpace,
) -> pd.DataFrame:
    """Return one row per training-count group that has classes.

    Args:
        macro: recall estimates by the names of `members`.
        members: `<rule> <group>` -> (C,) mask of its classes; names without a space are skipped.
        support: (C,) images of each class.
        space: gives the training counts.
    """
    import pandas as pd

    rows = []
    for name, mask in members.items():
        rule, _, group = name.partition(" ")
        if group and mask.any():
            recall = macro.get(name, Estimate(None))
            rows.append(
                {
                    "rule": rule,
                    "group": group,
                    "classes": int(mask.sum()),
                    "train_images": int(np.array(space.counts)[mask].sum()),
                    "images": int(support[mask].sum()),
                    "recall": recall.value,
                    "recall_low": recall.low,
                    "recall_high": recall.high,
                }
            )
    return pd.DataFrame(rows)


def experts_table(
    probabilities: FloatArray,
    target: IntArray,
    ensemble: ClassCounts,
    tail: BoolArray,
) -> pd.DataFrame:
    """Compare the ensemble with each expert alone, one row per model.

    Args:
        probabilities: (N, E, C).
        target: (N,) class indices.
        ensemble: the ensemble's counts, (C,) each.
        tail: (C,) mask of the tail classes.
    """
    import pandas as pd

    calls, size = probabilities.argmax(2).T, len(tail)
    hits = [np.bincount(target[called == target], minlength=size) for called in calls]
    predicted = [np.bincount(called, minlength=size) for called in calls]
    models = ClassCounts(
        np.stack([ensemble.hits, *hits]),
        ensemble.support,
        np.stack([ensemble.predicted, *predicted]),
    )
    values = macro_statistics(models, {"tail_recall": tail})
    return pd.DataFrame(
        {
            "model": ["ensemble", *(f"expert {index}" for index in range(len(calls)))],
            "balanced_accuracy": values["balanced_accuracy"],
            "accuracy": models.hits.sum(1) / models.support.sum(),
            "macro_f1": values["macro_f1"],
            "tail_recall": values.get("tail_recall", np.full(len(calls) + 1, np.nan)),
        }
    )


def product_tables(
    products: pd.Series[Any] | None,
    target: IntArray,
    prediction: IntArray,
    names: tuple[str, ...],
    confidence: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute the recall of each product, and of each class in each product that has images of it.

    Args:
        products: (N,) values of the product column, or None where there is none.
        target: (N,) class indices.
        prediction: (N,) class indices.
        names: C class names.
        confidence: of the intervals.

    Returns:
        One row per product, and one row per class and product; both empty without products.
    """
    import pandas as pd

    if products is None or products.isna().all():
        return pd.DataFrame(), pd.DataFrame()
    filled = products.astype(object).where(products.notna(), "(none)").astype(str)
    codes, found = pd.factorize(filled, sort=True)
    support, hits = np.zeros((2, len(found), len(names)), np.int64)
    np.add.at(support, (codes, target), 1)
    np.add.at(hits, (codes, target), prediction == target)
    recall = np.divide(hits, support, out=np.full(hits.shape, np.nan), where=support > 0)
    worst = np.nanargmin(recall, axis=1)
    low, high = wilson_interval(hits.sum(1), support.sum(1), confidence)
    by_product = pd.DataFrame(
        {
            "product": found.to_numpy(),
            "images": support.sum(1),
            "classes": (support > 0).sum(1),
            "balanced_accuracy": np.nanmean(recall, axis=1),
            "accuracy": hits.sum(1) / support.sum(1),
            "accuracy_low": low,
            "accuracy_high": high,
            "worst_class": np.array(names, dtype=object)[worst],
            "worst_class_recall": np.nanmin(recall, axis=1),
            "worst_class_images": support[np.arange(len(found)), worst],
        }
    )
    cells = np.nonzero(support.T)
    low, high = wilson_interval(hits.T[cells], support.T[cells], confidence)
    class_by_product = pd.DataFrame(
        {
            "class": np.array(names, dtype=object)[cells[0]],
            "product": found.to_numpy()[cells[1]],
            "images": support.T[cells],
            "recall": recall.T[cells],
            "recall_low": low,
            "recall_high": high,
        }
    )
    return by_product, class_by_product
