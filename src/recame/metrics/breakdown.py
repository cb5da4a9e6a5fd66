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
    """The means over classes with images, for one confusion matrix or many.

    Args:
        counts: of shape (..., C).
        groups: name -> (C,) members; each gives the mean recall of its members with images, and
            is left out when it has none.
        normal: index of the class that means "no defect", if there is one.

    Returns:
        The metrics that are means over classes and the groups, by name, each of shape (...).
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
    """A row a class in index order, with Wilson intervals and a plain note.

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
            "precision": np.where(predicted > 0, precision, np.nan),
            "precision_low": np.where(predicted > 0, precision_low, np.nan),
            "precision_high": np.where(predicted > 0, precision_high, np.nan),
            "recall": np.where(support > 0, recall, np.nan),
            "recall_low": np.where(support > 0, recall_low, np.nan),
            "recall_high": np.where(support > 0, recall_high, np.nan),
            "f1": np.where(support > 0, f1, np.nan),
        }
    )
    table["note"] = [
        _note(int(images), value, low, high)
        for images, value, low, high in zip(support, recall, recall_low, recall_high, strict=True)
    ]
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
    """A row a training-count group that has classes.

    Args:
        macro: estimates under the names of `members`.
        members: `<rule> <group>` -> (C,) members; names without a space are passed over.
        support: (C,) images of each class.
        space: gives the training counts.
    """
    import pandas as pd

    train = np.array(space.counts)
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
                    "train_images": int(train[mask].sum()),
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
    """The ensemble beside each expert alone.

    Args:
        probabilities: (N, E, C).
        target: (N,) class indices.
        ensemble: the ensemble's counts, (C,) each.
        tail: (C,) members of the tail.
    """
    import pandas as pd

    num_experts, num_classes = probabilities.shape[1:]
    called = probabilities.argmax(2)
    row = np.arange(num_experts) * num_classes

    def count(cells: IntArray) -> FloatArray:
        flat = np.bincount(cells.ravel(), minlength=num_experts * num_classes)
        return flat.reshape(num_experts, num_classes).astype(np.float64)

    hit = called == target[:, None]
    alone = ClassCounts(count((row + target[:, None])[hit]), ensemble.support, count(row + called))
    models = ClassCounts(
        np.vstack([ensemble.hits, alone.hits]),
        ensemble.support,
        np.vstack([ensemble.predicted, alone.predicted]),
    )
    values = macro_statistics(models, {"tail_recall": tail})
    return pd.DataFrame(
        {
            "model": ["ensemble", *(f"expert {index}" for index in range(num_experts))],
            "balanced_accuracy": values["balanced_accuracy"],
            "accuracy": models.hits.sum(1) / models.support.sum(),
            "macro_f1": values["macro_f1"],
            "tail_recall": values.get("tail_recall", np.full(num_experts + 1, np.nan)),
        }
    )


def product_tables(
    products: pd.Series[Any] | None,
    target: IntArray,
    prediction: IntArray,
    names: tuple[str, ...],
    confidence: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recall of each product, and of each class in each product that has images of it.

    Args:
        products: (N,) values of the product column, or None where there is none.
        target: (N,) class indices.
        prediction: (N,) class indices.
        names: C class names.
        confidence: of the intervals.

    Returns:
        A row a product, and a row a class and product; both empty without products.
    """
    import pandas as pd

    if products is None or products.isna().all():
        return pd.DataFrame(), pd.DataFrame()
    filled = products.astype(object).where(products.notna(), "(none)").astype(str)
    codes, found = pd.factorize(filled, sort=True)
    shape = (len(found), len(names))
    cell = codes * len(names) + target
    size = len(found) * len(names)
    support = np.bincount(cell, minlength=size).reshape(shape)
    hits = np.bincount(cell[prediction == target], minlength=size).reshape(shape)
    recall = np.divide(hits, support, out=np.full(shape, np.nan), where=support > 0)
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
    classes, rows = np.nonzero(support.T)
    cell_low, cell_high = wilson_interval(hits.T, support.T, confidence)
    class_by_product = pd.DataFrame(
        {
            "class": np.array(names, dtype=object)[classes],
            "product": found.to_numpy()[rows],
            "images": support.T[classes, rows],
            "recall": recall.T[classes, rows],
            "recall_low": cell_low[classes, rows],
            "recall_high": cell_high[classes, rows],
        }
    )
    return by_product, class_by_product
