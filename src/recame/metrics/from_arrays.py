"""Evaluate any model from arrays of its probabilities, as a run is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from recame.contracts import Array, IntArray, Predictions
from recame.errors import DataError
from recame.label_space import LabelSpace
from recame.metrics.evaluation import Evaluation, evaluate_predictions
from recame.names import quoted

if TYPE_CHECKING:
    import pandas as pd

#: A row's sum may differ from 1 by this much, because of half precision or rounded columns.
_ROUNDING = 0.01


def evaluate_probabilities(
    y_true: ArrayLike,
    proba: ArrayLike,
    classes: Sequence[str] | ArrayLike,
    *,
    normal: str | None = None,
    critical: Sequence[str] = (),
    train_counts: Sequence[int] | ArrayLike | None = None,
    table: pd.DataFrame | None = None,
    product_column: str = "product",
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Evaluation:
    """Evaluate any model's probabilities: balanced accuracy, tail, escapes, with intervals.

    Args:
        y_true: (N,) class names, or class indices into `classes`.
        proba: (N, C), rows that add up to 1, columns in the order of `classes`.
        classes: C names, as `classes_` of a classifier of scikit-learn.
        normal: the class that means no defect; needed for escapes and overkill.
        critical: the classes whose escapes matter most.
        train_counts: (C,) training images of each class, which say what is rare; None: the counts
            of `y_true`.
        table: N rows with further facts about the images, for example their product.
        product_column: column of that table; figures are also given for each product.
        bootstrap: resamples for the intervals that have no formula; 0: no such intervals.
        seed: of the resampling.
        confidence: of every interval, in (0, 1).

    Examples:
        >>> proba = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
        >>> judged = evaluate_probabilities(["ok", "crack", "crack"], proba, ["ok", "crack"])
        >>> judged["balanced_accuracy"].value, judged.worst_class
        (0.75, 'crack')

    Raises:
        DataError: the arrays do not fit each other, a label is none of the classes, or a row is
            not a probability distribution.
        ConfigError: the normal or a critical class is none of the classes.
    """
    import pandas as pd

    names = tuple(str(name) for name in np.asarray(classes).tolist())
    target, scores = _indices(np.asarray(y_true), names), np.asarray(proba, np.float64)
    if scores.shape != (len(target), len(names)):
        raise DataError(
            f"proba has the shape {scores.shape}, and {len(target)} labels of {len(names)} classes "
            f"need ({len(target)}, {len(names)}): give one row per image and one column per class."
        )
    _check_probabilities(scores)
    counts = np.bincount(target, minlength=len(names)) if train_counts is None else train_counts
    label_space = LabelSpace(
        names, tuple(int(count) for count in np.asarray(counts)), normal, tuple(critical)
    )
    facts = pd.DataFrame({"image": [f"#{n}" for n in range(len(target))]})
    if table is not None:
        facts = table.reset_index(drop=True)
        if len(facts) != len(target):
            raise DataError(
                f"The table has {len(facts)} rows for {len(target)} labels: give one row per image."
            )
    wide = scores.astype(np.float32)
    return evaluate_predictions(
        Predictions(facts, wide, wide[:, None], target),
        label_space,
        product_column=product_column,
        bootstrap=bootstrap,
        seed=seed,
        confidence=confidence,
    )


def _indices(given: Array, names: tuple[str, ...]) -> IntArray:
    """(N,) class indices of the labels."""
    if given.ndim != 1:
        raise DataError(
            f"y_true has the shape {given.shape}: give one label per image, (N,); for one-hot rows "
            "give y_true.argmax(1)."
        )
    places = {name: place for place, name in enumerate(names)}
    if np.issubdtype(given.dtype, np.integer) and not {str(n) for n in set(given.tolist())} <= set(
        names
    ):
        target = given.astype(np.int64)
        wrong = {str(value) for value in target if not 0 <= value < len(names)}
    else:
        labels = [str(value) for value in given.tolist()]
        wrong = set(labels) - set(names)
        target = np.array([places.get(label, -1) for label in labels], np.int64)
    if wrong:
        raise DataError(
            f"y_true holds {', '.join(map(quoted, sorted(wrong)[:8]))}, none of the classes "
            f"({', '.join(map(quoted, names[:12]))}): the model can never be right there. Correct "
            "the labels, or leave these images out."
        )
    return target


def _check_probabilities(scores: Array) -> None:
    """Refuse rows that are not probabilities."""
    unusual = (scores < -_ROUNDING) | (scores > 1 + _ROUNDING)
    sums = scores.sum(1)
    if unusual.any() or (np.abs(sums - 1) > _ROUNDING).any():
        shown = np.array2string(scores[int((np.abs(sums - 1)).argmax())][:6], precision=3)
        raise DataError(
            f"proba holds rows that are no probabilities (for example {shown}): the calibration "
            "figures would be wrong. For logits give scipy.special.softmax(logits, axis=1)."
        )
