"""Compare a run with a baseline on the same images; every difference has an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recame.contracts import BoolArray, IntArray, Predictions
from recame.files import records
from recame.label_space import LabelSpace
from recame.metrics.paired import Difference, mcnemar_p_value, paired_differences

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """A model compared with a baseline.

    Attributes:
        baseline: the baseline's name.
        images: labelled images that both models predicted; 0: no common image.
        left_out: labelled images that only one of them predicted.
        differences: name -> difference; empty without common images.
        only_model_right: images that only the model classifies correctly.
        only_baseline_right: images that only the baseline classifies correctly.
        p_value: of McNemar's exact test on these two counts; 1 if the models agree on all images.
        recalls: one row per class: `class, recall, other, only_model_right, only_baseline_right`.
        confidence: of the intervals.
    """

    baseline: str
    images: int
    left_out: int
    differences: dict[str, Difference]
    only_model_right: int
    only_baseline_right: int
    p_value: float
    recalls: pd.DataFrame
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return {
            "baseline": self.baseline,
            "images": self.images,
            "left_out": self.left_out,
            "differences": {name: d.to_dict() for name, d in self.differences.items()},
            "only_model_right": self.only_model_right,
            "only_baseline_right": self.only_baseline_right,
            "mcnemar_p_value": self.p_value,
            "recalls": records(self.recalls),
            "confidence": self.confidence,
        }


def compare_predictions(
    predictions: Predictions,
    baseline: Predictions,
    label_space: LabelSpace,
    baseline_space: LabelSpace,
    *,
    name: str,
    tail: tuple[str, ...] = (),
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two models on the images that both predicted.

    Images are matched by their name in the manifest. An image with two different labels is left
    out, and so is a name that occurs twice.

    Args:
        predictions: of the model.
        baseline: of the other model.
        label_space: of the model; the labels in its table are used.
        baseline_space: of the baseline. A class that the model does not know counts as wrong.
        name: of the baseline, for the report.
        tail: classes of `tail_recall`.
        resamples: draws for the intervals.
        seed: of the draws.
        confidence: of the intervals.
    """
    import pandas as pd

    own = _called(predictions, label_space, label_space)
    other = _called(baseline, baseline_space, label_space)
    both = own.join(other.add_suffix("_other"), how="inner")
    both = both[both["target"] == both["target_other"]]
    named = pd.concat([predictions.table["image"], baseline.table["image"]]).astype(str)
    target, a, b = (both[c].to_numpy(np.int64) for c in ("target", "called", "called_other"))
    right, right_other = a == target, b == target
    only, only_other = int((right & ~right_other).sum()), int((right_other & ~right).sum())
    differences = paired_differences(
        target, a, b, label_space, tail, resamples=resamples, seed=seed, confidence=confidence
    )
    return Comparison(
        baseline=name,
        images=len(both),
        left_out=named.nunique() - len(both),
        differences=differences,
        only_model_right=only,
        only_baseline_right=only_other,
        p_value=mcnemar_p_value(only, only_other),
        recalls=_recalls(target, right, right_other, label_space),
        confidence=confidence,
    )


def _called(predictions: Predictions, space: LabelSpace, into: LabelSpace) -> pd.DataFrame:
    """Labelled images by name: `target` and `called` as indices of `into`; C: an unknown class."""
    import pandas as pd

    unknown = into.num_classes
    code = np.array([into.index(n) if n in into else unknown for n in space.names], np.int64)
    known = predictions.target >= 0
    called = code[predictions.probabilities[known].argmax(1)]
    # argmax of a row of NaN is class 0, which the model did not predict.
    called[~np.isfinite(predictions.probabilities[known]).all(1)] = unknown
    table = pd.DataFrame(
        {"target": code[predictions.target[known]], "called": called},
        index=pd.Index(predictions.table["image"].astype(str)[known]),
    )
    return table[~table.index.duplicated(keep=False) & (table["target"] < unknown).to_numpy()]


def _recalls(
    target: IntArray, right: BoolArray, other: BoolArray, space: LabelSpace
) -> pd.DataFrame:
    import pandas as pd

    marks = (right, other, right & ~other, other & ~right)
    hits = [np.bincount(target[mark], minlength=space.num_classes) for mark in marks]
    names = ("recall", "other", "only_model_right", "only_baseline_right")
    table = pd.DataFrame({"class": space.names, **dict(zip(names, hits, strict=True))})
    images = pd.Series(np.bincount(target, minlength=space.num_classes))
    table["recall"] /= images
    table["other"] /= images
    return table
